// The checks that run.mjs has a page make: the stock bundle (the global `io`) against a server of another origin than the page's.
// Tells run.mjs each result with a POST to /report, and the end of all with one to /end.

const url = new URL(location).searchParams.get("server");
const WAIT_MS = 10_000; // for one thing that is expected to happen at once
const MODES = {
  "default transports": {},
  "websocket only": { transports: ["websocket"] },
  "polling only": { transports: ["polling"] },
  "polling with a header of its own": { transports: ["polling"], extraHeaders: { "X-App": "1" } },
};

let opened = []; // sockets of the running check, to be ended after it

function fail(text) {
  throw new Error(text);
}

function same(actual, expected, what) {
  const [got, want] = [show(actual), show(expected)];
  if (got !== want) fail(`${what}: expected ${want.slice(0, 300)}, got ${got.slice(0, 300)}`);
}

// A value as text, bytes as their numbers.
function show(value) {
  const bytes = (_, part) => {
    if (part instanceof ArrayBuffer) return { bytes: [...new Uint8Array(part)] };
    return ArrayBuffer.isView(part) ? { bytes: [...new Uint8Array(part.buffer)] } : part;
  };
  return JSON.stringify(value, bytes) ?? String(value);
}

function bounded(promise, what) {
  const late = new Promise((_, reject) => {
    setTimeout(() => reject(new Error(`${what}: nothing within ${WAIT_MS} ms`)), WAIT_MS);
  });
  return Promise.race([promise, late]);
}

// Opens a socket that joins `namespace`, and takes the event with the auth payload.
async function open(options, namespace = "/") {
  const socket = io(`${url}${namespace}`, { forceNew: true, reconnectionDelay: 20, reconnectionDelayMax: 100, ...options });
  opened.push(socket);
  same(await heard(socket, "auth"), [options.auth ?? {}], "auth payload");
  return socket;
}

// The arguments of the next event of this name.
function heard(socket, event) {
  return bounded(new Promise((resolve) => socket.once(event, (...args) => resolve(args))), event);
}

function ask(socket, event, ...args) {
  return bounded(new Promise((resolve) => socket.emit(event, ...args, (...answer) => resolve(answer))), `the ack of ${event}`);
}

async function echoes(socket, ...args) {
  const reply = heard(socket, "message-back");
  socket.emit("message", ...args);
  same(await reply, args, "the event that came back");
}

const forMode = (options) => ({
  "connects, and the auth payload arrives": async () => {
    const socket = await open({ ...options, auth: { token: "123", é: ["\u{1f642}"] } });
    const [transport] = options.transports ?? ["websocket"];
    const { engine } = socket.io;
    if (engine.transport.name !== transport) await bounded(new Promise((resolve) => engine.once("upgrade", resolve)), "upgrade");
    same(engine.transport.name, transport, "transport");
    await echoes(socket, "hello");
  },

  "events and acks come back with their arguments": async () => {
    const socket = await open(options);
    const values = [0, -1.5, true, null, "", "é漢\u{1f642} \"\\ \u2028", [], {}, [1, [2, { three: [4] }]]];
    await echoes(socket);
    await echoes(socket, ...values);
    same(await ask(socket, "message-with-ack", ...values), values, "the ack");
    const all = Array.from({ length: 100 }, (_, index) => index);
    same(await Promise.all(all.map((index) => ask(socket, "message-with-ack", index))), all.map((index) => [index]), "acks");
  },

  "bytes come back": async () => {
    const socket = await open(options);
    const every = Uint8Array.from({ length: 1024 }, (_, index) => index % 256);
    await echoes(socket, every);
    await echoes(socket, "before", { deep: [every.buffer, new Uint8Array([4])] }, "after");
    same(await ask(socket, "message-with-ack", every, 1, new Uint8Array([7])), [every, 1, new Uint8Array([7])], "the ack");
    const reply = heard(socket, "message-back");
    socket.emit("message", new Blob([every]));
    same(await reply, [every], "the blob that came back");
  },

  "an event of nearly the largest size comes back": async () => {
    const socket = await open(options);
    const text = "0123456789".repeat(99_990);
    await echoes(socket, text);
  },

  "namespaces share a connection and nothing else": async () => {
    const main = await open(options);
    const custom = main.io.socket("/custom", { auth: { in: "custom" } });
    same(await heard(custom, "auth"), [{ in: "custom" }], "auth payload of /custom");
    await echoes(custom, "custom");
    await echoes(main, "main");
    const [error] = await heard(main.io.socket("/nope", {}), "connect_error");
    same(error.message, "Invalid namespace", "error for /nope");
    custom.disconnect();
    await echoes(main, "still here");
  },

  "who loses the connection is back by itself": async () => {
    const socket = await open(options);
    const { id } = socket;
    const gone = heard(socket, "disconnect");
    const back = heard(socket, "connect");
    socket.io.engine.close();
    await gone;
    await back;
    if (socket.id === id) fail("the same id for another socket");
    await echoes(socket, "back");
  },
});

const checks = {
  "rooms reach from page to page, whatever the transports": async () => {
    const sockets = await Promise.all(Object.values(MODES).map((options) => open(options)));
    const room = `browser:${Math.random()}`;
    for (const [before, socket] of sockets.entries())
      same(await ask(socket, "join", room), [{ rooms: { [room]: { members: before } } }], "the ack of a join");
    for (const sender of sockets) {
      const others = sockets.filter((socket) => socket !== sender).map((socket) => heard(socket, "news"));
      same(await ask(sender, "publish", { room, event: "news", data: { amount: 120 } }), [{}], "the ack of a publish");
      same(await Promise.all(others), others.map(() => [{ amount: 120 }]), "the event at the others");
    }
    same(await ask(sockets[0], "leave", room), [{}], "the ack of a leave");
  },

  "a page may read what a request was refused for": async () => {
    const answer = await bounded(fetch(`${url}/socket.io/?EIO=4&transport=polling&sid=nope`), "an answer");
    same([answer.status, (await answer.json()).code], [400, 1], "the refusal");
  },

  "a page that goes away takes its connections with it": async () => {
    const watcher = await open({});
    const room = `browser:${Math.random()}`;
    const frame = document.createElement("iframe");
    frame.src = `/frame.html?server=${encodeURIComponent(url)}&room=${room}`;
    const joined = bounded(new Promise((resolve) => addEventListener("message", resolve, { once: true })), "the frame");
    document.body.append(frame);
    same((await joined).data, "joined", "the frame");
    same(await ask(watcher, "join", room), [{ rooms: { [room]: { members: 3 } } }], "members with the frame");
    frame.remove();
    const deadline = Date.now() + WAIT_MS;
    for (;;) {
      await ask(watcher, "leave", room);
      const [{ rooms }] = await ask(watcher, "join", room);
      // The polling connection of the frame is missed only when it does not answer a ping.
      if (rooms[room].members <= 1) break;
      if (Date.now() > deadline) fail(`still ${rooms[room].members} members`);
    }
  },
};

for (const [mode, options] of Object.entries(MODES))
  for (const [name, check] of Object.entries(forMode(options))) checks[`${mode}: ${name}`] = check;

const tell = (path, body) => fetch(path, { method: "POST", body: JSON.stringify(body) });

for (const [name, check] of Object.entries(checks)) {
  const error = await check().then(() => null, (error) => error.message);
  await tell("/report", { name, error });
  opened.splice(0).forEach((socket) => socket.disconnect());
}
await tell("/end", {});
