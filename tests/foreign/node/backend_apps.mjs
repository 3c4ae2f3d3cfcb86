// Applications whose whole server side is a small backend behind throng, seen by the stock `socket.io-client`: those of
// examples/backend.
//
//   npm ci && node backend_apps.mjs http://127.0.0.1:7070 echo|chat PORT COMMAND [ARGUMENT...]
//
// throng has the settings of throng.toml in the application's folder, with `backend.url` at PORT of 127.0.0.1, `backend.timeout_ms` of
// 1,000 for `echo`, `backend.failures_max` of 3, `backend.rest_ms` of 100 and a ping timeout of some seconds. COMMAND starts the backend; it is started here, and stopped, killed
// and replaced by servers that answer nonsense. Prints one line per check and the count; the exit status is 1 when a check failed or
// 120 s were not enough.

import { spawn } from "node:child_process";
import { createServer } from "node:http";
import { connect, createServer as createTcpServer } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { address, afterwards, bounded, fail, run, same, until, WAIT_MS } from "./checks.mjs";

const [{ io }, parser] = await Promise.all([import("socket.io-client"), import("socket.io-msgpack-parser")]).catch(() => {
  console.error("the packages socket.io-client and socket.io-msgpack-parser are missing: run `npm ci` in tests/foreign/node");
  process.exit(1);
});

const { url, flags: [app, port, command, ...args] } = address("node backend_apps.mjs http://HOST:PORT echo|chat PORT COMMAND");
const MODES = {
  "default transports": {},
  "websocket only": { transports: ["websocket"] },
  "polling only": { transports: ["polling"] },
  "msgpack": { parser },
};
const BYTES = Buffer.from([0, 1, 2, 254, 255]);

// The backend, as a process of its own.
const backend = {
  process: null,
  async start() {
    this.process = null;
    await until("the backend listens", async () => {
      // Its port is one that others are given as well: while it was away, somebody may have had it for a connection.
      if (this.process === null || this.process.exitCode !== null) {
        this.process = spawn(command, args, { stdio: ["ignore", "inherit", "inherit"] });
      }
      return (await reachable()) && this.process.exitCode === null;
    });
  },
  async kill() {
    const gone = new Promise((resolve) => this.process.once("exit", resolve));
    this.process.kill("SIGKILL");
    await bounded(gone, "the end of the backend");
  },
};
process.on("exit", () => backend.process?.kill("SIGKILL"));

function reachable() {
  return new Promise((resolve) => {
    const socket = connect(Number(port), "127.0.0.1", () => resolve(true) ?? socket.destroy());
    socket.on("error", () => resolve(false));
  });
}

// One socket of the stock client, and what came to it.
class Client {
  // A backend that is slow for a moment, on a busy machine, has it refused: it asks again.
  static async open(options = {}, namespace = "/") {
    const client = new Client(options, namespace);
    client.socket.on("connect_error", ({ data }) => {
      if (data?.code === "backend_failed") client.socket.connect();
    });
    await client.hears("connect");
    return client;
  }

  constructor(options, namespace = "/") {
    const own = { forceNew: true, reconnectionDelay: 20, reconnectionDelayMax: 100, timeout: WAIT_MS, ...options };
    this.socket = io(`${url}${namespace}`, own);
    this.inbox = [];
    this.socket.onAny((...event) => this.inbox.push(event));
    afterwards(() => this.socket.disconnect());
  }

  hears(name) {
    return bounded(new Promise((resolve) => this.socket.once(name, (...args) => resolve(args))), name);
  }

  async takes(...event) {
    await until(`${event[0]} comes`, () => this.inbox.length > 0);
    same(this.inbox.shift(), event, "the next event");
  }

  // What an ack says: one value, or a list of several.
  ask(...event) {
    return bounded(new Promise((resolve) => this.socket.emit(...event, (...args) => resolve(args))), `ack of ${event[0]}`);
  }

  // An event is answered with this error, soon, and the client stays.
  async isRefused(code) {
    const [answer] = await this.ask("message-with-ack", "anybody there?");
    same(answer.error?.code, code, "the code of the error");
    if (!this.socket.connected) fail("the client was disconnected");
  }

  // The application answers again.
  isWellAgain() {
    return until("the backend is asked again", async () => {
      const [answer] = await this.ask("message-with-ack", "well");
      return answer === "well";
    });
  }
}

