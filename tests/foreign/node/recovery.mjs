// The stock `socket.io-client`, with both parsers, against a server that lets it come back after a drop as if nothing had been.
//
//   npm ci && node recovery.mjs http://127.0.0.1:7070 --control=http://127.0.0.1:7071
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The server needs the
// settings of examples/socketio-compliance.toml, a ping timeout of some seconds, its control port, and
//
//   socketio.namespaces = ["/","/guild/*"]    socketio.recovery_ms = 5000
//   socketio.connect_event = ""               socketio.recovery_bytes_max = "2MiB"
//                                             socketio.recovery_session_bytes_max = "256KiB"
//
// and nobody else on it, since what it counts is compared.

import { setTimeout as delay } from "node:timers/promises";
import { address, afterwards, bounded, fail, run, same, until, WAIT_MS } from "./checks.mjs";

const [{ io }, msgpack] = await Promise.all([import("socket.io-client"), import("socket.io-msgpack-parser")]).catch(() => {
  console.error("the packages socket.io-client and socket.io-msgpack-parser are missing: run `npm ci` in tests/foreign/node");
  process.exit(1);
});

const { url, flags } = address("node recovery.mjs http://HOST:PORT --control=http://HOST:PORT");
const control = flags.find((flag) => flag.startsWith("--control="))?.slice("--control=".length);
const TRANSPORTS = {
  "default transports": {},
  "websocket only": { transports: ["websocket"] },
  "polling only": { transports: ["polling"] },
};
const PARSERS = { json: {}, msgpack: { parser: msgpack } };
const MODES = Object.entries(PARSERS).flatMap(([parser, parse]) =>
  Object.entries(TRANSPORTS).map(([transport, options]) => [`${parser}, ${transport}`, { ...options, ...parse }]),
);
const DROPS = 5;
const HOW = ["cut", "close"];
// More than recovery_bytes_max.
const FLOOD = { events: 20, bytes: 120_000 };

// Room names of their own for every check, so that they do not meet.
let roomsNamed = 0;
const room = () => `recovery:${process.pid}:${++roomsNamed}`;

const each = (clients, act) => Promise.all(clients.map(act));

// What is published under a number: every kind of data that there is, text too, which the offset is as well.
const numbered = (n) => [{ n }, n, `${n}`, Buffer.from(`${n}`)][n % 4];
const numbers = (from, to) => Array.from({ length: to - from }, (_, at) => numbered(from + at));

// One socket of the stock client, and what happened to it.
class Client {
  static async open(options = {}, namespace = "/") {
    const client = new Client(options, namespace);
    await client.connected();
    return client;
  }

  // In another namespace on the same connection.
  async beside(namespace) {
    const client = new Client({}, namespace, this);
    await client.connected();
    return client;
  }

  // On the connection of `other`, or on one of its own.
  constructor(options, namespace, other = null) {
    this.mayReturn = Promise.resolve(); // settled when it may ask for its namespace
    const auth = (answer) => (other ?? this).mayReturn.then(() => answer({}));
    const own = { forceNew: true, reconnectionDelay: 20, reconnectionDelayMax: 100, timeout: WAIT_MS, auth, ...options };
    this.socket = other ? other.socket.io.socket(namespace, { auth }) : io(`${url}${namespace}`, own);
    this.name = `${namespace} (${options.parser ? "msgpack" : "json"}, ${options.transports?.join() ?? "default"})`;
    this.inbox = []; // data of the events `n`, in the order in which listeners saw them
    this.offsets = []; // of the same
    this.connects = []; // for each connect its id, whether it was recovered, and how many events had come before it
    this.socket.on("n", (...args) => {
      this.inbox.push(args[0]);
      this.offsets.push(...args.slice(1));
    });
    this.socket.on("connect", () => {
      const { id, recovered } = this.socket;
      this.connects.push({ id, recovered: recovered ?? false, events: this.inbox.length });
    });
    // A connection that is closed during its upgrade ends when the last poll is answered, and the client reads the events of that answer when
    // it is disconnected already: it keeps them until it is back, and asks for them as well. So it shows them twice. Here it
    // forgets what a connection has left behind when the next one opens, and nothing that comes on that one.
    this.socket.io.on("open", () => (this.socket.receiveBuffer = []));
    afterwards(() => this.socket.disconnect());
  }

  // Is connected, for the time after `before` times.
  async connected(before = 0) {
    await until(`${this.name}: connect`, () => this.connects.length > before);
    return this.connects.at(-1);
  }

  // Drops out, and comes back when the server knows.
  drop(how = "close") {
    return dropAll([this], () => how);
  }

