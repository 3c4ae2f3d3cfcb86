// Bun.serve (µWebSockets inside) doing the two workloads that throng is measured with. It is meant to
// be the fastest program a Bun programmer would write for them: messages are cut up instead of parsed,
// the typed send and publish calls spare Bun a look at the argument, and compression and idle timers are off.
//
//   bun server.ts --listen 127.0.0.1:7073
//
// Left at Bun's defaults: the size of a message (16 MiB), the backlog, the bytes a slow reader may owe (16 MiB).

const listen = process.argv[process.argv.indexOf("--listen") + 1] ?? "";
const [, hostname, port] = listen.match(/^(.+):(\d+)$/) ?? [];
if (!hostname) {
  console.error("usage: bun server.ts --listen ADDR:PORT");
  process.exit(2);
}

type Purpose = "echo" | "room";

// One object for all connections of a kind, so that `data` costs a connection nothing.
const echo = { data: "echo" as Purpose };
const room = { data: "room" as Purpose };

// The text of the field that `start` (its name and opening quote) leads to.
function field(message: string, start: string): string {
  const at = message.indexOf(start) + start.length;
  return message.slice(at, message.indexOf('"', at));
}

const server = Bun.serve({
  hostname,
  port: Number(port),
  fetch(request, server) {
    const path = request.url.slice(request.url.indexOf("/", "http://".length));
    if (path === "/ws" && server.upgrade(request, room)) return;
    if (path === "/echo" && server.upgrade(request, echo)) return;
    return new Response(null, { status: 404 });
  },
  websocket: {
    data: "room" as Purpose,
    perMessageDeflate: false,
    publishToSelf: false,
    idleTimeout: 0,
    message(ws, message) {
      if (ws.data === "echo") {
        if (typeof message === "string") ws.sendText(message);
        else ws.sendBinary(message);
        return;
      }
      if (typeof message !== "string") return;
      if (message.startsWith('{"type":"publish"')) {
        // The event is the publication with another type: everything after it is handed on as it is.
        // (throng writes only room, event and data; the load generator sends nothing else.)
        ws.publishText(field(message, '"room":"'), '{"type":"event"' + message.slice(17));
      } else if (message.startsWith('{"type":"join"')) {
        const { rooms, id } = JSON.parse(message);
        const members: Record<string, { members: number }> = {};
        for (const name of rooms) {
          members[name] = { members: server.subscriberCount(name) };
          ws.subscribe(name);
        }
        if (id !== undefined) ws.sendText(JSON.stringify({ type: "ack", id, rooms: members }));
      } else if (message.startsWith('{"type":"leave"')) {
        const { rooms, id } = JSON.parse(message);
        for (const name of rooms) ws.unsubscribe(name);
        if (id !== undefined) ws.sendText(JSON.stringify({ type: "ack", id }));
      }
    },
  },
});

console.log(`listening on ${server.hostname}:${server.port}`);
