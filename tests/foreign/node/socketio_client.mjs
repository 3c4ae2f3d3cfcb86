// The stock `socket.io-client` against a server of Socket.IO: every transport, and rooms across them.
//
//   npm ci && node socketio_client.mjs http://127.0.0.1:7070 [--without-native]
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The server needs the
// settings of examples/socketio-compliance.toml, `socketio.namespaces = ["/","/custom","/guild/*"]`, and a ping timeout of some
// seconds, since the stock client is busy at times. `--without-native` leaves out what needs the native protocol at /ws.

import { setTimeout as delay } from "node:timers/promises";
import { address, afterwards, bounded, fail, run, same, show, until, WAIT_MS } from "./checks.mjs";

const [{ io }, { default: WebSocket }] = await Promise.all([import("socket.io-client"), import("ws")]).catch(() => {
  console.error("the packages ws and socket.io-client are missing: run `npm ci` in tests/foreign/node");
  process.exit(1);
});

const { url, flags } = address("node socketio_client.mjs http://HOST:PORT [--without-native]");
const MODES = {
  "default transports": {},
  "websocket only": { transports: ["websocket"] },
  "polling only": { transports: ["polling"] },
};
const SMILE = "\u{1f642}";

// Room names of their own for every run, so that two runs against one server do not meet.
let roomsNamed = 0;
const room = () => `client:${process.pid}:${++roomsNamed}`;

// One socket of the stock client, and what came to it.
class Client {
  static async open(options = {}, namespace = "/") {
    const client = new Client(options, namespace);
    await client.connected();
    return client;
  }

  // On the connection of `other`, or on one of its own.
  constructor(options, namespace = "/", other = null) {
    const own = { forceNew: true, reconnectionDelay: 20, reconnectionDelayMax: 100, timeout: WAIT_MS, ...options };
    this.socket = other ? other.socket.io.socket(namespace, options) : io(`${url}${namespace}`, own);
    this.name = `${namespace} (${this.socket.io.opts.transports?.join() ?? "default"})`;
    this.inbox = []; // events that came and were not yet taken
    this.waiting = null; // who waits for the next one
    this.socket.onAny((...event) => this.receive(event));
    afterwards(() => this.socket.disconnect());
  }

