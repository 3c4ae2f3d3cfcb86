// AdStack's "Performance Optimization Guide", section by section, with stock `socket.io-client` against examples/adstack/throng.toml.
//
//   node app_adstack.mjs http://HOST:PORT --control=http://…,http://… --redis=redis://HOST:PORT --key=KEY --secret=SECRET
//
// Two processes share the port; --control names the control ports of both. Prints a line for each check and the count.

import { setTimeout as delay } from "node:timers/promises";
import { Emitter } from "@socket.io/redis-emitter";
import { SignJWT } from "jose";
import { createClient } from "redis";
import { io } from "socket.io-client";
import { WebSocket } from "ws";
import { WAIT_MS, afterwards, bounded, fail, run, same, show, until } from "./checks.mjs";

const url = process.argv[2];
const flag = (name) => process.argv.find((argument) => argument.startsWith(`--${name}=`))?.slice(name.length + 3);
const [controls, key, secret] = [flag("control").split(","), flag("key"), flag("secret")];

const redis = createClient({ url: flag("redis") });
redis.on("error", () => {});
await redis.connect();
const emitter = new Emitter(redis);

let users = 0;
const token = (user) =>
  new SignJWT({ sub: user, exp: Math.floor(Date.now() / 1000) + 600 })
    .setProtectedHeader({ alg: "HS256" })
    .sign(new TextEncoder().encode(secret));

// A client that is there, of a user of its own, and keeps what it is told: `told` has all events with their names.
async function client({ user = `user-${++users}`, ...options } = {}) {
  const socket = io(url, { forceNew: true, reconnection: false, auth: { token: await token(user) }, ...options });
  afterwards(() => socket.disconnect());
  socket.told = [];
  socket.onAny((...event) => socket.told.push(event));
  socket.gone = new Promise((resolve) => socket.once("disconnect", resolve));
  socket.ask = (event, ...args) => socket.timeout(WAIT_MS).emitWithAck(event, ...args);
  // What came of a contract, whether together or alone, in order.
  socket.events = () => socket.told.flatMap(([event, data]) => (event === "events" ? data : event === "event" ? [data] : []));
  const failed = new Promise((_, reject) => socket.once("connect_error", reject));
  await bounded(Promise.race([new Promise((resolve) => socket.once("connect", resolve)), failed]), "connect");
  return socket;
}

async function subscribed(contractId, options) {
  const socket = await client(options);
  same(await socket.ask("subscribe", { contractId }), { subscribed: contractId }, "the ack");
  return socket;
}

