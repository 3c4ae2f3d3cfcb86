// The stock `socket.io-client` with `socket.io-msgpack-parser` against a server of Socket.IO, beside clients with the JSON parser and of
// the native protocol.
//
//   npm ci && node msgpack.mjs http://127.0.0.1:7070
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The server needs the
// settings of examples/socketio-compliance.toml, and a ping timeout of some seconds, since the stock client is busy at times.

import { setTimeout as delay } from "node:timers/promises";
import { address, afterwards, bounded, fail, run, same, show, until, WAIT_MS } from "./checks.mjs";

const [{ io }, parser, { default: WebSocket }] = await Promise.all([
  import("socket.io-client"),
  import("socket.io-msgpack-parser"),
  import("ws"),
]).catch(() => {
  console.error("the packages ws, socket.io-client and socket.io-msgpack-parser are missing: run `npm ci` in tests/foreign/node");
  process.exit(1);
});

const { url } = address("node msgpack.mjs http://HOST:PORT");
const MODES = {
  "default transports": {},
  "websocket only": { transports: ["websocket"] },
  "polling only": { transports: ["polling"] },
};
const SMILE = "\u{1f642}";

// Room names of their own for every run, so that two runs against one server do not meet.
let roomsNamed = 0;
const room = () => `msgpack:${process.pid}:${++roomsNamed}`;

// One socket of the stock client, and what came to it.
class Client {
  static async open(options = {}, namespace = "/") {
    const client = new Client({ parser, ...options }, namespace);
    await client.connected();
    return client;
  }

  // With the JSON parser.
  static async openJson(options = {}) {
    const client = new Client(options, "/");
    await client.connected();
    return client;
  }

  // On the connection of `other`, or on one of its own.
  constructor(options, namespace, other = null) {
    const own = { forceNew: true, reconnection: false, timeout: WAIT_MS, ...options };
    this.socket = other ? other.socket.io.socket(namespace, options) : io(`${url}${namespace}`, own);
    const how = this.socket.io.opts;
    this.name = `${how.parser ? "msgpack" : "json"} ${namespace} (${how.transports?.join() ?? "default"})`;
    this.inbox = [];
    this.socket.onAny((...event) => this.inbox.push(event));
    afterwards(() => this.socket.disconnect());
  }

  // What the library says of itself: connect, connect_error, disconnect.
  hears(name) {
    return bounded(new Promise((resolve) => this.socket.once(name, resolve)), `${this.name}: ${name}`);
  }

  // Joined the namespace, and the server has sent it the auth payload, which is answered.
  async connected() {
    if (!this.socket.connected) await this.hears("connect");
    const [name, auth] = await this.next();
    same(name, "auth", "the first event");
    return auth;
  }

  // The next event: its name and its arguments.
  next() {
    return until(`${this.name}: an event`, () => this.inbox.shift());
  }

  async takes(...event) {
    same(await this.next(), event, `${this.name}: the next event`);
  }

  // Sends a message, which comes back with these arguments.
  async echoes(args, expected = args) {
    this.socket.emit("message", ...args);
    await this.takes("message-back", ...expected);
  }

  // Sends an event and answers the arguments of its ack.
  ask(name, ...args) {
    const ack = new Promise((resolve) => this.socket.emit(name, ...args, (...answer) => resolve(answer)));
    return bounded(ack, `${this.name}: the ack of ${name}`);
  }

  // Joins a room, and answers how many members it had.
  async join(name) {
    const [answer] = await this.ask("join", name);
    return answer.rooms[name].members;
  }

  async publish(name, event, data, more = {}) {
    same(await this.ask("publish", { room: name, event, data, ...more }), [{}], `${this.name}: the ack of a publish`);
  }

  // All that was said before has been carried out, and nothing came that was not taken.
  async fence() {
    same(await this.ask("message-with-ack", "fence"), ["fence"], "the ack of the fence");
    same(this.inbox, [], `${this.name}: untaken events`);
  }
}

