// An application that sends back what it gets, as a backend behind throng: arguments of any kind, acks, rooms, namespaces.
//
//   node server.mjs [PORT]

import { createServer } from "node:http";

const [port = "4000"] = process.argv.slice(2);

// Somebody wants to come in. Who may, is told what it said for itself.
function connect({ namespace, handshake: { auth, query } }) {
  if (!["/", "/custom"].includes(namespace)) return { refuse: { message: "not here", data: { namespace } } };
  return { emit: [{ event: "auth", args: [auth ?? {}, query.name ?? null] }] };
}

function disconnected({ connection, reason }) {
  return { emit: [{ event: "left", args: [connection, reason], room: "watchers" }] };
}

// What events do. With their arguments are their attachments, and the same goes for what is sent.
const events = {
  message: ({ args, attachments }) => ({ emit: [{ event: "message-back", args, attachments }] }),
  "message-with-ack": ({ args, attachments }) => ({ ack: args, attachments }),
  join: ({ connection, args: [rooms] }) => ({ join: rooms, emit: [{ event: "joined", args: [connection], rooms }], ack: ["ok"] }),
  leave: ({ args: [rooms] }) => ({ leave: rooms, ack: ["ok"] }),
  say: ({ connection, args: [room, ...args], attachments }) => ({
    emit: [{ event: "said", args, attachments, room, except: [connection] }],
    ack: ["ok"],
  }),
  bye: () => ({ ack: ["bye"], disconnect: true }),
  close: () => ({ disconnect: { code: 4100, reason: "as you wish" } }),
};

function event(call) {
  if (!Object.hasOwn(events, call.event)) return { ack: [{ error: `there is no event ${call.event}` }] };
  return events[call.event](call);
}

const handlers = { "/connect": connect, "/disconnected": disconnected, "/event": event };

createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    try {
      const answer = handlers[request.url](JSON.parse(Buffer.concat(chunks)));
      response.end(JSON.stringify(answer));
    } catch (error) {
      // Clients say anything. 400 concerns this one alone; no answer would count as a backend that fails.
      console.error(error);
      response.writeHead(400).end();
    }
  });
}).listen(Number(port), "127.0.0.1");