async function control(port, path, body) {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const answer = await fetch(port + path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  if (!answer.ok) fail(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

const publish = (publications, at = 0) => control(controls[at], "/v1/publish", { publications });

// Clients of a contract on both processes, which have both heard of it.
async function watchers(contractId) {
  const sockets = [];
  const isOnBoth = async () => {
    sockets.push(await subscribed(contractId));
    const rooms = await Promise.all(controls.map((port) => control(port, `/v1/rooms/contract:${contractId}`)));
    return rooms.every(({ members }) => members > 0);
  };
  await until("members on both processes", isOnBoth);
  // Events between processes come once both have asked Redis for them.
  for (const at of [0, 1]) {
    await until("both hear", async () => {
      await publish([{ room: `contract:${contractId}`, event: "event", data: "hello" }], at);
      await delay(20);
      return sockets.every((socket) => socket.events().includes("hello"));
    });
    await delay(300);
    for (const socket of sockets) socket.told.length = 0;
  }
  return sockets;
}

// What a session over polling is told as it begins, without staying.
async function handshake(headers = {}) {
  const base = `${url}/socket.io/?EIO=4&transport=polling`;
  const answer = await fetch(base, { headers });
  const opened = JSON.parse((await answer.text()).slice(1));
  await fetch(`${base}&sid=${opened.sid}`, { method: "POST", body: "1" });
  return { ...opened, headers: answer.headers };
}

run({
  "Transport Configuration: websocket and polling, upgraded to WebSocket": async () => {
    const socket = await client();
    await until("the upgrade", () => socket.io.engine.transport.name === "websocket");
    const polling = await subscribed("t", { transports: ["polling"] });
    const direct = await subscribed("t", { transports: ["websocket"] });
    same([polling, direct].map(({ io }) => io.engine.transport.name), ["polling", "websocket"], "as they want");
  },
  "Transport Configuration: ping 25 s, timeout 60 s, 10 KB": async () => {
    const { pingInterval, pingTimeout, maxPayload, upgrades } = await handshake();
    same([pingInterval, pingTimeout, maxPayload, upgrades], [25000, 60000, 10240, ["websocket"]], "the handshake");
  },
  "Transport Configuration: perMessageDeflate: false": async () => {
    const socket = new WebSocket(`${url.replace("http", "ws")}/socket.io/?EIO=4&transport=websocket`);
    afterwards(() => socket.terminate());
    await bounded(new Promise((resolve) => socket.once("open", resolve)), "open");
    same(socket.extensions, "", "nothing is agreed on, though it was offered");
    same((await handshake({ "accept-encoding": "gzip" })).headers.get("content-encoding"), null, "polling");
  },
  "Transport Configuration: maxHttpBufferSize 10240": async () => {
    const socket = await client({ transports: ["websocket"] });
    // The frame is 420["subscribe",{…}], with a 4 of Engine.IO and a 0 that asks for the ack in it.
    const filled = (bytes) => {
      const length = JSON.stringify(["subscribe", { contractId: "1", pad: "" }]).length + 3;
      return { contractId: "1", pad: "x".repeat(bytes - length) };
    };
    same(await socket.ask("subscribe", filled(10240)), { subscribed: "1" }, "10,240 bytes are taken");
    socket.emit("subscribe", filled(10241), () => {});
    await bounded(socket.gone, "one more ends the connection");
  },
  "Transport Configuration: allowEIO3 is not there, and is told": async () => {
    const answer = await fetch(`${url}/socket.io/?EIO=3&transport=polling`);
    same([answer.status, (await answer.json()).code], [400, 5], "unsupported protocol version");
  },
  "Batch Events: ten at once, or those of 100 ms, as a list `events`": async () => {
    const sockets = await watchers("b1");
    for (const at of [0, 1]) {
      for (const socket of sockets) socket.told.length = 0;
      const events = Array.from({ length: 25 }, (_, id) => ({ id, at, type: "click" }));
      await publish(events.map((data) => ({ room: "contract:b1", event: "event", data })), at);
      for (const socket of sockets) {
        await until("all events", () => socket.events().length >= 25);
        same(socket.events(), events, "each once, in order");
        const sizes = socket.told.map(([event, data]) => (event === "events" ? data.length : 1));
        if (sizes.length > 6 || sizes.some((size) => size > 10) || !sizes.includes(10)) fail(`messages of ${show(sizes)} events`);
      }
    }
  },
  "Batch Events: what comes within 100 ms is one message, by the Redis emitter, too": async () => {
    const sockets = await watchers("b2");
    for (const id of [1, 2, 3]) emitter.to("contract:b2").emit("event", { id });
    for (const socket of sockets) {
      await until("three events", () => socket.events().length === 3);
      same(socket.events(), [{ id: 1 }, { id: 2 }, { id: 3 }], "in order");
      same(socket.told.length < 3, true, `together: ${show(socket.told)}`);
    }
    for (const socket of sockets) socket.told.length = 0;
    emitter.to("contract:b2").emit("event", { id: 4 });
    for (const socket of sockets) {
      await until("the fourth", () => socket.told.length > 0);
      same(socket.told, [["events", [{ id: 4 }]]], "one alone is a list, too");
    }
  },
  "Binary Data: `data` is a Buffer, however large": async () => {
    const sockets = [await subscribed("d", { transports: ["polling"] }), await subscribed("d", { transports: ["websocket"] })];
    const large = { rows: Array.from({ length: 5000 }, (_, id) => ({ id, name: `row ${id}` })) };
    const buffer = Buffer.from(JSON.stringify(large));
    await until("the room is heard", async () => {
      emitter.to("contract:d").emit("data", buffer);
      await delay(50);
      return sockets.every((socket) => socket.told.length > 0);
    });
    for (const socket of sockets) {
      const [event, received] = socket.told[0];
      same(event, "data", "not batched");
      same(JSON.parse(Buffer.from(received).toString()), large, `${buffer.length} bytes`);
    }
  },
  "Room Optimization: io.to(`contract:${contractId}`) reaches who has subscribed": async () => {
    const [one, other] = [await subscribed("r1"), await subscribed("r2")];
    const ends = async () => {
      emitter.to("contract:r2").emit("event", "end");
      await delay(50);
      return other.events().includes("end");
    };
    emitter.to("contract:r1").emit("event", { id: 1 });
    await until("the end", ends);
    same(other.events().filter((event) => event !== "end"), [], "nothing of another contract");
    await one.ask("unsubscribe", { contractId: "r1" });
    one.told.length = 0;
    emitter.to("contract:r1").emit("event", { id: 2 });
    await until("the end", ends);
    same(one.told, [], "nothing after it has left");
  },
  "Room Optimization: clients only listen": async () => {
    const socket = await client();
    for (const [event, args] of [
      ["join", { room: "elsewhere" }],
      ["publish", { room: "contract:x", event: "event", data: 1 }],
    ]) {
      same((await socket.ask(event, args)).error?.code, "forbidden", event);
    }
    same((await socket.ask("subscribe", { contractId: "../x" })).error?.code, "bad_room", "no other room");
  },
  "Redis Pub/Sub for Multi-Instance: global_events reach everybody": async () => {
    const sockets = await Promise.all(Array.from({ length: 8 }, () => client()));
    same(await redis.publish("global_events", JSON.stringify("hello")), 2, "both processes listen");
    const events = [{ id: 1, text: "ünï" }, { id: 2, rows: Array(500).fill("x") }, { id: 3 }];
    for (const event of events) await redis.publish("global_events", JSON.stringify(event));
    for (const socket of sockets) {
      await until("all three", () => socket.events().length >= 4);
      same(socket.told, ["hello", ...events].map((event) => ["event", event]), "one by one, in order");
    }
    emitter.emit("event", { id: 4 });
    for (const socket of sockets) await until("by the emitter", () => socket.events().some(({ id }) => id === 4));
  },
  "Lua Scripts for Atomic Operations: 10 in 60 s, over both processes": async () => {
    const sockets = [];
    const isOnBoth = async () => {
      sockets.push(await client({ user: "eager", transports: ["websocket"] }));
      const counts = await Promise.all(controls.map((port) => control(port, "/v1/users/eager")));
      return counts.every(({ connections }) => connections > 0);
    };
    await until("connections of one user to both processes", isOnBoth);
    let allowed = 0;
    for (let sent = 0; sent < 24; sent += 1) {
      const answer = await sockets[sent % sockets.length].ask("subscribe", { contractId: "l" });
      if (answer.subscribed) allowed += 1;
      else same(answer.error?.code, "rate_limited", "refused");
      await delay(120);
    }
    // Processes tell each other ten times a second: beyond the limit there may be one of the second process.
    if (allowed < 10 || allowed > 11) fail(`${allowed} were allowed`);
    const another = await subscribed("l");
    another.emit("unsubscribe", {});
  },
  "Sticky Sessions: polling clients need none, with several processes on one port": async () => {
    const sockets = await Promise.all(Array.from({ length: 16 }, () => subscribed("s", { transports: ["polling"] })));
    emitter.to("contract:s").emit("event", { id: 1 });
    await until("all hear", async () => {
      await delay(50);
      if (sockets.every((socket) => socket.events().length > 0)) return true;
      emitter.to("contract:s").emit("event", { id: 1 });
      return false;
    });
    for (const socket of sockets) same(socket.connected, true, "still there");
  },
  "HAProxy Alternative: GET /health": async () => {
    for (const port of [url, ...controls]) {
      const answer = await fetch(`${port}/health`);
      same([answer.status, (await answer.json()).status], [200, "ok"], port);
    }
  },
  "who shows no token is not let in": async () => {
    const socket = io(url, { forceNew: true, reconnection: false });
    afterwards(() => socket.disconnect());
    const error = await bounded(new Promise((resolve) => socket.once("connect_error", resolve)), "an answer");
    same(error.data?.code, "token_missing", "the code");
  },
  "nothing is left of clients that have gone": async () => {
    for (const port of controls) {
      await until("no connections", async () => (await (await fetch(`${port}/stats`)).json()).connections === 0);
    }
  },
});