// A client of the native protocol, as far as it is needed here.
class Native {
  static async open() {
    const native = new Native();
    native.name = "native";
    native.inbox = [];
    native.socket = new WebSocket(`${url.replace("http", "ws")}/ws`, { handshakeTimeout: WAIT_MS });
    native.socket.on("message", (bytes, isBinary) => {
      const end = isBinary ? bytes.indexOf(0x0a) : bytes.length;
      const message = JSON.parse(bytes.subarray(0, end));
      if (isBinary) message.data = bytes.subarray(end + 1);
      native.inbox.push(message);
    });
    afterwards(() => native.socket.terminate());
    await bounded(new Promise((resolve, reject) => native.socket.on("open", resolve).on("error", reject)), "/ws");
    return native;
  }

  next() {
    return until("something comes over /ws", () => this.inbox.shift());
  }

  async takes(event, data) {
    const message = await this.next();
    same([message.event, message.data], [event, data], "the next event over /ws");
  }

  async join(name) {
    this.socket.send(JSON.stringify({ type: "join", rooms: [name], id: 1 }));
    return (await this.next()).rooms[name].members;
  }

  async publish(name, event, data) {
    const message = { type: "publish", room: name, event, id: 1 };
    if (Buffer.isBuffer(data)) this.socket.send(Buffer.concat([Buffer.from(`${JSON.stringify(message)}\n`), data]));
    else this.socket.send(JSON.stringify({ ...message, data }));
    same(await this.next(), { type: "ack", id: 1 }, "the ack over /ws");
  }

  async fence() {
    this.socket.send(`{"type":"ping","id":2}`);
    same(await this.next(), { type: "pong", id: 2 }, "what comes next over /ws");
  }
}

const each = (clients, act) => Promise.all(clients.map(act));

// Clients of every kind, over every transport.
function crowd() {
  const modes = Object.values(MODES);
  return Promise.all([
    Native.open(),
    ...modes.map((options) => Client.open(options)),
    ...modes.map((options) => Client.openJson(options)),
    Client.open(),
    Native.open(),
  ]);
}

// What is the same behind the parser as before it.
const values = [
  0,
  -1,
  127,
  -129,
  65536,
  -2147483649,
  2 ** 53,
  1.5,
  -0.1,
  1e-7,
  true,
  null,
  "",
  `é漢${SMILE} "quoted" \\ \u0000 \u2028`,
  "x".repeat(70_000),
  [],
  {},
  Array.from({ length: 70_000 }, (_, index) => index % 300),
  Object.fromEntries(Array.from({ length: 20 }, (_, index) => [`key ${index}`, [index, { index }]])),
  [1, [2, [3, { four: [5] }]]],
  { _placeholder: true, num: 0 },
];

