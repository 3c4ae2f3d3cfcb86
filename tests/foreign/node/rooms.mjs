// Policies for rooms, seen by the stock `socket.io-client`, with both transports.
//
//   npm ci && node rooms.mjs http://127.0.0.1:7070
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The server has the rooms of
// tests/it/rooms.rs.

import WebSocket from "ws";
import { address, afterwards, bounded, run, same, WAIT_MS } from "./checks.mjs";

const { io } = await import("socket.io-client").catch(() => {
  console.error("the package socket.io-client is missing: run `npm ci` in tests/foreign/node");
  process.exit(1);
});

const { url } = address("node rooms.mjs http://HOST:PORT");

class Client {
  static async open(transports, namespace = "/") {
    const client = new Client(transports, namespace);
    await bounded(new Promise((resolve) => client.socket.once("connect", resolve)), "connect");
    return client;
  }

  constructor(transports, namespace) {
    this.socket = io(`${url}${namespace}`, { forceNew: true, transports, timeout: WAIT_MS });
    this.inbox = [];
    this.waiting = null;
    this.socket.onAny((...event) => {
      if (!this.waiting) return void this.inbox.push(event);
      this.waiting(event);
      this.waiting = null;
    });
    afterwards(() => this.socket.disconnect());
  }

  join(room) {
    return bounded(this.socket.emitWithAck("join", { room }), "join");
  }

  publish(room, event, data, more = {}) {
    return bounded(this.socket.emitWithAck("publish", { room, event, data, ...more }), "publish");
  }

  async hears(...expected) {
    const next = this.inbox.length > 0 ? this.inbox.shift() : new Promise((resolve) => (this.waiting = resolve));
    same(await bounded(Promise.resolve(next), JSON.stringify(expected)), expected);
  }
}

const both = async (transports, namespace, room) => {
  const [one, two] = [await Client.open(transports, namespace), await Client.open(transports, namespace)];
  await Promise.all([one.join(room), two.join(room)]);
  return [one, two];
};

let rooms = 0;
const checks = {};
for (const transports of [["websocket"], ["polling"]]) {
  const check = (name, body) => (checks[`${name} (${transports})`] = () => body(`${process.pid}:${++rooms}`));

  check("a full batch leaves at once, without what its receiver published", async (id) => {
    const room = `batch:${id}`;
    const [one, two] = await both(transports, "/", room);
    await one.publish(room, "a", { n: 1 });
    await two.publish(room, "b", "two");
    await one.publish(room, "c", null);
    await one.hears("b", "two");
    await two.hears("batch", [{ event: "a", data: { n: 1 } }, { event: "c", data: null }]);
  });

  check("a batch leaves at the end of its window", async (id) => {
    const room = `batch:${id}`;
    const [one, two] = await both(transports, "/", room);
    await one.publish(room, "a", 1);
    await one.publish(room, "a", 2);
    await two.hears("batch", [{ event: "a", data: 1 }, { event: "a", data: 2 }]);
    await one.publish(room, "a", 3);
    await two.hears("a", 3);
  });

  check("binary values do not wait", async (id) => {
    const room = `batch:${id}`;
    const [one, two] = await both(transports, "/", room);
    await one.publish(room, "a", 1);
    await one.publish(room, "bytes", { bytes: Buffer.from("abc") });
    await two.hears("a", 1);
    await two.hears("bytes", { bytes: Buffer.from("abc") });
  });

  check("a namespace has batches of its own", async (id) => {
    const room = `data:${id}`;
    const [one, two] = await both(transports, "/guild/7", room);
    await one.publish(room, "x", { n: 1 }, { echo: true });
    await one.publish(room, "y", { n: 2 }, { echo: true });
    await one.publish(room, "z", { n: 3 }, { echo: true });
    for (const client of [one, two]) await client.hears("events", [{ n: 1 }, { n: 2 }, { n: 3 }]);
    const [main, other] = await both(transports, "/", room);
    await main.publish(room, "x", 1);
    await other.hears("x", 1);
  });

  check("the latest of each key", async (id) => {
    const room = `conflate:${id}`;
    const [one, two] = await both(transports, "/", room);
    await one.publish(room, "tick", { a: { id: 1 }, n: 1 });
    await one.publish(room, "say", { a: { id: 1 }, n: 2 });
    await one.publish(room, "say", { a: { id: 1 }, n: 3 });
    await one.publish(room, "tick", { a: { id: 1 }, n: 4 });
    await two.hears("say", { a: { id: 1 }, n: 2 });
    await two.hears("say", { a: { id: 1 }, n: 3 });
    await two.hears("tick", { a: { id: 1 }, n: 4 });
  });

  check("the publisher of the latest does not get it, and urgent events go by", async (id) => {
    const room = `conflate:${id}`;
    const [one, two] = await both(transports, "/", room);
    await one.publish(room, "tick", { a: { id: 1 }, n: 1 });
    await two.publish(room, "tick", { a: { id: 1 }, n: 2 });
    await two.publish(room, "end", "now");
    await one.hears("tick", { a: { id: 1 }, n: 2 });
    await one.hears("end", "now");
    await two.publish(room, "end", "again", { echo: true });
    await two.hears("end", "again");
  });

  check("only changes, and the whole for who joins", async (id) => {
    const room = `changes:${id}`;
    const [one, two] = await both(transports, "/", room);
    await one.publish(room, "state", { a: 1, b: { c: 2, d: 3 } });
    await one.publish(room, "state", { a: 1, b: { c: 2, d: 4 } });
    await one.publish(room, "state", { b: { c: 2, d: 4 } });
    for (const client of [one, two]) {
      await client.hears("state", { a: 1, b: { c: 2, d: 3 } });
      await client.hears("state", { b: { d: 4 } });
      await client.hears("state", { a: null });
    }
    const late = await Client.open(transports);
    await late.join(room);
    await late.hears("state", { b: { c: 2, d: 4 } });
    await late.publish(room, "other", { a: 7 });
    await two.hears("other", { a: 7 });
  });

  check("the state of a room that nobody was in", async (id) => {
    const room = `changes:${id}`;
    const one = await Client.open(transports);
    await one.publish(room, "state", { a: 1 });
    await one.publish(room, "state", { a: 2 });
    const late = await Client.open(transports);
    await late.join(room);
    await late.hears("state", { a: 2 });
  });

  check("what comes again is left out", async (id) => {
    const room = `dedupe:${id}`;
    const [one, two] = await both(transports, "/", room);
    await one.publish(room, "paid", { id: "o-1" });
    await two.publish(room, "paid", { id: "o-1" });
    await one.publish(room, "paid", { id: 1 });
    await two.hears("paid", { id: "o-1" });
    await two.hears("paid", { id: 1 });
  });

  check("several events become one", async (id) => {
    const room = `merge:${id}`;
    const [one, two] = await both(transports, "/", room);
    await one.publish(room, "one", { n: 1 });
    await one.publish(room, "two", [2]);
    await two.hears("batch_update", { first: { n: 1 }, second: [2] });
    await one.publish(room, "one", 3);
    await one.publish(room, "one", 4);
    await one.publish(room, "other", 5);
    await two.hears("one", 3);
    await two.hears("one", 4);
    await two.hears("other", 5);
  });
}

