// The native protocol (docs/protocol.md) as the stock `ws` client sees it.
//
//   npm ci && node native.mjs ws://127.0.0.1:7070/ws
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 60 s were not enough. The server
// needs its default limits and more than one shard: twelve clients are spread over them by the kernel.

import { setTimeout as delay } from "node:timers/promises";

const WebSocket = await import("ws").then(
  (module) => module.default,
  () => {
    console.error("the package ws is missing: run `npm ci` in tests/foreign/node");
    process.exit(1);
  },
);

const CLIENTS = 12;
const WAIT_MS = 10_000; // for one expected message
const TOTAL_MS = 60_000;

const url = process.argv[2];
if (!url) {
  console.error("usage: node native.mjs ws://HOST:PORT/ws");
  process.exit(1);
}

function fail(text) {
  throw new Error(text);
}

function same(actual, expected, what) {
  const [got, want] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (got !== want) fail(`${what}: expected ${want}, got ${got}`);
}

// Room names of their own for every run, so that two runs against one server do not meet.
let roomsNamed = 0;
const room = (label = "room") => `node:${process.pid}:${label}:${++roomsNamed}`;

class Client {
  // Opens a connection; rejects with the HTTP status when the server refuses it.
  static open(name, { address = url, protocols = [] } = {}) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(address, protocols, { handshakeTimeout: WAIT_MS });
      const client = new Client(name, socket);
      socket.on("open", () => resolve(client));
      socket.on("unexpected-response", (_, response) => reject(new Error(`HTTP ${response.statusCode}`)));
      socket.on("error", reject); // after the opening this has no effect: `close` follows and says what happened
    });
  }

  constructor(name, socket) {
    this.name = name;
    this.socket = socket;
    this.inbox = []; // what came and was not yet taken, in the order in which it came
    this.waiting = []; // who waits for something that has not come yet
    this.idsUsed = 0;
    socket.on("message", (bytes, isBinary) => this.receive(bytes, isBinary));
    this.closed = new Promise((resolve) => socket.on("close", resolve));
    this.closed.then((code) => this.waiting.splice(0).forEach((waiter) => waiter.gone(code)));
  }

  receive(bytes, isBinary) {
    if (isBinary) {
      const newline = bytes.indexOf(0x0a);
      const head = newline < 0 ? bytes : bytes.subarray(0, newline);
      this.hand({ ...parse(head.toString()), payload: bytes.subarray(head.length + 1) });
      return;
    }
    const parsed = parse(bytes.toString());
    const messages = Array.isArray(parsed.message) ? parsed.message : [parsed.message];
    messages.forEach((message) => this.hand({ message, raw: parsed.raw }));
  }

  hand(received) {
    const waiter = this.waiting.findIndex(({ matches }) => matches(received.message));
    if (waiter >= 0) this.waiting.splice(waiter, 1)[0].resolve(received);
    else this.inbox.push(received);
  }

  // The first message that matches, whether it is there or still to come.
  take(what, matches) {
    const found = this.inbox.findIndex(({ message }) => matches(message));
    if (found >= 0) return Promise.resolve(this.inbox.splice(found, 1)[0]);
    return new Promise((resolve, reject) => {
      const give_up = (why) => {
        this.waiting = this.waiting.filter((other) => other !== waiter);
        reject(new Error(`${this.name} waits for ${what}: ${why}; untaken: ${this.untaken()}`));
      };
      const timer = setTimeout(() => give_up(`nothing within ${WAIT_MS} ms`), WAIT_MS);
      const settle = (then) => (value) => (clearTimeout(timer), then(value));
      const gone = settle((code) => give_up(`the connection closed with ${code}`));
      const waiter = { matches, resolve: settle(resolve), gone };
      if (this.socket.readyState === WebSocket.CLOSED) gone("an earlier close");
      else this.waiting.push(waiter);
    });
  }

  takeEvent(name, event) {
    const matches = (message) => message.type === "event" && message.room === name && message.event === event;
    return this.take(`event ${event} in ${name}`, matches);
  }

  send(message) {
    this.socket.send(typeof message === "string" ? message : JSON.stringify(message));
  }

  // Sends a message with an id and returns the answer to it.
  async ask(message, send = (text) => this.send(text)) {
    const id = ++this.idsUsed;
    send(JSON.stringify({ ...message, id }));
    return (await this.take(`the answer to ${message.type} ${id}`, (answer) => answer.id === id)).message;
  }

  async acked(message, send) {
    const answer = await this.ask(message, send);
    same(answer.type, "ack", `${this.name}: answer to ${message.type} (${JSON.stringify(answer)})`);
    return answer;
  }

  join(...rooms) {
    return this.acked({ type: "join", rooms });
  }

  publish(name, event, data, more = {}) {
    return this.acked({ type: "publish", room: name, event, data, ...more });
  }

  publishBinary(head, payload) {
    return this.acked(head, (text) => this.socket.send(Buffer.concat([Buffer.from(`${text}\n`), payload])));
  }

  async refused(message, code) {
    const answer = await this.ask(message);
    same([answer.type, answer.code], ["error", code], `answer to ${JSON.stringify(message).slice(0, 200)}`);
    same(typeof answer.message, "string", "the type of an error's message");
  }

  // Everything sent before has been answered once this has come back.
  async fence() {
    same((await this.ask({ type: "ping" })).type, "pong", `${this.name}: answer to ping`);
  }

  untaken() {
    const shown = this.inbox.slice(0, 3).map(({ raw }) => raw.slice(0, 200));
    return `${this.inbox.length} messages${shown.length ? `, first ${shown.join(" ")}` : ""}`;
  }
}