const checks = {};
const inEachMode = (title, check) => {
  for (const [mode, options] of Object.entries(MODES)) checks[`${title} (${mode})`] = () => check(options);
};

function echo() {
  inEachMode("who comes in is told what it said for itself", async (options) => {
    const client = await Client.open({ ...options, auth: { token: "1", list: [1, null] }, query: { name: "anna b" } });
    await client.takes("auth", { token: "1", list: [1, null] }, "anna b");
  });

  inEachMode("arguments of all kinds come back", async (options) => {
    const client = await Client.open(options);
    await client.takes("auth", {}, null);
    const values = [1, "é\u{1f642}", true, null, 1.5, { a: [{ b: {} }] }, []];
    client.socket.emit("message", ...values);
    await client.takes("message-back", ...values);
    client.socket.emit("message");
    await client.takes("message-back");
    client.socket.emit("message", BYTES);
    await client.takes("message-back", BYTES);
    client.socket.emit("message", { deep: [BYTES, "x", Buffer.from("two")] }, 7);
    await client.takes("message-back", { deep: [BYTES, "x", Buffer.from("two")] }, 7);
  });

  inEachMode("acks have values, binary ones too", async (options) => {
    const client = await Client.open(options);
    same(await client.ask("message-with-ack", 1, "2", { 3: [false] }), [1, "2", { 3: [false] }], "ack");
    same(await client.ask("message-with-ack"), [], "an empty ack");
    same(await client.ask("message-with-ack", BYTES, { x: BYTES }), [BYTES, { x: BYTES }], "a binary ack");
    same(await client.ask("nonsense"), [{ error: "there is no event nonsense" }], "an application's own error");
  });

  inEachMode("a namespace is joined, or refused with message and data", async (options) => {
    const custom = await Client.open({ ...options, auth: { a: 1 } }, "/custom");
    await custom.takes("auth", { a: 1 }, null);
    same(await custom.ask("message-with-ack", 5), [5], "ack");
    const [error] = await new Client(options, "/nope").hears("connect_error");
    same([error.message, error.data], ["not here", { namespace: "/nope" }], "why not");
  });

  inEachMode("clients meet in rooms that the backend has put them into", async (options) => {
    const [anna, ben] = [await Client.open(options), await Client.open(options)];
    await anna.takes("auth", {}, null);
    await ben.takes("auth", {}, null);
    same(await anna.ask("join", ["a", "b"]), ["ok"], "ack");
    await anna.takes("joined", anna.socket.id);
    same(await ben.ask("join", ["a"]), ["ok"], "ack");
    // The event comes before the ack of what made it, also to who has just joined.
    same(ben.inbox, [["joined", ben.socket.id]], "what came before the ack");
    ben.inbox = [];
    await anna.takes("joined", ben.socket.id);
    same(await ben.ask("say", "a", "hello", BYTES), ["ok"], "ack");
    await anna.takes("said", "hello", BYTES);
    same(await ben.ask("say", "b", 1), ["ok"], "who is not in a room may be heard there");
    await anna.takes("said", 1);
    same(await anna.ask("leave", ["a", "b"]), ["ok"], "ack");
    same(await ben.ask("say", "a", "anybody?"), ["ok"], "ack");
    same(await anna.ask("message-with-ack"), [], "a fence");
    same([anna.inbox, ben.inbox], [[], []], "nobody is there");
  });

  inEachMode("the backend hears who leaves, and why", async (options) => {
    const [watcher, ben] = [await Client.open(options), await Client.open(options)];
    await watcher.takes("auth", {}, null);
    await watcher.ask("join", ["watchers"]);
    await watcher.takes("joined", watcher.socket.id);
    const { id } = ben.socket;
    ben.socket.emit("message", "the last");
    ben.socket.disconnect();
    await watcher.takes("left", id, "client namespace disconnect");
    const chris = await Client.open({ ...options, reconnection: false });
    const { id: other } = chris.socket;
    chris.socket.io.engine.close();
    await watcher.takes("left", other, "transport close");
  });

  inEachMode("the backend sends clients away", async (options) => {
    const client = await Client.open({ ...options, reconnection: false });
    const gone = client.hears("disconnect");
    same(await client.ask("bye"), ["bye"], "the ack comes first");
    same((await gone)[0], "io server disconnect", "why");
    const other = await Client.open({ ...options, reconnection: false });
    const closed = other.hears("disconnect");
    other.socket.emit("close");
    // Over polling the library may hear of the end of its transport before it has looked at the packet that says why.
    const [why] = await closed;
    if (!["io server disconnect", "transport close", "transport error"].includes(why)) fail(`it was disconnected with ${why}`);
  });

  inEachMode("what one client sends is answered in order", async (options) => {
    const client = await Client.open(options);
    await client.takes("auth", {}, null);
    const acks = [];
    for (let number = 0; number < 60; number++) {
      if (number % 3 === 2) client.socket.emit("message-with-ack", number, () => acks.push(client.inbox.length));
      else client.socket.emit("message", number);
    }
    await until("all is answered", () => client.inbox.length === 40 && acks.length === 20);
    const expected = [...Array(60).keys()].filter((number) => number % 3 !== 2);
    same(client.inbox.map(([, number]) => number), expected, "events");
    same(acks, [...Array(20).keys()].map((number) => 2 * number + 2), "events that came before each ack");
  });

  checks["too much at once is refused, and nothing hangs"] = async () => {
    const client = await Client.open({ transports: ["websocket"] });
    backend.process.kill("SIGSTOP");
    const answers = await Promise.all([...Array(100)].map((_, number) => client.ask("message-with-ack", number)));
    backend.process.kill("SIGCONT");
    const codes = answers.map(([answer]) => answer.error?.code);
    // 64 may wait.
    same(codes.filter((code) => code === "overloaded").length, 36, "those that were refused at once");
    same(new Set(codes), new Set(["backend_failed", "overloaded"]), "all codes");
    await client.isWellAgain();
  };

  checks["a backend that is stopped makes acks errors, and is asked again when it goes on"] = async () => {
    const client = await Client.open();
    backend.process.kill("SIGSTOP");
    await client.isRefused("backend_failed");
    const [error] = await new Client({ reconnection: false }).hears("connect_error");
    same([error.message, error.data], ["the backend did not answer", { code: "backend_failed" }], "why nobody comes in");
    backend.process.kill("SIGCONT");
    await client.isWellAgain();
  };

  checks["a backend that is killed makes acks errors, and is asked again when it is back"] = async () => {
    const client = await Client.open();
    await backend.kill();
    await client.isRefused("backend_failed");
    await client.isRefused("backend_failed");
    await backend.start();
    await client.isWellAgain();
    await Client.open();
  };

  const garbage = {
    "answers 500": (_, response) => response.writeHead(500).end("{}"),
    "redirects": (_, response) => response.writeHead(302, { location: "http://127.0.0.1:1/" }).end(),
    "answers HTML": (_, response) => response.end("<html><body>It works!</body></html>"),
    "answers with an unknown field": (_, response) => response.end('{"acks":[1]}'),
    "answers half an object": (_, response) => response.end('{"ack":[1'),
    "answers 10 MB": (_, response) => response.end(`{"ack":["${"x".repeat(10_000_000)}"]}`),
    "answers drop by drop": (_, response) => {
      const timer = setInterval(() => response.write(" "), 20);
      response.on("close", () => clearInterval(timer));
    },
    "hangs up": (request) => request.socket.destroy(),
    "says what is no HTTP": (request) => request.socket.end("\x00\xffnonsense\r\n\r\n"),
  };
  checks["a backend that talks nonsense makes acks errors, and harms nobody"] = async () => {
    const client = await Client.open();
    await backend.kill();
    for (const [what, answer] of Object.entries(garbage)) {
      const server = createServer(answer);
      await new Promise((resolve) => server.listen(Number(port), "127.0.0.1", resolve));
      try {
        await client.isRefused("backend_failed");
        await client.isRefused("backend_failed");
      } catch (error) {
        fail(`${what}: ${error.message}`);
      } finally {
        server.closeAllConnections();
        await new Promise((resolve) => server.close(resolve));
      }
    }
    const open = [];
    const silent = createTcpServer((socket) => open.push(socket.on("error", () => {})));
    await new Promise((resolve) => silent.listen(Number(port), "127.0.0.1", resolve));
    await client.isRefused("backend_failed");
    open.forEach((socket) => socket.destroy());
    await new Promise((resolve) => silent.close(resolve));
    await backend.start();
    await client.isWellAgain();
  };
}

