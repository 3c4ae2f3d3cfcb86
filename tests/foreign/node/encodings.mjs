// Namespaces with an encoding (docs/routes.md) as the stock `socket.io-client` sees them, with both parsers and all transports, after a
// drop, and beside Node's emitter on the same Redis.
//
//   npm ci && node encodings.mjs http://127.0.0.1:7070 --redis=redis://127.0.0.1:6379
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The server needs the
// namespaces and rules of tests/it/encodings.rs, a ping timeout and `socketio.recovery_ms` of some seconds, and `redis.cluster = "socketio"`.

import { address, afterwards, bounded, run, same, until, WAIT_MS } from "./checks.mjs";

const packages = ["socket.io-client", "socket.io-msgpack-parser", "notepack.io", "@socket.io/redis-emitter", "redis"];
const [{ io }, parser, notepack, { Emitter }, { createClient }] = await Promise.all(packages.map((name) => import(name))).catch(() => {
  console.error(`one of the packages ${packages.join(", ")} is missing: run \`npm ci\` in tests/foreign/node`);
  process.exit(1);
});

const { url, flags } = address("node encodings.mjs http://HOST:PORT --redis=redis://HOST:PORT");
const redis = flags.find((flag) => flag.startsWith("--redis="))?.slice("--redis=".length);
const { encode, decode } = notepack.default ?? notepack;

// No MessagePack begins with this byte.
const BYTES = Buffer.from([0xc1, 0, 255]);
const ENCODINGS = {
  "base64": {
    namespace: "/guild/7",
    encode: (value) => (Buffer.isBuffer(value) ? value : Buffer.from(JSON.stringify(value), "utf-8").toString("base64")),
    decode: (value) => (typeof value === "string" ? JSON.parse(Buffer.from(value, "base64").toString("utf-8")) : value),
  },
  "msgpack": {
    namespace: "/packed",
    encode: (value) => (Buffer.isBuffer(value) ? value : encode(value)),
    decode: (value) => (Buffer.isBuffer(value) && value[0] !== 0xc1 ? decode(value) : value),
  },
};
const MODES = {
  "default transports": {},
  "websocket only": { transports: ["websocket"] },
  "polling only": { transports: ["polling"] },
  "the msgpack parser": { parser },
};
const TRACK = { name: "Blue é \u{1f642}", position: 1.5, tags: [null, true, { deep: [] }], at: -7 };

let roomsNamed = 0;
const room = () => `encodings:${process.pid}:${++roomsNamed}`;

// One socket of the stock client that encodes what it says and decodes what it hears, and what came to it.
class Client {
  static async open(encoding, options = {}) {
    const client = new Client(encoding, options);
    await client.hears("connect");
    return client;
  }

  constructor({ namespace, encode, decode }, options) {
    this.encode = encode;
    this.decode = decode;
    this.socket = io(`${url}${namespace}`, { forceNew: true, timeout: WAIT_MS, reconnectionDelay: 300, ...options });
    this.inbox = [];
    this.raw = [];
    this.socket.onAny((name, ...args) => {
      // Where a client can come back, the offset stands behind the arguments: it is no argument.
      const values = args.slice(0, -1);
      this.raw.push(values);
      this.inbox.push([name, ...values.map(decode)]);
    });
    afterwards(() => this.socket.disconnect());
  }

  hears(name) {
    return bounded(new Promise((resolve) => this.socket.once(name, resolve)), name);
  }

  say(name, ...args) {
    this.socket.emit(name, ...args.map(this.encode));
  }

  // What the event is acknowledged with.
  ask(name, ...args) {
    const ack = new Promise((resolve) => this.socket.emit(name, ...args.map(this.encode), (...args) => resolve(args)));
    return bounded(ack, `the ack of ${name}`).then((args) => args.map(this.decode));
  }

  async takes(...event) {
    same(await until("an event", () => this.inbox.shift()), event, "the next event");
  }
}

const checks = {};
for (const [name, encoding] of Object.entries(ENCODINGS)) {
  for (const [mode, options] of Object.entries(MODES)) {
    const check = (what, act) => (checks[`${name}, ${mode}: ${what}`] = act);
    check("arguments come back as they were", async () => {
      const client = await Client.open(encoding, options);
      client.say("echo", TRACK, "text", 0, null, []);
      await client.takes("echoed", TRACK, "text", 0, null, []);
      const isEncoded = (value) => (name === "base64" ? typeof value === "string" : Buffer.isBuffer(value));
      same(client.raw[0].every(isEncoded), true, "all of them are encoded");
      same(await client.ask("same", TRACK, 1), [TRACK, 1], "the ack");
      same(await client.ask("same"), [], "the ack of nothing");
      client.say("echo", BYTES, 1);
      await client.takes("echoed", BYTES, 1);
    });
    check("rooms, questions and errors", async () => {
      const [one, other] = [await Client.open(encoding, options), await Client.open(encoding, options)];
      const lobby = room();
      same(await one.ask("join", lobby), [{ rooms: { [lobby]: { members: 0 } } }], "the ack of a join");
      await other.ask("join", { room: lobby });
      other.socket.on("question", (value, ...rest) => rest.at(-1)(other.encode({ saw: other.decode(value) })));
      const answer = await one.ask("publish", { room: lobby, event: "question", data: TRACK, ask_ms: 5000 });
      same(answer, [{ answers: [{ saw: TRACK }], missing: 0 }], "the answers");
      await one.ask("publish", { room: lobby, event: "track", data: [TRACK] });
      await until("the track", () => other.inbox.some(([event]) => event === "track"));
      same(other.inbox.at(-1), ["track", [TRACK]], "the event");
      const [{ error }] = await one.ask("publish", { room: lobby });
      same(error.code, "bad_message", "the error");
    });
  }
  checks[`${name}: a client that has dropped out gets what it has missed`] = async () => {
    const [one, other] = [await Client.open(encoding), await Client.open(encoding)];
    const lobby = room();
    await one.ask("join", lobby);
    await other.ask("publish", { room: lobby, event: "track", data: { n: 0 } });
    await one.takes("track", { n: 0 });
    const gone = one.hears("disconnect");
    const back = one.hears("connect");
    one.socket.io.engine.close();
    await gone;
    for (const n of [1, 2]) await other.ask("publish", { room: lobby, event: "track", data: { n } });
    await back;
    same(one.socket.recovered, true, "it is recovered");
    await one.takes("track", { n: 1 });
    await one.takes("track", { n: 2 });
  };
  checks[`${name}: what is not encoded is taken as it is`] = async () => {
    const client = await Client.open(encoding);
    client.socket.emit("echo", { plain: 1 }, "a room");
    await client.takes("echoed", { plain: 1 }, "a room");
  };
  checks[`${name}: Node's emitter says it as JSON`] = async () => {
    const client = await Client.open(encoding);
    const lobby = room();
    await client.ask("join", lobby);
    const connection = createClient({ url: redis });
    await connection.connect();
    afterwards(() => connection.disconnect());
    const emitter = new Emitter(connection).of(encoding.namespace);
    await until("what the emitter says", async () => {
      emitter.to(lobby).emit("track", TRACK, 1);
      await bounded(new Promise((resolve) => setTimeout(resolve, 50)), "a while");
      return client.inbox.length > 0;
    });
    same(client.inbox[0], ["track", TRACK, 1], "the event");
    emitter.to(lobby).emit("bytes", BYTES, { x: 1 });
    await until("the bytes", () => client.inbox.some(([event]) => event === "bytes"));
    same(client.inbox.at(-1), ["bytes", BYTES, { x: 1 }], "bytes and more");
  };
}
run(checks);