function parse(raw) {
  try {
    return { message: JSON.parse(raw), raw };
  } catch (error) {
    return { message: { type: "not JSON", error: String(error) }, raw };
  }
}

function bounded(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${WAIT_MS} ms`)), WAIT_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const each = (clients, act) => Promise.all(clients.map(act));

// The checks, in the order of docs/protocol.md. Each has rooms of its own and leaves no message behind: what is left
// untaken after a check (an event too many, an answer nobody asked for) fails it.
const checks = {
  "the subprotocol throng.v1 comes back when it is offered, and only then": async () => {
    const offers = [
      [["throng.v1"], "throng.v1"],
      [["other", "throng.v1"], "throng.v1"],
      [[], ""],
    ];
    for (const [protocols, expected] of offers) {
      const client = await Client.open("guest", { protocols });
      same(client.socket.protocol, expected, `offered ${JSON.stringify(protocols)}`);
      client.socket.close(1000);
      await bounded(client.closed, "closing");
    }
  },

  "a path that does not exist is refused with 404": async () => {
    const address = new URL("/nowhere", url).href;
    const outcome = await Client.open("guest", { address }).then(() => "open", (error) => error.message);
    same(outcome, "HTTP 404", address);
  },

  "a join of 100 rooms tells for each how many were there before": async (crowd) => {
    const rooms = Array.from({ length: 100 }, () => room());
    for (const [before, client] of crowd.entries()) {
      const ack = await client.join(...rooms);
      same(Object.keys(ack.rooms).sort(), [...rooms].sort(), "rooms in the ack");
      for (const name of rooms) same(ack.rooms[name].members, before, `members of ${name}`);
    }
  },

  "all join many rooms at once; every event reaches every other member once, never its sender": async (crowd) => {
    const rooms = Array.from({ length: 100 }, () => room());
    await each(crowd, (client) => client.join(...rooms));
    const senderOf = (index) => crowd[index % crowd.length];
    await Promise.all(rooms.map((name, index) => senderOf(index).publish(name, "hello", { index })));
    await each(crowd, async (client) => {
      for (const [index, name] of rooms.entries()) {
        if (senderOf(index) === client) continue;
        const { message } = await client.takeEvent(name, "hello");
        same(message, { type: "event", room: name, event: "hello", data: { index } }, "the event");
      }
    });
  },

  "data arrives byte for byte as it was published, null when there was none": async ([sender, receiver]) => {
    const name = room();
    await receiver.join(name);
    const texts = [
      '{"a":1.0,"b":[ 1 , 2 ],"c":"\\u00e9\\/\\n"}',
      "123456789012345678901234567890",
      "-0",
      "1E2",
      '{"again":1,"again":2}',
      '" spaces  inside "',
      '"\u{1f642} é"',
      "[]",
      "false",
      "null",
    ];
    for (const [index, text] of texts.entries()) {
      sender.send(`{"type":"publish","data":${text},"room":${JSON.stringify(name)},"event":"data ${index}"}`);
      const { raw } = await receiver.takeEvent(name, `data ${index}`);
      if (!/[,}]/.test(raw[raw.indexOf(`"data":${text}`) + 7 + text.length] ?? "") || !raw.includes(`"data":${text}`))
        fail(`published data ${text}, got ${raw}`);
    }
    sender.send({ type: "publish", room: name, event: "nothing" });
    same((await receiver.takeEvent(name, "nothing")).message.data, null, "data that was left out");
  },

  "names of rooms and events may be any text": async ([sender, receiver]) => {
    const name = room('café "\u{1f642}" \\ 世界');
    await receiver.join(name);
    await sender.publish(name, 'naïve "event" \\ \u{1f680}', 1);
    await receiver.takeEvent(name, 'naïve "event" \\ \u{1f680}');
    const longest = room("").padEnd(200, "x");
    await receiver.join(longest);
    await sender.publish(longest, "e".repeat(200), 1);
    await receiver.takeEvent(longest, "e".repeat(200));
  },

  "with echo the sender gets its event too, if it is in the room": async ([member, other, outsider]) => {
    const name = room();
    await each([member, other], (client) => client.join(name));
    await member.publish(name, "mine", 1, { echo: true });
    await each([member, other], (client) => client.takeEvent(name, "mine"));
    await outsider.publish(name, "not mine", 1, { echo: true });
    await each([member, other], (client) => client.takeEvent(name, "not mine"));
  },

  "one need not be in a room to publish to it, and nobody need be there": async ([outsider, ...members]) => {
    const name = room();
    await outsider.publish(name, "unheard", 1);
    await each(members, (client) => client.join(name));
    await outsider.publish(name, "heard", 1);
    await each(members, (client) => client.takeEvent(name, "heard"));
  },

  "who has left gets no more events; leaving a room one is not in is no error": async ([sender, ...members]) => {
    const [name, kept] = [room(), room()];
    await each(members, (client) => client.join(name, kept));
    const [leavers, stayers] = [members.slice(0, 5), members.slice(5)];
    await each(leavers, async (client) => {
      same((await client.acked({ type: "leave", rooms: [name, room("never joined")] })).rooms, undefined, "rooms");
    });
    for (let index = 0; index < 20; index++) await sender.publish(name, `late ${index}`, index);
    await sender.publish(kept, "still", 1);
    await each(stayers, async (client) => {
      for (let index = 0; index < 20; index++) await client.takeEvent(name, `late ${index}`);
    });
    await each(members, (client) => client.takeEvent(kept, "still"));
    const { rooms } = await sender.join(name);
    same(rooms[name].members, stayers.length, "members that are left");
  },

  "a connection that vanishes is no member any more": async ([watcher, member]) => {
    const name = room();
    await member.join(name);
    const guest = await Client.open("guest");
    same((await guest.join(name)).rooms[name].members, 1, "members before the guest");
    guest.socket.terminate();
    const deadline = Date.now() + WAIT_MS;
    for (;;) {
      const { rooms } = await watcher.join(name);
      await watcher.acked({ type: "leave", rooms: [name] });
      if (rooms[name].members === 1) return;
      if (Date.now() > deadline) fail(`still ${rooms[name].members} members after ${WAIT_MS} ms`);
      await delay(20);
    }
  },

  "without an id there is no ack": async ([client, other]) => {
    const name = room();
    client.send({ type: "join", rooms: [name] });
    client.send({ type: "publish", room: name, event: "quiet", data: 1, echo: true });
    await client.takeEvent(name, "quiet");
    client.send({ type: "leave", rooms: [name] });
    await client.fence();
    same((await other.join(name)).rooms[name].members, 0, "members after leaving");
  },

  "ping is answered by pong; an id comes back as it was written": async ([client]) => {
    client.send({ type: "ping" });
    const { message } = await client.take("a pong without id", ({ type, id }) => type === "pong" && id === undefined);
    same(message, { type: "pong" }, "the pong");
    for (const id of ["7", "-1.50", "1e2", '"text"', '"\\u0041\\/"', `"${"x".repeat(62)}"`]) {
      client.send(`{"id":${id},"type":"ping"}`);
      const { raw } = await client.take(`a pong with id ${id}`, ({ type }) => type === "pong");
      if (!raw.includes(`"id":${id}`)) fail(`sent id ${id}, got ${raw}`);
    }
    await client.refused({ type: "nothing of the kind" }, "unknown_type");
  },

  "a WebSocket ping is answered with its payload": async (crowd) => {
    for (const [index, client] of crowd.entries()) {
      const payload = Buffer.alloc(index === 0 ? 0 : 114 + index, 65 + index);
      const pong = new Promise((resolve) => client.socket.once("pong", resolve));
      client.socket.ping(payload);
      const answer = await bounded(pong, `${client.name}: pong`);
      if (!payload.equals(answer)) fail(`sent a ping of ${payload.length} bytes, got a pong of ${answer.length}`);
    }
  },

  "a binary publish arrives as a binary frame with the same bytes": async ([sender, ...members]) => {
    const name = room();
    await each([sender, ...members], (client) => client.join(name));
    const everyByte = Buffer.from(Array.from({ length: 1024 }, (_, index) => index % 256));
    const payloads = [everyByte, Buffer.from("\n\n"), Buffer.alloc(0), Buffer.alloc(100_000, 0xff)];
    for (const [index, payload] of payloads.entries()) {
      await sender.publishBinary({ type: "publish", room: name, event: `tile ${index}` }, payload);
      await each(members, async (client) => {
        const received = await client.takeEvent(name, `tile ${index}`);
        same(received.message, { type: "event", room: name, event: `tile ${index}` }, "the JSON part");
        if (!received.payload?.equals(payload))
          fail(`${client.name}: sent ${payload.length} bytes, got ${received.payload?.length ?? "a text frame"}`);
      });
    }
    await sender.publishBinary({ type: "publish", room: name, event: "mine", echo: true }, everyByte);
    await each([sender, ...members], (client) => client.takeEvent(name, "mine"));
  },

  "an array of messages is carried out in order, each answered for itself": async ([client, member]) => {
    const [name, second] = [room(), room()];
    await member.join(name);
    client.send([
      { type: "join", rooms: [name], id: "a" },
      { type: "publish", room: name, event: "one", data: 1, id: "b" },
      { type: "nonsense", id: "c" },
      { type: "ping", id: "d" },
      { type: "publish", room: name, event: "two", data: 2 },
      { type: "leave", rooms: [name], id: "e" },
      { type: "join", rooms: [second], id: "f" },
    ]);
    const answers = [];
    for (let index = 0; index < 6; index++) {
      const { message } = await client.take("an answer", ({ type }) => type !== "event");
      answers.push([message.id, message.type, message.code]);
    }
    const expected = [
      ["a", "ack"],
      ["b", "ack"],
      ["c", "error", "unknown_type"],
      ["d", "pong"],
      ["e", "ack"],
      ["f", "ack"],
    ];
    same(answers, expected.map(([id, type, code]) => [id, type, code]), "answers");
    await member.takeEvent(name, "one");
    await member.takeEvent(name, "two");
    client.send("[]");
  },

  "an echo comes back to who is in the room at the publish's place in the array": async ([client]) => {
    const name = room();
    const publication = { type: "publish", room: name, data: 1, echo: true };
    client.send([
      { ...publication, event: "before joining" },
      { type: "join", rooms: [name] },
      { ...publication, event: "as a member" },
      { type: "leave", rooms: [name] },
      { ...publication, event: "after leaving" },
    ]);
    const { message } = await client.take("the echo", ({ type }) => type === "event");
    same(message.event, "as a member", "the event that came back");
  },

  "errors have their codes and do not end the connection": async ([client]) => {
    const name = room();
    for (const text of ["{", "", '{"type":"ping"', '{"type":"ping"} x', "nonsense", '[{"type":"ping"}', "{'type':1}"]) {
      client.send(text);
      const { message } = await client.take(`an error for ${text}`, ({ type }) => type === "error");
      same(message.code, "bad_json", `code for ${text}`);
    }
    const deep = "[".repeat(121) + "]".repeat(121);
    client.send(`{"type":"publish","room":${JSON.stringify(name)},"event":"e","data":${deep}}`);
    const { message } = await client.take("an error for deep data", ({ type }) => type === "error");
    same(message.code, "bad_json", "code for data that nests 121 deep");
    const refusals = [
      [{ type: "shout" }, "unknown_type"],
      [{ type: "join" }, "bad_message"],
      [{ type: "join", rooms: name }, "bad_message"],
      [{ type: "join", rooms: [7] }, "bad_message"],
      [{ type: "leave", rooms: { [name]: true } }, "bad_message"],
      [{ type: "publish", event: "e" }, "bad_message"],
      [{ type: "publish", room: name }, "bad_message"],
      [{ type: "publish", room: name, event: 1 }, "bad_message"],
      [{ type: "publish", room: name, event: "e", echo: "yes" }, "bad_message"],
      [{ type: "join", rooms: [""] }, "bad_room"],
      [{ type: "join", rooms: ["x".repeat(201)] }, "bad_room"],
      [{ type: "join", rooms: ["tab\there"] }, "bad_room"],
      [{ type: "publish", room: "nul\0", event: "e" }, "bad_room"],
      [{ type: "publish", room: name, event: "" }, "bad_event"],
      [{ type: "publish", room: name, event: "x".repeat(201) }, "bad_event"],
      [{ type: "publish", room: name, event: "line\nfeed" }, "bad_event"],
    ];
    for (const [refused, code] of refusals) await client.refused(refused, code);
  },

  "a join is carried out whole or not at all": async ([client, other]) => {
    const name = room();
    await client.refused({ type: "join", rooms: [name, ""] }, "bad_room");
    same((await other.join(name)).rooms[name].members, 0, "members after a refused join");
    await other.publish(name, "unheard", 1);
  },

  "too many rooms and too many messages are refused": async ([client, other]) => {
    const rooms = Array.from({ length: 1025 }, () => room());
    await client.refused({ type: "join", rooms }, "too_many_rooms");
    same((await other.join(rooms[0])).rooms[rooms[0]].members, 0, "members after a refused join");
    const publication = { type: "publish", room: rooms[0], event: "unheard", data: 1 };
    client.send(Array.from({ length: 1025 }, () => publication));
    const error = (await client.take("an error", ({ type }) => type === "error")).message;
    same(error.code, "too_many_messages", "code for 1,025 messages in one frame");
    client.send(Array.from({ length: 1024 }, (_, index) => ({ ...publication, event: `heard ${index}` })));
    for (let index = 0; index < 1024; index++) {
      const { message } = await other.take(`heard ${index}`, ({ type }) => type === "event");
      same(message.event, `heard ${index}`, "the event's place in the order");
    }
  },

  "a message in fragments, with a ping between them, is one message": async ([sender, receiver]) => {
    const name = room();
    await receiver.join(name);
    const text = JSON.stringify({ type: "publish", room: name, event: "parts", data: "é\u{1f642}".repeat(200) });
    const bytes = Buffer.from(text);
    const pong = new Promise((resolve) => sender.socket.once("pong", resolve));
    for (let start = 0; start < bytes.length; start += 7) {
      sender.socket.send(bytes.subarray(start, start + 7), { binary: false, fin: start + 7 >= bytes.length });
      if (start === 70) sender.socket.ping("between");
    }
    same((await receiver.takeEvent(name, "parts")).message.data, "é\u{1f642}".repeat(200), "data");
    same(String(await bounded(pong, "pong")), "between", "pong");
  },

  "an event of 200 KB reaches every member": async ([sender, ...members]) => {
    const name = room();
    await each(members, (client) => client.join(name));
    const data = "0123456789".repeat(20_000);
    await sender.publish(name, "large", data);
    await each(members, async (client) => {
      if ((await client.takeEvent(name, "large")).message.data !== data) fail(`${client.name}: the data differs`);
    });
  },

  "1,000 messages of each of two publishers arrive in one order at all members of each room": async (crowd) => {
    const rooms = [room("order"), room("order")];
    const publishers = crowd.slice(0, 2);
    const perPublisher = 1000;
    await each(crowd, (client) => client.join(...rooms));
    const sent = publishers.map((client, from) => {
      const messages = [];
      for (let n = 0; n < perPublisher; n++)
        for (const name of rooms) messages.push({ type: "publish", room: name, event: "n", data: { from, n } });
      // One sends every message in a frame of its own, the other fifty in one frame.
      if (from === 0) messages.forEach((message) => client.send(message));
      else for (let start = 0; start < messages.length; start += 50) client.send(messages.slice(start, start + 50));
      return client.fence();
    });
    const orders = await each(crowd, async (client) => {
      const order = new Map(rooms.map((name) => [name, []]));
      const expected = rooms.length * perPublisher * (publishers.includes(client) ? 1 : 2);
      for (let count = 0; count < expected; count++) {
        const { message } = await client.take(`event ${count + 1} of ${expected}`, ({ type }) => type === "event");
        order.get(message.room).push(message.data);
      }
      return order;
    });
    await Promise.all(sent);
    for (const name of rooms) {
      const reference = orders.at(-1).get(name);
      for (const from of [0, 1]) {
        const numbers = reference.filter((data) => data.from === from).map(({ n }) => n);
        same(numbers, [...Array(perPublisher).keys()], `${name}: the order of publisher ${from}`);
      }
      for (const [index, client] of crowd.entries()) {
        // A publisher does not get its own, but the other's in the same order.
        const order = reference.filter(({ from }) => client !== publishers[from]);
        if (JSON.stringify(orders[index].get(name)) !== JSON.stringify(order))
          fail(`${name}: ${client.name} saw another order than ${crowd.at(-1).name}`);
      }
    }
  },

  "a client's own close code comes back to it": async () => {
    for (const code of [1000, 1001, 3001, 4999]) {
      const client = await Client.open("guest");
      client.socket.close(code, "bye");
      same(await bounded(client.closed, `closing with ${code}`), code, "close code");
    }
  },

  "what breaks the rules is closed with 1002, 1007 or 1009": async () => {
    const frames = (client) => {
      for (let count = 0; count < 4096; count++) client.socket.send("x", { fin: false });
      client.socket.send("x");
    };
    const offences = [
      [1009, "a text message of 1 MiB and 1 byte", (client) => client.socket.send("x".repeat(1_048_577))],
      [1009, "a message in 4,097 frames", frames],
      [1007, "text that is not UTF-8", (client) => client.socket.send(Buffer.from([0xff]), { binary: false })],
      [1002, "a frame without a mask", (client) => client.socket.send("{}", { mask: false })],
    ];
    for (const [code, what, offend] of offences) {
      const client = await Client.open("guest");
      offend(client);
      same(await bounded(client.closed, what), code, `close code for ${what}`);
    }
  },

  "a message of 1 MiB is still taken": async () => {
    const client = await Client.open("guest");
    const ping = '{"type":"ping","id":1}';
    client.send(ping.padEnd(1_048_576, " "));
    await client.take("a pong", ({ type }) => type === "pong");
    client.socket.close(1000);
    same(await bounded(client.closed, "closing"), 1000, "close code");
  },
};

let [passed, failed, current] = [0, 0, "opening the connections"];

function end() {
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

function report(name, error) {
  if (error) failed += 1;
  else passed += 1;
  console.log(error ? `FAILED  ${name}: ${error.message}` : `ok      ${name}`);
}

setTimeout(() => {
  report(current, new Error(`not done when ${TOTAL_MS / 1000} s were over`));
  end();
}, TOTAL_MS);

const openCrowd = () => each([...Array(CLIENTS).keys()], (index) => Client.open(`client ${index}`));

let crowd;
try {
  crowd = await openCrowd();
  for (const [name, check] of Object.entries(checks)) {
    current = name;
    try {
      await check(crowd);
      await each(crowd, (client) => client.fence());
      for (const client of crowd)
        if (client.inbox.length > 0) fail(`${client.name} got more than expected: ${client.untaken()}`);
      report(name);
    } catch (error) {
      report(name, error);
      // Start afresh, so that one failure does not spoil the checks after it.
      crowd.forEach((client) => client.socket.terminate());
      crowd = await openCrowd();
    }
  }
} catch (error) {
  report("opening the connections", error);
}
end();