// What holds for each way to connect.
const forMode = (options) => ({
  "connects, and the auth payload arrives": async () => {
    for (const [auth, expected] of [
      [undefined, {}],
      [{ token: "123", list: [1, { é: SMILE }] }, { token: "123", list: [1, { é: SMILE }] }],
    ]) {
      const client = new Client({ ...options, parser, auth }, "/");
      same(await client.connected(), expected, "auth payload");
      if (!/^[A-Za-z0-9_-]{20}$/.test(client.socket.id)) fail(`socket id ${client.socket.id}`);
      await client.fence();
    }
  },

  "events and acks come back with their arguments": async () => {
    const client = await Client.open(options);
    await client.echoes([]);
    for (const value of values) await client.echoes([value]);
    await client.echoes(values);
    same(await client.ask("message-with-ack"), [], "an ack of nothing");
    same(await client.ask("message-with-ack", ...values), values, "the ack");
    const answers = await each([...Array(200).keys()], (index) => client.ask("message-with-ack", index));
    same(answers, [...Array(200).keys()].map((index) => [index]), "the acks");
  },

  "what only JavaScript knows comes back as JSON has it": async () => {
    const client = await Client.open(options);
    const date = new Date(1_700_000_000_123);
    await client.echoes([undefined, date], [null, "2023-11-14T22:13:20.123Z"]);
    await client.echoes([{ no: undefined, yes: [undefined], date }], [{ yes: [null], date: date.toJSON() }]);
    await client.echoes([NaN, -Infinity, -0], [null, null, 0]);
  },

  "bytes come back in events and acks": async () => {
    const client = await Client.open(options);
    const every = Buffer.from(Array.from({ length: 1024 }, (_, index) => index % 256));
    await client.echoes([every]);
    await client.echoes(["before", { deep: [every, { deeper: Buffer.from([4]) }] }, Buffer.alloc(0), "after"]);
    await client.echoes(Array.from({ length: 10 }, (_, index) => Buffer.alloc(index + 1, index)));
    await client.echoes([new Uint8Array([1, 2]), new Uint8Array([3]).buffer], [Buffer.from([1, 2]), Buffer.from([3])]);
    same(await client.ask("message-with-ack", every, 1, Buffer.from("x")), [every, 1, Buffer.from("x")], "the ack");
    await client.fence();
  },

  "everything that the server says is one binary message": async () => {
    const client = await Client.open(options);
    const said = [];
    client.socket.io.engine.on("packet", ({ type, data }) => type === "message" && said.push(typeof data));
    const other = new Client({}, "/custom", client);
    await other.connected();
    await client.echoes(["text"]);
    await client.echoes([Buffer.from("bytes"), Buffer.from("more")]);
    await client.ask("join", "");
    same(said, ["object", "object", "object", "object", "object"], "kinds of messages");
  },

  "namespaces share a connection and nothing else": async () => {
    const main = await Client.open(options);
    const custom = new Client({ auth: { in: "custom" } }, "/custom", main);
    same(await custom.connected(), { in: "custom" }, "auth payload of /custom");
    const nope = new Client({}, "/nope", main);
    same((await nope.hears("connect_error")).message, "Invalid namespace", "the error for /nope");
    await each([main, custom], async (client) => {
      await client.echoes([client.name, Buffer.from(client.name)]);
      await client.fence();
    });
    custom.socket.disconnect();
    await main.echoes(["still here"]);
    custom.socket.connect();
    await custom.connected();
    await each([main, custom], (client) => client.fence());
  },

  "what cannot be carried out is said in the ack, or else in an event": async () => {
    const client = await Client.open(options);
    const [answer] = await client.ask("join", "x".repeat(201));
    same([answer.error?.code, typeof answer.error?.message], ["bad_room", "string"], "the ack");
    client.socket.emit("join", {});
    const [name, error] = await client.next();
    same([name, error.code, typeof error.message], ["error", "bad_message", "string"], "the event");
  },

  "who is silent stays connected": async () => {
    const client = await Client.open(options);
    const { id } = client.socket;
    await delay(1000); // several pings
    same(client.socket.id, id, "socket id");
    await client.fence();
  },
});

