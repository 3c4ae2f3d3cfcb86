// Stock clients of Socket.IO against several throngs behind one address: a shared port, or a load balancer. Half of the clients poll first and
// then move to a WebSocket, the others poll for good. In a session, everybody hears everything once and in order.
//
//   npm ci && node fleet.mjs http://127.0.0.1:7070
//   npm ci && node fleet.mjs http://127.0.0.1:7070 --for-ms=8000
//
// With --for-ms, the clients publish all the time and come back when they are closed, while somebody restarts one throng after the other;
// then all are there and hear each other. With --sticky they keep cookies, as browsers do; with --sources each comes from an address of
// its own. Prints one line per check and the count; the exit status is 1 when a check failed.

import { Agent } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import { address, bounded, fail, run, same, until } from "./checks.mjs";

const { io } = await import("socket.io-client").catch(() => {
  console.error("the package socket.io-client is missing: run `npm ci` in tests/foreign/node");
  process.exit(1);
});

const { url, flags } = address("node fleet.mjs http://HOST:PORT [--for-ms=N] [--sticky] [--sources]");
const forMs = Number(flags.find((flag) => flag.startsWith("--for-ms="))?.slice("--for-ms=".length) ?? 0);
const COUNT = 50; // clients
const EACH = 4; // events of each
const ROOM = `fleet:${process.pid}`;

class Client {
  constructor(number) {
    this.number = number;
    this.polls = number % 2 === 0;
    const transports = this.polls ? ["polling"] : ["polling", "websocket"];
    const again = { reconnection: forMs > 0, reconnectionDelay: 100, reconnectionDelayMax: 1000 };
    const agent = flags.includes("--sources") ? new Agent({ localAddress: `127.0.1.${number + 1}` }) : undefined;
    this.socket = io(url, { forceNew: true, transports, agent, withCredentials: flags.includes("--sticky"), ...again });
    [this.markers, this.heard, this.faults, this.drops] = [0, new Map(), [], 0];
    this.socket.on("connect", () => {
      // A new session may be with another throng, which may be behind the one before.
      if (!this.socket.recovered) this.heard.clear();
      this.socket.emit("join", ROOM, () => (this.isIn = true));
    });
    this.socket.on("connect_error", (error) => this.faults.push(`${error.message}: ${error.description ?? ""} ${error.context?.responseText ?? ""}`));
    this.socket.on("disconnect", (reason) => {
      this.isIn = false;
      this.drops += 1;
      this.faults.push(reason);
    });
    this.socket.on("marker", () => (this.markers += 1));
    this.socket.on("n", ([by, value]) => {
      const last = this.heard.get(by) ?? -1;
      if (value <= last) this.faults.push(`${value} of ${by} after ${last}`);
      this.heard.set(by, value);
      if (forMs === 0 && value !== last + 1) this.faults.push(`${value} of ${by} after ${last}`);
    });
  }

  publish(event, data) {
    this.socket.emit("publish", ROOM, event, data);
  }
}

// All are in the room, and so are the processes: what one says is heard by all others.
async function heardByAll(clients) {
  await until("all are in the room", () => clients.every((client) => client.isIn));
  for (const client of clients) client.markers = 0;
  await until("all are heard", async () => {
    for (const client of clients.slice(0, 8)) client.publish("marker", null);
    await delay(100);
    return clients.every((client) => client.markers > 0);
  });
}

const clients = Array.from({ length: COUNT }, (_, number) => new Client(number));
const withoutFault = () => same(clients.flatMap((client) => client.faults), [], "what went wrong");

const whole = {
  async "all come in, and those that may move to a WebSocket"() {
    await heardByAll(clients);
    const transport = (client) => client.socket.io.engine.transport.name;
    await until("all have moved", () => clients.every((client) => transport(client) === (client.polls ? "polling" : "websocket")));
    withoutFault();
  },

  async "everybody hears everything once and in order"() {
    for (let value = 0; value < EACH; value += 1) for (const client of clients) client.publish("n", [client.number, value]);
    const isDone = (client) => clients.every((other) => other === client || client.heard.get(other.number) === EACH - 1);
    await until("all has arrived", () => clients.every(isDone)).catch((error) => {
      withoutFault();
      throw error;
    });
    withoutFault();
  },

  async "and all can go"() {
    await delay(500); // nothing comes twice
    withoutFault();
    for (const client of clients) client.socket.disconnect();
    same(clients.flatMap((client) => client.faults).filter((fault) => fault !== "io client disconnect"), [], "what went wrong");
    await delay(300);
  },
};

const restarted = {
  async "all come in"() {
    await heardByAll(clients);
  },

  async "all who are closed come back while the others go on"() {
    const end = Date.now() + forMs;
    let value = 0;
    while (Date.now() < end) {
      for (const client of clients) if (client.isIn) client.publish("n", [client.number, value]);
      value += 1;
      await delay(100);
    }
    const resets = clients.flatMap((client) => client.faults).filter((fault) => fault.includes("ECONN")).length;
    console.log(`${resets} requests were reset, ${clients.reduce((sum, client) => sum + client.drops, 0)} sessions ended`);
    if (!clients.some((client) => client.drops > 0)) fail("nobody was closed");
    if (clients.some((client) => client.drops > 6)) fail(`somebody was closed again and again: ${clients.map((client) => client.drops)}`);
    const twice = clients.flatMap((client) => client.faults).filter((fault) => fault.includes(" after "));
    same(twice, [], "what came twice");
  },

  async "then everybody hears everybody"() {
    await heardByAll(clients);
    for (const client of clients) client.heard.clear();
    for (const client of clients) client.publish("n", [client.number, 0]);
    const isDone = (client) => clients.every((other) => other === client || client.heard.get(other.number) === 0);
    await bounded(until("all has arrived", () => clients.every(isDone)), "everybody hears everybody");
    for (const client of clients) client.socket.disconnect();
    await delay(300);
  },
};

await run(forMs > 0 ? restarted : whole);