  // Ends the connection: as a client does whose engine has failed, or as a network does, without a word where that can be.
  async close(how) {
    const { engine } = this.socket.io;
    const gone = new Promise((resolve) => this.socket.once("disconnect", resolve));
    if (how === "cut" && engine.transport.ws) engine.transport.ws.terminate();
    else engine.close();
    await bounded(gone, `${this.name}: disconnect`);
  }

  // The session goes over a WebSocket.
  async upgraded() {
    await until(`${this.name}: upgrade`, () => this.socket.io.engine.transport.name === "websocket");
  }

  // The same one is back, for the time after `before` times.
  async recovered(before) {
    const [{ id }, last] = [this.connects[0], await this.connected(before)];
    same([last.id, last.recovered], [id, true], `${this.name}: id and recovered after drop ${before}`);
    same(this.socket.id, id, `${this.name}: the socket's id`);
    return last;
  }

  // Somebody new has come, for the time after `before` times.
  async anew(before) {
    const last = await this.connected(before);
    same([last.id === this.connects[before - 1].id, last.recovered], [false, false], `${this.name}: same id and recovered`);
    return last;
  }

  // All the events of these numbers have come, each once and in order, and nothing else.
  async has(from, to) {
    await until(`${this.name}: ${to - from} events, there are ${this.inbox.length}`, () => this.inbox.length >= to - from);
    await this.fence();
    same(this.inbox, numbers(from, to), `${this.name}: what came`);
    same(this.offsets.map((offset) => typeof offset), this.inbox.map(() => "string"), `${this.name}: kinds of offsets`);
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

  async publish(name, data, more = {}) {
    same(await this.ask("publish", { room: name, event: "n", data, ...more }), [{}], `${this.name}: the ack of a publish`);
  }

  // All that was said before has been carried out, and what came of it has come.
  async fence() {
    same(await this.ask("message-with-ack", "fence"), ["fence"], `${this.name}: the ack of the fence`);
  }
}

// Publishes numbers to a room, one after another, each when the one before was acknowledged.
class Publisher {
  static async open(name, namespace = "/") {
    const publisher = new Publisher();
    [publisher.room, publisher.acked] = [name, 0];
    publisher.client = await Client.open({ transports: ["websocket"] }, namespace);
    return publisher;
  }

  async publish(count) {
    for (const end = this.acked + count; this.acked < end; this.acked++) {
      await this.client.publish(this.room, numbered(this.acked));
    }
  }

  // Goes on until what it answers is called, and awaited.
  goOn() {
    let stopped = false;
    const running = (async () => {
      while (!stopped) {
        await this.publish(1);
        await delay(1);
      }
    })();
    running.catch(() => {}); // told to who stops it
    afterwards(() => (stopped = true));
    return () => {
      stopped = true;
      return running;
    };
  }