// What goes on between clients, whatever they speak.
const between = {
  "an event reaches every other member once, whoever publishes it": async () => {
    const clients = await crowd();
    const name = room();
    for (const [before, client] of clients.entries()) same(await client.join(name), before, "members");
    for (const sender of clients)
      for (const value of [{ from: sender.name, half: 0.5 }, null, `é${SMILE}`, [1, [2]], -7]) {
        await sender.publish(name, "news", value);
        await each(clients, (client) => client === sender || client.takes("news", value));
      }
    await each(clients, (client) => client.fence());
  },

  "so do bytes": async () => {
    const clients = await crowd();
    const name = room();
    await each(clients, (client) => client.join(name));
    for (const sender of clients)
      for (const bytes of [Buffer.from([0, 255, 10, 34]), Buffer.alloc(100_000, 0xab), Buffer.alloc(0)]) {
        await sender.publish(name, "bytes", bytes);
        await each(clients, (client) => client === sender || client.takes("bytes", bytes));
      }
    await each(clients, (client) => client.fence());
  },

  "a sender gets its own event when it asks for that, and who has left gets none": async () => {
    const clients = (await crowd()).filter((client) => client instanceof Client);
    const name = room();
    await each(clients, (client) => client.join(name));
    await clients[0].publish(name, "for all", { n: 1 }, { echo: true });
    await each(clients, (client) => client.takes("for all", { n: 1 }));
    same(await clients[0].ask("leave", name), [{}], "the ack of a leave");
    await clients[1].publish(name, "for others", 2);
    await each(clients.slice(2), (client) => client.takes("for others", 2));
    await each(clients, (client) => client.fence());
  },

  "a date and what is undefined reach others as JSON has them": async () => {
    const [sender, ...members] = [await Client.open(), await Client.open(), await Client.openJson(), await Native.open()];
    const name = room();
    await each(members, (client) => client.join(name));
    await sender.publish(name, "e", { at: new Date(0), no: undefined, list: [undefined] });
    const expected = { at: "1970-01-01T00:00:00.000Z", list: [null] };
    await each(members, (client) => client.takes("e", expected));
  },

  "half a surrogate pair becomes a replacement character": async () => {
    const [sender, member] = [await Client.openJson(), await Client.open()];
    const name = room();
    await member.join(name);
    await sender.publish(name, "e", `cut ${SMILE[0]}`);
    await member.takes("e", "cut \u{fffd}");
  },

  "events of several publishers come in one order to all members": async () => {
    const clients = await crowd();
    const [name, count] = [room(), 100];
    await each(clients, (client) => client.join(name));
    const publishers = [clients[1], clients[2], clients[4]];
    const outsider = await Client.open();
    await outsider.join(name);
    await each(publishers, async (client, origin) => {
      for (let n = 0; n < count; n++) await client.publish(name, "n", [origin, n]);
    });
    const order = [];
    while (order.length < publishers.length * count) order.push((await outsider.next())[1]);
    await each(clients, async (client) => {
      const own = publishers.indexOf(client);
      for (const data of order) if (data[0] !== own) await client.takes("n", data);
    });
    await each(clients, (client) => client.fence());
  },

  "events that a client is sent while it upgrades come once each, in order": async () => {
    const sender = await Client.open({ transports: ["websocket"] });
    // At times it has upgraded before it has connected.
    for (let round = 0; round < 10; round++) {
      const [name, client] = [room(), new Client({ parser }, "/")];
      const { engine } = client.socket.io;
      const upgrade = bounded(new Promise((resolve) => engine.once("upgrade", resolve)), "upgrade");
      await client.connected();
      await client.join(name);
      for (let n = 0; n < 200; n++) {
        sender.socket.emit("publish", { room: name, event: "n", data: n % 2 ? n : Buffer.from([n]) });
        if (n % 10 === round) await delay(1);
      }
      for (let n = 0; n < 200; n++) await client.takes("n", n % 2 ? n : Buffer.from([n]));
      await upgrade;
      await client.fence();
    }
  },

  "a large event passes, one that is too large as text costs the connection": async () => {
    for (const options of Object.values(MODES)) {
      const client = await Client.open(options);
      await client.echoes(["0123456789".repeat(70_000)]);
      await client.echoes([Buffer.alloc(700_000, 0xab)]);
      const gone = client.hears("disconnect");
      client.socket.emit("message", "\u0000".repeat(200_000));
      await gone;
    }
  },
};

// What the packets are, byte by byte.
const hex = (text) => Buffer.from(text.replaceAll(" ", ""), "hex");
const CONNECT = hex("83 a47479706500 a464617461d40000 a36e7370a12f");
const MESSAGE = hex("83 a47479706502 a46461746192a76d65737361676501 a36e7370a12f");