// A client of Engine.IO in its bare words, which moves to a WebSocket when it wants to.
checks["who moves to a WebSocket while its event waits does not get it back"] = async () => {
  const at = `${url}/socket.io/?EIO=4&transport=`;
  const room = `later:move:${process.pid}`;
  const get = async (sid) => (await fetch(`${at}polling${sid ? `&sid=${sid}` : ""}`)).text();
  const { sid } = JSON.parse((await get()).slice(1));
  const post = (body) => fetch(`${at}polling&sid=${sid}`, { method: "POST", body });
  await post("40");
  await get(sid);
  await post(`420["join",{"room":"${room}"}]`);
  same((await get(sid)).startsWith("430"), true, "it has joined");
  const other = await Client.open(["websocket"]);
  await other.join(room);
  await post(`42["publish",{"room":"${room}","event":"tick","data":{"a":{"id":1},"by":"mover"}}]`);
  const heard = [];
  const polled = get(sid).then((packet) => heard.push(packet));
  const socket = new WebSocket(`${at}websocket&sid=${sid}`.replace("http", "ws"));
  afterwards(() => socket.close());
  let hasMoved;
  const moved = new Promise((resolve) => (hasMoved = resolve));
  const marked = new Promise((resolve) => {
    socket.on("message", (data) => {
      const packet = String(data);
      if (packet === "3probe") {
        socket.send("5");
        // An answer on the WebSocket: it has moved.
        socket.send(`421["join",{"room":"${room}"}]`);
      }
      else heard.push(packet);
      if (packet.startsWith("431")) hasMoved();
      if (packet.includes("mark")) resolve();
    });
  });
  socket.on("open", () => socket.send("2probe"));
  await bounded(polled, "its poll ends");
  await bounded(moved, "it has moved");
  // What waits leaves now.
  await other.publish(room, "end", "mark");
  await other.hears("tick", { a: { id: 1 }, by: "mover" });
  await bounded(marked, "the event behind it");
  same(heard.filter((packet) => packet.includes("mover")), [], "its own event");
};

await run(checks);