// As the page of the tutorial does it.
class Chatter {
  constructor(options = {}, serverOffset = 0) {
    const own = { forceNew: true, auth: { serverOffset }, ackTimeout: 1000, retries: 10, reconnectionDelay: 20, ...options };
    this.socket = io(url, own);
    this.said = [];
    this.counter = 0;
    this.socket.on("chat message", (text, offset) => {
      this.said.push(text);
      this.socket.auth.serverOffset = offset;
    });
    afterwards(() => this.socket.disconnect());
  }

  say(text) {
    const clientOffset = `${this.socket.id}-${this.counter++}`;
    const acked = new Promise((resolve) => this.socket.emit("chat message", text, clientOffset, resolve));
    return bounded(acked, `the ack of ${text}`, 20_000);
  }

  hears(...texts) {
    return until(`${texts} was said`, () => this.said.length >= texts.length).then(() => same(this.said, texts, "what was said"));
  }

}

function chat() {
  // All that was said. Who waits for that has been told what it missed, and hears from then on what is said, once.
  const all = [];
  checks["the first says something"] = async () => {
    const first = new Chatter();
    await first.say("first");
    all.push("first");
    await first.hears(...all);
  };

  inEachMode("what one says all hear, and who comes later hears it too", async (options) => {
    const [anna, ben] = [new Chatter(options), new Chatter(options)];
    await anna.hears(...all);
    await ben.hears(...all);
    for (const text of ["hello", "how are you?"]) {
      await anna.say(text);
      all.push(text);
    }
    await ben.say("fine");
    all.push("fine");
    await anna.hears(...all);
    await ben.hears(...all);
    const late = new Chatter(options);
    await late.hears(...all);
    const knowing = new Chatter(options, all.length - 1);
    await knowing.hears("fine");
  });

  inEachMode("who was away hears what was said meanwhile, and nothing twice", async (options) => {
    const [anna, ben] = [new Chatter(options), new Chatter(options)];
    await anna.hears(...all);
    await ben.hears(...all);
    ben.socket.disconnect();
    await anna.say("are you there?");
    all.push("are you there?");
    ben.socket.connect();
    await ben.hears(...all);
  });

  checks["the same message comes again and is said once"] = async () => {
    const anna = new Chatter();
    await anna.hears(...all);
    for (let time = 0; time < 3; time++) {
      await bounded(new Promise((resolve) => anna.socket.emit("chat message", "once", "the same offset", resolve)), "ack");
    }
    all.push("once");
    await anna.hears(...all);
  };

  checks["what is said while the backend is away is said once it is back"] = async () => {
    const [anna, ben] = [new Chatter(), new Chatter({ transports: ["polling"] })];
    await anna.hears(...all);
    await ben.hears(...all);
    await backend.kill();
    const saying = anna.say("while it was away");
    await delay(1500);
    await backend.start();
    await saying;
    all.push("while it was away");
    await anna.hears(...all);
    await ben.hears(...all);
    await new Chatter().hears(...all);
  };

  checks["what is said while the backend is stopped is said once when it goes on"] = async () => {
    const [anna, ben] = [new Chatter(), new Chatter()];
    await anna.hears(...all);
    await ben.hears(...all);
    backend.process.kill("SIGSTOP");
    const saying = anna.say("while it slept");
    // Meanwhile it is sent again.
    await delay(1500);
    backend.process.kill("SIGCONT");
    await saying;
    all.push("while it slept");
    await anna.hears(...all);
    await ben.hears(...all);
    await new Chatter().hears(...all);
  };

  checks["many say something at once, and all hear the same"] = async () => {
    const chatters = [...Array(10)].map((_, number) => new Chatter(number % 2 ? { transports: ["websocket"] } : {}));
    await Promise.all(chatters.map((chatter) => chatter.hears(...all)));
    await Promise.all(chatters.flatMap((chatter, number) => [0, 1, 2].map((time) => chatter.say(`${number}: ${time}`))));
    await until("all is heard", () => chatters.every(({ said }) => said.length === all.length + 30));
    const sorted = (said) => [...said].sort();
    for (const { said } of chatters) same(sorted(said), sorted(chatters[0].said), "what was said");
  };
}

({ echo, chat })[app]();
await backend.start();
await run(checks);