  receive(event) {
    if (!this.waiting) return void this.inbox.push(event);
    this.waiting(event);
    this.waiting = null;
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

  // The session goes over a WebSocket.
  async upgraded() {
    const { engine } = this.socket.io;
    if (engine.transport.name === "websocket") return;
    const upgrade = new Promise((resolve) => engine.once("upgrade", resolve));
    await bounded(upgrade, `${this.name}: upgrade`);
  }

  // Ends the connection as a network does, without a word where that can be.
  cut() {
    const { engine } = this.socket.io;
    if (engine.transport.ws) engine.transport.ws.terminate();
    else engine.close();
  }

  // The next event: its name and its arguments.
  next() {
    if (this.inbox.length > 0) return Promise.resolve(this.inbox.shift());
    const event = new Promise((resolve) => (this.waiting = resolve));
    return bounded(event, `${this.name}: an event`).finally(() => (this.waiting = null));
  }

  async takes(...event) {
    same(await this.next(), event, `${this.name}: the next event`);
  }

  async echoes(...args) {
    this.socket.emit("message", ...args);
    await this.takes("message-back", ...args);
  }

  // Sends an event and answers the arguments of its ack.
  ask(name, ...args) {
    const ack = new Promise((resolve) => this.socket.emit(name, ...args, (...answer) => resolve(answer)));
    return bounded(ack, `${this.name}: the ack of ${name}`);
  }

  // Joins rooms, and answers how many members each had.
  async join(...rooms) {
    const [answer, ...more] = await this.ask("join", rooms);
    same(more, [], "more arguments of the ack");
    same(Object.keys(answer), ["rooms"], `keys of the ack ${show(answer)}`);
    return rooms.map((name) => answer.rooms[name].members);
  }

  async publish(name, event, data, more = {}) {
    same(await this.ask("publish", { room: name, event, data, ...more }), [{}], "the ack of a publish");
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
    native.socket = new WebSocket(`${url.replace("http", "ws")}/ws`, { handshakeTimeout: WAIT_MS });
    native.inbox = [];
    native.socket.on("message", (text) => native.inbox.push(JSON.parse(text)));
    afterwards(() => native.socket.terminate());
    await bounded(new Promise((resolve, reject) => native.socket.on("open", resolve).on("error", reject)), "/ws");
    return native;
  }

  next() {
    return until("something comes over /ws", () => this.inbox.shift());
  }

  async ask(message) {
    this.socket.send(JSON.stringify({ ...message, id: 1 }));
    return this.next();
  }
}

// Clients over every transport, four of each.
function crowd() {
  return Promise.all(Object.values(MODES).flatMap((options) => Array.from({ length: 4 }, () => Client.open(options))));
}

const each = (clients, act) => Promise.all(clients.map(act));

const values = [
  0,
  -1.5,
  true,
  null,
  "",
  `é漢${SMILE} "quoted" \\ \u0000 \u2028`,
  [],
  {},
  [1, [2, [3, { four: [5] }]]],
  { rooms: { a: { members: 0 } }, list: ["x", null, false] },
];

// What holds for each way to connect.
const forMode = (options) => ({
  "connects, and the auth payload arrives": async () => {
    for (const [auth, expected] of [
      [undefined, {}],
      [{ token: "123", list: [1, { é: SMILE }] }, { token: "123", list: [1, { é: SMILE }] }],
      [(answer) => answer({ late: true }), { late: true }],
    ]) {
      const client = new Client({ ...options, auth });
      same(await client.connected(), expected, "auth payload");
      if (!/^[A-Za-z0-9_-]{20}$/.test(client.socket.id)) fail(`socket id ${client.socket.id}`);
      if (client.socket.id === client.socket.io.engine.id) fail("the socket's id is the session's");
      const [transport] = options.transports ?? ["websocket"];
      if (transport === "websocket") await client.upgraded();
      same(client.socket.io.engine.transport.name, transport, "transport");
      await client.echoes("hello");
    }
  },

  "events come back with their arguments": async () => {
    const client = await Client.open(options);
    await client.echoes();
    for (const value of values) await client.echoes(value);
    await client.echoes(...values);
    // A volatile event is left out while the transport is at work.
    await until("the transport is idle", () => client.socket.io.engine.transport.writable);
    client.socket.volatile.emit("message", "volatile");
    await client.takes("message-back", "volatile");
  },

  "acks come back with their arguments, also many at once": async () => {
    const client = await Client.open(options);
    same(await client.ask("message-with-ack"), [], "an ack of nothing");
    same(await client.ask("message-with-ack", ...values), values, "the ack");
    same(await client.socket.timeout(WAIT_MS).emitWithAck("message-with-ack", 7), 7, "emitWithAck");
    const all = Array.from({ length: 200 }, (_, index) => index);
    const answers = await each(all, (index) => client.ask("message-with-ack", index));
    same(answers, all.map((index) => [index]), "the acks");
    const late = await client.socket.timeout(100).emitWithAck("nobody listens").catch(() => "nothing");
    same(late, "nothing", "the ack of an event that nothing is said about");
  },

  "bytes come back in events and acks": async () => {
    const client = await Client.open(options);
    const every = Buffer.from(Array.from({ length: 1024 }, (_, index) => index % 256));
    await client.echoes(every);
    await client.echoes("before", { deep: [every, { deeper: Buffer.from([4]) }] }, Buffer.alloc(0), "after");
    await client.echoes(...Array.from({ length: 10 }, (_, index) => Buffer.alloc(index + 1, index)));
    client.socket.emit("message", new Uint8Array([1, 2]), new Uint8Array([3]).buffer);
    await client.takes("message-back", Buffer.from([1, 2]), Buffer.from([3]));
    same(await client.ask("message-with-ack", every, 1, Buffer.from("x")), [every, 1, Buffer.from("x")], "the ack");
    await client.echoes("text again");
  },

  "namespaces share a connection and nothing else": async () => {
    const main = await Client.open(options);
    const [custom, guild] = [new Client({ auth: { in: "custom" } }, "/custom", main), new Client({}, "/guild/7", main)];
    same(await custom.connected(), { in: "custom" }, "auth payload of /custom");
    same(await guild.connected(), {}, "auth payload of /guild/7");
    same(new Set([main, custom, guild].map(({ socket }) => socket.id)).size, 3, "different ids");
    await each([main, custom, guild], async (client) => {
      await client.echoes(client.name);
      await client.echoes(Buffer.from(client.name));
      await client.fence();
    });
    custom.socket.disconnect();
    await each([main, guild], (client) => client.echoes("still here"));
    custom.socket.connect();
    await custom.connected();
    await each([main, custom, guild], (client) => client.echoes("all again"));
  },

  "a namespace that there is not is refused": async () => {
    const main = await Client.open(options);
    for (const namespace of ["/nope", "/guild", "/guild/1/2"]) {
      const other = new Client({}, namespace, main);
      const error = await other.hears("connect_error");
      same(error.message, "Invalid namespace", `error for ${namespace}`);
    }
    await main.echoes("still here");
  },

  "who disconnects can connect again": async () => {
    const client = await Client.open(options);
    const { id } = client.socket;
    const gone = client.hears("disconnect");
    client.socket.disconnect();
    same(await gone, "io client disconnect", "reason");
    client.socket.volatile.emit("message", "lost");
    client.socket.emit("message", "kept");
    client.socket.connect();
    await client.connected();
    if (client.socket.id === id) fail("the same id for another socket");
    await client.takes("message-back", "kept");
    await client.fence();
  },

  "who loses the connection is back by itself, and in no room": async () => {
    const [client, sender] = [await Client.open(options), await Client.open(options)];
    const name = room();
    await client.join(name);
    for (let round = 0; round < 3; round++) {
      const { id } = client.socket;
      const gone = client.hears("disconnect");
      client.cut();
      await gone;
      client.socket.emit("message", "kept");
      await client.connected();
      if (client.socket.id === id) fail("the same id for another socket");
      await client.takes("message-back", "kept");
      await sender.publish(name, "unheard", round);
      await client.fence();
      // The connection that was cut may be noticed later than the new one.
      await until("the connection that was cut is no member any more", async () => {
        if ((await client.join(name))[0] === 0) return true;
        await client.ask("leave", name);
      });
      await sender.publish(name, "heard", round);
      await client.takes("heard", round);
    }
  },

  "an event of nearly the largest size passes, a larger one costs the connection": async () => {
    const client = await Client.open(options);
    const polls = options.transports?.[0] === "polling";
    if (!polls) await client.upgraded();
    const text = "0123456789".repeat(99_990);
    await client.echoes(text);
    same(await client.ask("message-with-ack", text), [text], "the ack");
    await client.echoes(Buffer.alloc(polls ? 740_000 : 990_000, 0xab)); // as base64 they are longer by a third
    const gone = client.hears("disconnect");
    client.socket.emit("message", `${text}${"x".repeat(1000)}`);
    const reason = await gone;
    if (!["transport close", "transport error"].includes(reason)) fail(`reason ${reason}`);
    await client.connected();
    await client.echoes("back again");
  },

  "retries deliver each event once, in order": async () => {
    const client = await Client.open({ ...options, retries: 3, ackTimeout: WAIT_MS });
    const answers = await each([...Array(20).keys()], (index) => {
      const ack = new Promise((resolve) => client.socket.emit("message-with-ack", index, (...answer) => resolve(answer)));
      return bounded(ack, `the ack of ${index}`);
    });
    same(answers, [...Array(20).keys()].map((index) => [null, index]), "the acks");
  },
});

// What goes on between clients, whatever their transports.
const between = {
  "a join tells for each room how many were there before": async () => {
    const clients = await crowd();
    const rooms = [room(), room(), room()];
    for (const [before, client] of clients.entries()) same(await client.join(...rooms), [before, before, before], "members");
  },

  "a room may be named in each of the ways there are": async () => {
    const client = await Client.open();
    const [one, two] = [room(), room()];
    const members = (count, ...names) => [{ rooms: Object.fromEntries(names.map((name) => [name, { members: count }])) }];
    for (const [argument, names] of [
      [one, [one]],
      [[one, two], [one, two]],
      [{ room: one }, [one]],
      [{ room: [one, two] }, [one, two]],
      [{ rooms: [one, two] }, [one, two]],
    ]) {
      same(await client.ask("join", argument), members(0, ...names), `the ack of a join of ${show(argument)}`);
      same(await client.ask("leave", argument), [{}], `the ack of a leave of ${show(argument)}`);
    }
  },

  "an event reaches every other member once, and its sender only with echo": async () => {
    const clients = await crowd();
    const name = room();
    await each(clients, (client) => client.join(name));
    for (const sender of clients) {
      for (const value of [{ from: sender.name }, null, `é${SMILE}`, [1, [2]], 7]) {
        await sender.publish(name, "news", value);
        await each(clients, (client) => client === sender || client.takes("news", value));
      }
      await sender.publish(name, "for all", 1, { echo: true });
      await each(clients, (client) => client.takes("for all", 1));
    }
    await each(clients, (client) => client.fence());
  },

  "one need not be in a room to publish to it; who has left hears nothing": async () => {
    const [outsider, ...members] = await crowd();
    const name = room();
    await each(members, (client) => client.join(name));
    await outsider.publish(name, "heard", 1, { echo: true });
    await each(members, (client) => client.takes("heard", 1));
    const [leavers, stayers] = [members.slice(0, 5), members.slice(5)];
    await each(leavers, (client) => client.ask("leave", name));
    await outsider.publish(name, "still heard", 2);
    await each(stayers, (client) => client.takes("still heard", 2));
    await each([outsider, ...members], (client) => client.fence());
  },

  "who disconnects is no member any more": async () => {
    const [watcher, ...members] = await crowd();
    const name = room();
    await each(members, (client) => client.join(name));
    members.slice(1).forEach((client, index) => (index % 2 === 0 ? client.socket.disconnect() : client.cut()));
    // Those that were cut come back by themselves, but not into the room.
    await until("one member is left", async () => {
      const [count] = await watcher.join(name);
      await watcher.ask("leave", name);
      return count === 1;
    });
  },

  "who is silent stays connected": async () => {
    const clients = await crowd();
    const ids = clients.map(({ socket }) => socket.id);
    await delay(1500); // several pings
    same(clients.map(({ socket }) => socket.id), ids, "socket ids");
    await each(clients, (client) => client.fence());
  },

  "each namespace has rooms of its own": async () => {
    const name = room();
    const clients = [];
    for (const namespace of ["/", "/custom", "/guild/1", "/guild/2"])
      clients.push(await Client.open({}, namespace), await Client.open({}, namespace));
    for (const [index, client] of clients.entries()) same(await client.join(name), [index % 2], "members");
    for (const [index, client] of clients.entries()) {
      await client.publish(name, "here", index);
      await clients[index ^ 1].takes("here", index);
    }
    await each(clients, (client) => client.fence());
  },

  "what cannot be carried out is said in the ack": async () => {
    const client = await Client.open();
    const name = room();
    for (const [event, argument, code] of [
      ["join", "", "bad_room"],
      ["join", [name, ""], "bad_room"],
      ["join", { room: "x".repeat(201) }, "bad_room"],
      ["join", "tab\there", "bad_room"],
      ["join", true, "bad_message"],
      ["join", {}, "bad_message"],
      ["join", [null], "bad_message"],
      ["leave", "", "bad_room"],
      ["publish", { event: "e" }, "bad_message"],
      ["publish", { room: name }, "bad_message"],
      ["publish", { room: "", event: "e" }, "bad_room"],
      ["publish", { room: name, event: "" }, "bad_event"],
      ["publish", { room: name, event: 7 }, "bad_message"],
      ["publish", { room: name, event: "e", echo: 1 }, "bad_message"],
      ["publish", { room: name, event: "e", volatile: "true" }, "bad_message"],
      ["publish", { room: name, event: "e", except: { a: 1 } }, "bad_message"],
      ["publish", { rooms: [], event: "e" }, "bad_message"],
    ]) {
      const [answer] = await client.ask(event, argument);
      same([answer.error?.code, typeof answer.error?.message], [code, "string"], `the ack of ${event} ${show(argument)}`);
    }
    // Carried out whole or not at all.
    const other = await Client.open();
    same(await other.join(name), [0], "members after refused joins");
    await client.fence();
  },

  "500 events that a client sends while it upgrades are carried out in order": async () => {
    for (let round = 0; round < 3; round++) {
      const client = new Client({});
      await client.hears("connect");
      const upgrade = client.upgraded();
      for (let index = 0; index < 500; index++) {
        client.socket.emit("message", index);
        if (index % 10 === round) await delay(1);
      }
      await client.takes("auth", {});
      for (let index = 0; index < 500; index++) await client.takes("message-back", index);
      await upgrade;
      await client.fence();
    }
  },

  "500 events of a room that a client is in while it upgrades come once each, in order": async () => {
    const sender = await Client.open({ transports: ["websocket"] });
    for (let round = 0; round < 3; round++) {
      const name = room();
      const client = await Client.open();
      const upgrade = client.upgraded();
      await client.join(name);
      const acks = [];
      for (let index = 0; index < 500; index++) {
        acks.push(sender.publish(name, "n", index));
        if (index % 10 === round) await delay(1);
      }
      for (let index = 0; index < 500; index++) await client.takes("n", index);
      await Promise.all(acks);
      await upgrade;
      await client.fence();
    }
  },

  "two publishers' events come in one order to all members": async () => {
    const clients = await crowd();
    const name = room();
    await each(clients, (client) => client.join(name));
    const publishers = [clients[0], clients.at(-1)];
    const count = 200;
    await each([0, 1], (origin) =>
      each([...Array(count).keys()], (n) => publishers[origin].publish(name, "n", [origin, n], { echo: true })),
    );
    const orders = await each(clients, async (client) => {
      const order = [];
      while (order.length < 2 * count) order.push((await client.next())[1]);
      return order;
    });
    for (const origin of [0, 1]) {
      const numbers = orders[0].filter(([from]) => from === origin).map(([, n]) => n);
      same(numbers, [...Array(count).keys()], `the order of publisher ${origin}`);
    }
    for (const order of orders) same(order, orders[0], "the order at another member");
    await each(clients, (client) => client.fence());
  },

  "fifty clients at once join a room and hear each other": async () => {
    const modes = Object.values(MODES);
    const name = room();
    const clients = await each([...Array(50).keys()], (index) => Client.open(modes[index % modes.length]));
    await each(clients, (client) => client.join(name));
    await each(clients.slice(0, 5), (client, index) => client.publish(name, "all", index, { echo: true }));
    await each(clients, async (client) => {
      const heard = [];
      while (heard.length < 5) heard.push((await client.next())[1]);
      same(heard.sort(), [0, 1, 2, 3, 4], "events");
    });
    await each(clients, (client) => client.fence());
  },

  "an event for several rooms comes once to whoever is in one of them, and to nobody in one that is excepted": async () => {
    const clients = await crowd();
    const [one, two, not] = [room(), room(), room()];
    await each(clients, (client, index) => client.join(...[one, two, not].filter((_, bit) => index & (1 << bit))));
    const [sender] = clients;
    const isIn = (bits) => (index) => (index & bits) !== 0;
    for (const [rooms, except, hears] of [
      [{ rooms: [one, two] }, {}, isIn(3)],
      [{ room: [two, one, two] }, {}, isIn(3)],
      [{ rooms: [one, two, not] }, {}, isIn(7)],
      [{ rooms: [one, two] }, { except: not }, (index) => isIn(3)(index) && !isIn(4)(index)],
      [{ room: one }, { except: [two, not] }, (index) => isIn(1)(index) && !isIn(6)(index)],
      [{ rooms: [one, room()] }, { except: [room()] }, isIn(1)],
    ]) {
      const event = { ...rooms, ...except, event: "several", data: [rooms, except] };
      same(await sender.ask("publish", event), [{}], "the ack of a publish");
      await each(clients, (client, index) => client !== sender && hears(index) && client.takes("several", event.data));
      await each(clients, (client) => client.fence());
    }
    await clients[1].publish([one, two], "for all", 1, { echo: true });
    await each(clients, (client, index) => isIn(3)(index) && client.takes("for all", 1));
    await each(clients, (client) => client.fence());
  },

  "the id of a client is a room with that client in it": async () => {
    const clients = await crowd();
    await each(clients, (client) => client.socket.io.opts.transports?.[0] === "polling" || client.upgraded());
    const sender = await Client.open();
    for (const client of clients) {
      await sender.publish(client.socket.id, "for you", client.name);
      await client.takes("for you", client.name);
      await sender.publish([client.socket.id, clients[0].socket.id], "both", 1, { except: clients[0].socket.id });
      if (client !== clients[0]) await client.takes("both", 1);
    }
    for (const id of [sender.socket.id, clients[0].socket.id])
      same((await sender.ask("join", [room(), id]))[0].error?.code, "bad_room", "the ack of a join of a client's own room");
    await sender.publish(sender.socket.id, "for me", 1, { echo: true });
    await sender.takes("for me", 1);
    const custom = new Client({}, "/custom", clients[0]);
    await custom.connected();
    await sender.publish(custom.socket.id, "elsewhere", 1);
    const other = await Client.open({}, "/custom");
    await other.publish(custom.socket.id, "in custom", 2);
    await custom.takes("in custom", 2);
    // Who has gone is nobody.
    const [gone, id] = [clients[1], clients[1].socket.id];
    gone.socket.disconnect();
    gone.socket.connect();
    await gone.connected();
    await sender.publish(id, "unheard", 1);
    await each([...clients, sender, custom], (client) => client.fence());
  },

  "who publishes may ask for acks, and gets them all or those that came in time": async () => {
    const [asker, ...members] = await crowd();
    const name = room();
    await each(members, (client) => client.join(name));
    const answers = async (client, answer) => {
      const [event, data, ack, ...more] = await client.next();
      same([event, data, typeof ack, more], ["question", { n: 1 }, "function", []], "the question");
      answer(ack);
    };
    const ask = (ask_ms, more = {}) => asker.ask("publish", { room: name, event: "question", data: { n: 1 }, ask_ms, ...more });
    let asked = ask(10_000);
    await each(members, (client, index) => answers(client, (ack) => ack(index)));
    let [{ answers: all, missing }] = await asked;
    same([all.sort((one, other) => one - other), missing], [members.map((_, index) => index), 0], "the answers");
    // Bytes in the answers, more than one argument, none at all, and one that never comes.
    const began = performance.now();
    asked = ask(500);
    await each(members, (client, index) =>
      answers(client, (ack) => {
        if (index === 0) ack({ deep: [Buffer.from("zero")] }, "passed over");
        if (index === 1) ack(Buffer.from("one"));
        if (index === 2) ack();
        if (index > 3) ack("more");
      }),
    );
    [{ answers: all, missing }] = await asked;
    const took = performance.now() - began;
    if (took < 490) fail(`who was to wait for 500 ms waited for ${took}`);
    same(missing, 1, "missing answers");
    same(all.length, members.length - 1, "answers");
    for (const expected of [{ deep: [Buffer.from("zero")] }, Buffer.from("one"), null])
      if (!all.some((answer) => show(answer) === show(expected))) fail(`${show(expected)} is not in ${show(all)}`);
    same(await ask(500, { room: room() }), [{ answers: [], missing: 0 }], "the answers of nobody");
    same((await ask(500, { room: members[0].socket.id, volatile: true, event: "late" }))[0].missing, 1, "missing answers");
    same((await members[0].next()).slice(0, 2), ["late", { n: 1 }], "the question");
    for (const ask_ms of [0, 60_001, -1, 1.5, "500", null])
      same((await ask(ask_ms))[0].error?.code, "bad_message", `the ack with ask_ms ${ask_ms}`);
    asker.socket.emit("publish", { room: name, event: "question", ask_ms: 100 });
    same((await asker.next()).slice(0, 1), ["error"], "who wants no ack is told nothing");
    await each([asker, ...members], (client) => client.fence());
  },

  "bytes may be anywhere in what is published": async () => {
    const [sender, ...members] = await crowd();
    const name = room();
    await each(members, (client) => client.join(name));
    const [one, two] = [Buffer.from([0, 255, 10]), Buffer.alloc(50_000, 7)];
    for (const data of [{ image: one }, [one, { deep: [two, "text", one] }], { é: two, n: 0.5, list: [null] }, [Buffer.alloc(0)]]) {
      await sender.publish(name, "parts", data);
      await each(members, (client) => client.takes("parts", data));
    }
    await each(members, (client) => client.fence());
  },
};

const withNative = {
  "clients of the native protocol ask and are told likewise, and get bytes as base64": async () => {
    const [native, clients] = [await Native.open(), await crowd()];
    const [one, two] = [room(), room()];
    await native.ask({ type: "join", rooms: [one, two] });
    await each(clients, (client, index) => client.join(index % 2 ? one : two));
    native.socket.send(JSON.stringify({ type: "publish", rooms: [one, two], event: "q", data: 7, ask_ms: 5000, echo: true, id: "a" }));
    await each(clients, async (client, index) => (await client.next())[2](index === 0 ? [Buffer.from("x")] : index));
    same(await native.next(), { type: "event", room: [one, two].sort()[0], event: "q", data: 7 }, "its own event");
    const { answers, ...ack } = await native.next();
    same(ack, { type: "ack", id: "a", missing: 0 }, "the ack");
    same(answers.map(show).sort(), clients.map((_, index) => show(index === 0 ? [{ base64: "eA==" }] : index)).sort(), "the answers");
    await clients[0].publish([two, one], "parts", { a: Buffer.from("x"), b: [Buffer.from([255])] });
    const data = { a: { base64: "eA==" }, b: [{ base64: "/w==" }] };
    same(await native.next(), { type: "event", room: [one, two].sort()[0], event: "parts", data }, "the event with bytes");
    await each(clients.slice(1), (client) => client.takes("parts", { a: Buffer.from("x"), b: [Buffer.from([255])] }));
    const question = { type: "publish", room: one, event: "q", ask_ms: 100 };
    for (const wrong of [{ ask_ms: 0 }, { ask_ms: 60_001 }, { ask_ms: "1" }, { rooms: [one], room: undefined, except: "x" }])
      same((await native.ask({ ...question, ...wrong })).code, "bad_message", `the answer to ${show(wrong)}`);
    native.socket.send(JSON.stringify(question));
    same((await native.next()).code, "bad_message", "the answer to a question that wants no ack");
    same((await native.ask({ ...question, room: room() })).answers, [], "the answers of nobody");
    await each(clients, (client) => client.fence());
  },

  "a volatile event is left out for who does not take it at once, and for nobody else": async () => {
    const [reader, sleeper, name] = [await Native.open(), await Native.open(), room()];
    await each([reader, sleeper], (native) => native.ask({ type: "join", rooms: [name] }));
    const sender = await Client.open({ transports: ["websocket"] });
    sleeper.socket.pause();
    const count = 200;
    const data = "x".repeat(100_000);
    for (let n = 0; n < count; n++) await sender.publish(name, "volatile", [n, data], { volatile: true });
    await sender.publish(name, "end", null);
    sleeper.socket.resume();
    const [heard, missed] = await each([reader, sleeper], async (native) => {
      const numbers = [];
      for (;;) {
        const { event, data } = await native.next();
        if (event === "end") return numbers;
        numbers.push(data[0]);
      }
    });
    for (const numbers of [heard, missed]) same(numbers, [...new Set(numbers)].sort((one, other) => one - other), "the order");
    if (missed.length > count / 2) fail(`who did not read got ${missed.length} of ${count} events`);
    if (heard.length < missed.length) fail(`who read got ${heard.length} events, who did not ${missed.length}`);
  },

  "clients of the native protocol are in the same rooms": async () => {
    const [native, clients] = [await Native.open(), await crowd()];
    const name = room();
    same(await native.ask({ type: "join", rooms: [name] }), { type: "ack", id: 1, rooms: { [name]: { members: 0 } } }, "the ack");
    for (const [index, client] of clients.entries()) same(await client.join(name), [index + 1], "members");
    for (const data of [{ amount: 120 }, `é${SMILE}`, [1, [2]], null]) {
      same(await native.ask({ type: "publish", room: name, event: "bid", data }), { type: "ack", id: 1 }, "the ack");
      await each(clients, (client) => client.takes("bid", data));
      await clients[0].publish(name, "bid", data);
      same(await native.next(), { type: "event", room: name, event: "bid", data }, "the event");
      await each(clients.slice(1), (client) => client.takes("bid", data));
    }
    // Rooms of other namespaces are others.
    const custom = await Client.open({}, "/custom");
    same(await custom.join(name), [0], "members of the room of that name in /custom");
    await custom.publish(name, "elsewhere", 1);
    same(await native.ask({ type: "ping" }), { type: "pong", id: 1 }, "what comes next");
    await each(clients, (client) => client.fence());
    same(await native.ask({ type: "leave", rooms: [name] }), { type: "ack", id: 1 }, "the ack");
    await clients[0].publish(name, "unheard", 1);
    same(await native.ask({ type: "ping" }), { type: "pong", id: 1 }, "what comes next");
  },
};

const modes = Object.entries(MODES).flatMap(([mode, options]) =>
  Object.entries(forMode(options)).map(([name, check]) => [`${mode}: ${name}`, check]),
);
run({ ...Object.fromEntries(modes), ...between, ...(flags.includes("--without-native") ? {} : withNative) });