  // So many more have been published by somebody who goes on.
  async later(count) {
    const end = this.acked + count;
    await until(`${end} numbers are published`, () => this.acked >= end);
  }
}

// Clients with a connection each drop out at once. They ask for their namespaces again when the server knows of all that they are gone: who
// is earlier is somebody new.
async function dropAll(clients, how = () => "close") {
  const disconnects = () => metric("throng_disconnects_total");
  const expected = (await disconnects()) + clients.length;
  let allow;
  const allowed = new Promise((resolve) => (allow = resolve));
  clients.forEach((client) => (client.mayReturn = allowed));
  await each(clients, (client, at) => client.close(how(at)));
  await until("the server knows who has dropped out", async () => (await disconnects()) >= expected);
  allow();
}

async function metrics() {
  return (await bounded(fetch(`${control}/metrics`), "/metrics")).text();
}

// The sum of a metric over its labels, of those samples that have `label`.
async function metric(name, label = "") {
  const lines = (await metrics()).split("\n").filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
  if (lines.length === 0) fail(`there is no ${name}`);
  return lines.filter((line) => line.includes(label)).reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

// What came of those who wanted to be recovered, and of nobody besides, while `act` went on.
async function counts(expected, act) {
  const reasons = ["recovered", "unknown", "forgotten", "too_much"];
  const count = () => each(reasons, (reason) => metric("throng_recoveries_total", `reason="${reason}"`));
  const before = await count();
  await act();
  const after = await count();
  const told = Object.fromEntries(reasons.map((reason, at) => [reason, after[at] - before[at]]));
  same(told, { ...Object.fromEntries(reasons.map((reason) => [reason, 0])), ...expected }, "throng_recoveries_total");
}

const first = {
  "who comes back after recovery_ms is somebody new": async () => {
    const rooms = () => metric("throng_rooms");
    await until("nobody is here", async () => (await rooms()) === 0);
    const clients = await each(MODES, ([, options]) => Client.open({ ...options, reconnection: false }));
    const name = room();
    await each(clients, (client) => client.join(name));
    await dropAll(clients);
    if ((await rooms()) === 0) fail("the rooms were forgotten at once");
    await counts({ unknown: clients.length }, async () => {
      await until("what they left behind is forgotten", async () => (await rooms()) === 0);
      await each(clients, async (client) => {
        client.socket.connect();
        await client.anew(1);
      });
    });
    same(await clients[0].join(name), 0, "members of the room");
    const publisher = await Publisher.open(name);
    await publisher.publish(4);
    await clients[0].has(0, 4);
    await each(clients.slice(1), (client) => client.has(0, 0));
  },
};

// What holds for each way to connect.
const forMode = (options) => ({
  "what is published to the id of a client reaches it wherever it comes back, and while it is away": async () => {
    const client = await Client.open({ ...options, reconnection: false });
    const publisher = await Publisher.open(client.socket.id);
    for (let drop = 1; drop <= DROPS; drop++) {
      await publisher.publish(2);
      await client.drop(HOW[drop % 2]);
      await publisher.publish(2);
      client.socket.connect();
      await client.recovered(drop);
    }
    await publisher.publish(1);
    await client.has(0, 4 * DROPS + 1);
  },

  "what was published while somebody was away comes before connect": async () => {
    // So many events come before each drop.
    for (const count of [0, 1, 5]) {
      const name = room();
      // Who does not come back by itself is away until it is told to come.
      const client = await Client.open({ ...options, reconnection: false });
      const publisher = await Publisher.open(name);
      await client.join(name);
      await counts({ recovered: DROPS }, async () => {
        for (let drop = 1; drop <= DROPS; drop++) {
          const received = publisher.acked + count;
          await publisher.publish(count);
          await client.has(0, received);
          await client.drop(HOW[drop % 2]);
          await publisher.publish(7);
          same(client.inbox.length, received, "events while it is away");
          client.socket.connect();
          same((await client.recovered(drop)).events, publisher.acked, "events before connect");
        }
      });
      await publisher.publish(3);
      await client.has(0, publisher.acked);
    }
  },

  "who drops out again and again comes back by itself, and gets each event once, in order": async () => {
    const name = room();
    const [client, publisher] = [await Client.open(options), await Publisher.open(name)];
    await client.join(name);
    const stop = publisher.goOn();
    await counts({ recovered: 2 * DROPS }, async () => {
      for (let drop = 1; drop <= 2 * DROPS; drop++) {
        await publisher.later(drop % 5);
        await client.drop(HOW[drop % 2]);
        let published = 0;
        // What was acknowledged before it asked for the namespace.
        client.socket.io.once("open", () => (published = publisher.acked));
        const last = await client.recovered(drop);
        if (last.events < published) fail(`${last.events} events before connect, ${published} were published`);
      }
    });
    await publisher.later(4);
    await stop();
    await client.has(0, publisher.acked);
  },

  "a quiet session comes back, and so does its room": async () => {
    const name = room();
    const [client, publisher] = [await Client.open(options), await Publisher.open(name)];
    await client.join(name);
    for (let drop = 1; drop <= DROPS; drop++) {
      await client.drop();
      same((await client.recovered(drop)).events, 0, "events");
    }
    same(await publisher.client.join(name), 1, "members of the room");
    await publisher.publish(4);
    await client.has(0, 4);
  },

  "a namespace comes back with its rooms, beside another on the same connection": async () => {
    const name = room();
    const main = await Client.open(options);
    const clients = [main, await main.beside("/guild/7")];
    const publishers = [await Publisher.open(name), await Publisher.open(name, "/guild/7")];
    await each(clients, (client) => client.join(name));
    await counts({ recovered: 2 * DROPS }, async () => {
      for (let drop = 1; drop <= DROPS; drop++) {
        const stops = publishers.map((publisher) => publisher.goOn());
        await each(publishers, (publisher, at) => publisher.later(2 + at));
        await main.drop(HOW[drop % 2]);
        await each(publishers, (publisher, at) => publisher.later(3 + at));
        await each(clients, (client) => client.recovered(drop));
        await each(stops, (stop) => stop());
        await each(clients, (client, at) => client.has(0, publishers[at].acked));
      }
    });
  },

  "what went to one client only, and its own events, do not come again": async () => {
    const name = room();
    const [client, publisher] = [await Client.open(options), await Publisher.open(name)];
    await client.join(name);
    const replies = [];
    client.socket.on("message-back", (...args) => replies.push(args[0]));
    for (let drop = 1; drop <= DROPS; drop++) {
      client.socket.emit("message", drop);
      await client.publish(name, "its own");
      // With and without something of others behind it.
      await publisher.publish(drop % 2);
      await client.drop();
      await publisher.publish(1);
      await client.recovered(drop);
      await client.has(0, publisher.acked);
    }
    same(replies, Array.from({ length: DROPS }, (_, at) => at + 1), "replies");
    // What it publishes before a drop reaches others once.
    const other = await Client.open(options);
    await other.join(name);
    await client.publish(name, numbered(0));
    // At first it polls, and what it publishes then is its own when it has moved to a WebSocket, too.
    if (!options.transports) await client.upgraded();
    for (const drop of [1, 2]) {
      await client.drop();
      await client.recovered(DROPS + drop);
    }
    await client.publish(name, numbered(1));
    await other.has(0, 2);
    await client.has(0, publisher.acked);
  },

  "who disconnects is somebody new": async () => {
    const name = room();
    const [client, publisher] = [await Client.open(options), await Publisher.open(name)];
    await client.join(name);
    await publisher.publish(2);
    await client.has(0, 2);
    await counts({ unknown: 2 }, async () => {
      client.socket.disconnect();
      await publisher.publish(2);
      client.socket.connect();
      same((await client.anew(1)).events, 2, "events before connect");
      // From a namespace whose connection stays.
      const guild = await client.beside("/guild/7");
      await guild.join(name);
      guild.socket.disconnect();
      guild.socket.connect();
      await guild.anew(1);
      same([await guild.join(name), await client.join(name)], [0, 0], "members");
    });
    await client.has(0, 2);
  },
});

// What goes on between clients, whatever their transports.
const between = {
  "thirty clients drop out at once, and all come back": async () => {
    const name = room();
    const clients = await each([...Array(30).keys()], (at) => Client.open(MODES[at % MODES.length][1]));
    const publisher = await Publisher.open(name);
    await each(clients, (client) => client.join(name));
    const stop = publisher.goOn();
    await counts({ recovered: 3 * clients.length }, async () => {
      for (let drop = 1; drop <= 3; drop++) {
        await publisher.later(5);
        await dropAll(clients, (at) => HOW[(at + drop) % 2]);
        await each(clients, (client) => client.recovered(drop));
      }
    });
    await stop();
    await each(clients, (client) => client.has(0, publisher.acked));
  },

  "who has missed more than is kept is somebody new": async () => {
    const [client, name] = [await Client.open({ reconnection: false }), room()];
    const publisher = await Publisher.open(name);
    await client.join(name);
    await publisher.publish(1);
    await client.has(0, 1);
    await client.drop();
    for (let at = 0; at < FLOOD.events; at++) await publisher.client.publish(name, Buffer.alloc(FLOOD.bytes));
    await counts({ forgotten: 1 }, async () => {
      client.socket.connect();
      await client.anew(1);
    });
    await publisher.publish(1);
    await client.has(0, 1);
  },

  "who has missed more than one client is sent is somebody new": async () => {
    const [client, name] = [await Client.open({ reconnection: false }), room()];
    const publisher = await Publisher.open(name);
    await client.join(name);
    await client.drop();
    await publisher.client.publish(name, Buffer.alloc(300_000));
    await counts({ too_much: 1 }, async () => {
      client.socket.connect();
      await client.anew(1);
    });
    await client.has(0, 0);
  },

  "a session that is quiet for longer than events are kept comes back": async () => {
    const [name, busyName] = [room(), room()];
    const busy = await Client.open();
    const quiet = await busy.beside("/guild/7");
    const publisher = await Publisher.open(name, "/guild/7");
    await quiet.join(name);
    await publisher.publish(1);
    await quiet.has(0, 1);
    // On the same connection, so that these are kept where the other's events were.
    await busy.join(busyName);
    const sender = await Client.open({ transports: ["websocket"] });
    let heard = 0;
    busy.socket.on("n", () => (heard += 1));
    for (let at = 0; at < FLOOD.events; at++) await sender.publish(busyName, Buffer.alloc(FLOOD.bytes));
    await until("all has come", () => heard === FLOOD.events);
    // The answer to the second ping behind all that tells the server what has come.
    let pings = 0;
    busy.socket.io.engine.on("ping", () => (pings += 1));
    await until("two pings", () => pings >= 2);
    await quiet.fence();
    await counts({ recovered: 2 }, async () => {
      await busy.drop();
      await publisher.publish(2);
      await each([busy, quiet], (client) => client.recovered(1));
    });
    await quiet.has(0, 3);
  },
};

const modes = MODES.flatMap(([mode, options]) =>
  Object.entries(forMode(options)).map(([name, check]) => [`${mode}: ${name}`, check]),
);

// Each check begins when nobody is left from the one before, whose end is a disconnect as well.
const alone = (check) => async () => {
  await until("nobody is here", async () => (await metric("throng_connections")) === 0);
  await check();
};
const checks = Object.entries({ ...first, ...Object.fromEntries(modes), ...between });
run(Object.fromEntries(checks.map(([name, check]) => [name, alone(check)])));