// A WebSocket session whose packets are ours. Pings are answered.
class Raw {
  static async open() {
    const raw = new Raw();
    raw.inbox = [];
    raw.socket = new WebSocket(`${url.replace("http", "ws")}/socket.io/?EIO=4&transport=websocket`);
    raw.socket.on("message", (bytes, isBinary) => {
      if (!isBinary && String(bytes) === "2") raw.socket.send("3");
      else raw.inbox.push(isBinary ? bytes : String(bytes));
    });
    raw.closed = new Promise((resolve) => raw.socket.on("close", resolve));
    afterwards(() => raw.socket.terminate());
    const open = await raw.next();
    if (!open.startsWith?.("0{")) fail(`the handshake is ${show(open)}`);
    return raw;
  }

  next() {
    return until("something comes", () => this.inbox.shift());
  }
}

const bytewise = {
  "packets are those of notepack": async () => {
    const raw = await Raw.open();
    raw.socket.send(CONNECT);
    const connected = await raw.next();
    same(connected.length, 44, "bytes of a CONNECT");
    same(connected.subarray(0, 18), hex("83 a47479706500 a464617461 81a3736964b4"), "what is before the id");
    same(connected.subarray(38), hex("a36e7370a12f"), "what is behind it");
    same(await raw.next(), hex("83 a47479706502 a46461746192a46175746880 a36e7370a12f"), "the event auth");
    raw.socket.send(MESSAGE);
    same(await raw.next(), hex("83 a47479706502 a46461746192ac6d6573736167652d6261636b01 a36e7370a12f"), "the answer");
  },

  "one session has one parser": async () => {
    for (const [what, ...packets] of [
      ["text behind msgpack", CONNECT, "40/custom,"],
      ["msgpack behind text", "40", MESSAGE],
      ["msgpack behind a refusal in text", "40/nope,", CONNECT],
      ["msgpack instead of an attachment", "40", '451-["message",{"_placeholder":true,"num":0}]', Buffer.from("x"), CONNECT],
      ["a second CONNECT", CONNECT, CONNECT],
    ]) {
      const raw = await Raw.open();
      packets.forEach((packet) => raw.socket.send(packet));
      same(await bounded(raw.closed, what), 1002, `close code of ${what}`);
    }
  },

  "what is no packet ends the session": async () => {
    const malformed = ["", "c1", "90", "00", "83a474797065", "83a47479706505a36e7370a12f", "82a47479706500a36e7370a16e"];
    for (const packet of [...malformed.map(hex), CONNECT.subarray(1), Buffer.concat([CONNECT, hex("c0")]), MESSAGE]) {
      const raw = await Raw.open();
      raw.socket.send(packet);
      same(await bounded(raw.closed, show(packet)), 1002, `close code of ${show(packet)}`);
    }
    const raw = await Raw.open();
    raw.socket.send(CONNECT);
    const deep = Buffer.concat([MESSAGE.subarray(0, -7), Buffer.alloc(900_000, 0x91), hex("c0a36e7370a12f")]);
    raw.socket.send(deep);
    same(await bounded(raw.closed, "a deep packet"), 1002, "close code of a deep packet");
  },

  "one session over polling has one parser, too": async () => {
    const address = `${url}/socket.io/?EIO=4&transport=polling`;
    const binary = (packet) => `b${packet.toString("base64")}`;
    for (const [first, second] of [
      [binary(CONNECT), "40/custom,"],
      ["40", binary(MESSAGE)],
    ]) {
      const handshake = await (await fetch(address)).text();
      const session = `${address}&sid=${JSON.parse(handshake.slice(1)).sid}`;
      const post = (body) => fetch(session, { method: "POST", body });
      same((await post(first)).status, 200, `status of ${first}`);
      const said = (await (await fetch(session)).text()).split("\x1e");
      same(said.map((packet) => packet[0] === "b"), said.map(() => first[0] === "b"), "binary packets");
      await post(second);
      const after = await fetch(session);
      same([after.status, (await after.json()).code], [400, 1], `the session after ${second}`);
    }
  },
};

const modes = Object.entries(MODES).flatMap(([mode, options]) =>
  Object.entries(forMode(options)).map(([name, check]) => [`${mode}: ${name}`, check]),
);
run({ ...Object.fromEntries(modes), ...between, ...bytewise });
