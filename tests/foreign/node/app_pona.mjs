// Pona's "WebSocket Performance Optimizations", section by section, with stock `socket.io-client` against examples/pona.
//
//   node app_pona.mjs http://HOST:PORT http://HOST:PORT --control=http://…,http://… --backend=http://HOST:PORT
//
// Two processes on one Redis; --control names the control ports of both. Prints a line for each check and the count.

import { setTimeout as delay } from "node:timers/promises";
import { io } from "socket.io-client";
import { WebSocket } from "ws";
import { afterwards, bounded, fail, run, same, show, until } from "./checks.mjs";

const urls = process.argv.slice(2).filter((argument) => argument.startsWith("http"));
const flag = (name) => process.argv.find((argument) => argument.startsWith(`--${name}=`))?.slice(name.length + 3);
const [controls, backend] = [flag("control").split(","), flag("backend")];

// "encodeData", and what its other side does.
const encode = (data) => Buffer.from(JSON.stringify(data), "utf-8").toString("base64");
const decode = (text) => JSON.parse(Buffer.from(text, "base64").toString("utf-8"));

let users = 0;

// A client of a guild, at one of the processes. `told` has its events as they come: names and texts.
async function client(guild, { at = 0, user = `u${++users}`, ...options } = {}) {
  const socket = io(`${urls[at]}/guild/${guild}`, { forceNew: true, reconnection: false, auth: { token: `user:${user}` }, ...options });
  afterwards(() => socket.disconnect());
  socket.told = [];
  socket.onAny((...event) => socket.told.push(event));
  const failed = new Promise((_, reject) => socket.once("connect_error", reject));
  await bounded(Promise.race([new Promise((resolve) => socket.once("connect", resolve)), failed]), "connect");
  return socket;
}

const post = async (path, body = {}) => (await fetch(backend + path, { method: "POST", body: JSON.stringify(body) })).json();
const play = (guild, track, queue) => post("/track", { guild, track, queue });

async function metric(port, name, ...labels) {
  const lines = (await (await fetch(`${port}/metrics`)).text()).split("\n");
  const found = lines.filter((line) => line.startsWith(name) && labels.every((label) => line.includes(label)));
  return found.map((line) => Number(line.split(" ").at(-1))).reduce((sum, value) => sum + value, 0);
}

// What the client's listeners are called with when a track begins.
const begun = (track, queue) => [
  ["track_started", encode(track)],
  ["queue_updated", encode([track, ...queue])],
];

// What a session over polling is told as it begins, without staying.
async function handshake(headers = {}) {
  const base = `${urls[0]}/socket.io/?EIO=4&transport=polling`;
  const answer = await fetch(base, { headers });
  const opened = JSON.parse((await answer.text()).slice(1));
  await fetch(`${base}&sid=${opened.sid}`, { method: "POST", body: "1" });
  return { ...opened, headers: answer.headers };
}

run({
  "1. Socket.IO Server Configuration: pingTimeout 20 s, pingInterval 25 s, websocket and polling": async () => {
    const { pingInterval, pingTimeout, upgrades } = await handshake();
    same([pingInterval, pingTimeout, upgrades], [25000, 20000, ["websocket"]], "the handshake");
    const upgraded = await client("1");
    await until("the upgrade", () => upgraded.io.engine.transport.name === "websocket");
  },
  "1. Socket.IO Server Configuration: httpCompression above 1 KB": async () => {
    const base = `${urls[0]}/socket.io/?EIO=4&transport=polling`;
    const { sid } = JSON.parse((await (await fetch(base)).text()).slice(1));
    const poll = () => fetch(`${base}&sid=${sid}`, { headers: { "accept-encoding": "gzip" } });
    await fetch(`${base}&sid=${sid}`, { method: "POST", body: '40/guild/gzip,{"token":"user:z"}' });
    same((await poll()).headers.get("content-encoding"), null, "a short answer");
    await play("gzip", { title: "x".repeat(4000) }, []);
    const answer = await poll();
    same(answer.headers.get("content-encoding"), "gzip", "a long one");
    const [packet] = (await answer.text()).split("\x1e");
    same(packet, `42/guild/gzip,${JSON.stringify(["track_started", encode({ title: "x".repeat(4000) })])}`, "what is in it");
    await fetch(`${base}&sid=${sid}`, { method: "POST", body: "1" });
  },
  "2. Message Encoding: payloads are base64 of JSON": async () => {
    const sockets = [await client("7"), await client("7", { transports: ["polling"] }), await client("7", { transports: ["websocket"] })];
    const track = { title: "Blüe in Green", artists: ["Miles Davis", "Bill Evans"], length_ms: 337000, live: false };
    same(await play("7", track, [{ title: "So What" }]), { published: 2, results: [{ published: 1 }, { published: 1 }] }, "published");
    for (const socket of sockets) {
      await until("both events", () => socket.told.length === 2);
      same(decode(socket.told[0][1]), track, "the track");
      same(socket.told, begun(track, [{ title: "So What" }]), "the very texts of encodeData");
    }
  },
  "2. Message Encoding: what clients send is encoded, too": async () => {
    const [one, other] = [await client("8"), await client("8")];
    const [track, queue] = [{ title: "Flamenco Sketches" }, [{ title: "All Blues" }]];
    const ack = await one.timeout(10_000).emitWithAck("play", encode({ track, queue }));
    same(decode(ack), { playing: track }, "the ack");
    for (const socket of [one, other]) {
      await until("both events", () => socket.told.length === 2);
      same(socket.told, begun(track, queue), "everybody in the guild");
    }
  },
  "3. Namespace Caching: /guild/{id} is there on demand, and each is for itself": async () => {
    const [one, other] = [await client("a"), await client("b")];
    await play("a", { title: "1" }, []);
    await play("b", { title: "2" }, []);
    for (const [socket, title] of [[one, "1"], [other, "2"]]) {
      await until("both events", () => socket.told.length >= 2);
      same(socket.told, begun({ title }, []), "those of its guild");
    }
    const elsewhere = io(`${urls[0]}/else`, { forceNew: true, reconnection: false, auth: { token: "user:a" } });
    afterwards(() => elsewhere.disconnect());
    const error = await bounded(new Promise((resolve) => elsewhere.once("connect_error", resolve)), "an answer");
    same(error.message, "Invalid namespace", "no other namespaces");
  },
  "3. Namespace Caching: their count does not grow unbounded": async () => {
    const count = () => metric(controls[0], "throng_namespaces{", 'namespace="/guild/*"');
    await until("those of before are gone", async () => (await count()) === 0);
    for (let round = 0; round < 3; round += 1) {
      const sockets = await Promise.all(
        Array.from({ length: 50 }, (_, guild) => client(`n${round}-${guild}`, { user: `n${guild}`, transports: ["websocket"] })),
      );
      same(await count(), 50, "one for each guild with somebody in it");
      for (const socket of sockets) socket.disconnect();
      await until("none is left", async () => (await count()) === 0);
    }
  },
  "4. User Authentication Caching: more than 80 % hits for reconnecting users": async () => {
    const by = (kind) => metric(controls[0], "throng_callouts_total", `by="${kind}"`);
    const all = async () => ({ known: await by("known"), shared: await by("shared"), asked: await by("asked") });
    const [before, lookups] = [await all(), (await post("/lookups")).lookups];
    for (let round = 0; round < 10; round += 1) {
      const sockets = await Promise.all(
        Array.from({ length: 20 }, (_, number) => client(`c${round}`, { user: `cached-${number}`, transports: ["websocket"] })),
      );
      for (const socket of sockets) socket.disconnect();
    }
    const after = await all();
    const [known, shared, asked] = ["known", "shared", "asked"].map((kind) => after[kind] - before[kind]);
    same(known + shared + asked, 200, "each connection was looked up");
    same((await post("/lookups")).lookups - lookups, asked, "the backend was asked that often");
    const rate = (known + shared) / 200;
    if (asked !== 20 || rate <= 0.8) fail(`${asked} of 200 were asked about, ${rate} were hits`);
  },
  "4. User Authentication Caching: no more than 1,000 are known": async () => {
    const come = (number) =>
      new Promise((resolve) => {
        const socket = new WebSocket(`${urls[1].replace("http", "ws")}/ws`, { headers: { authorization: `Bearer user:many-${number}` } });
        socket.once("open", () => socket.terminate());
        socket.once("error", () => {});
        socket.once("close", resolve);
      });
    for (let first = 0; first < 1200; first += 50) await Promise.all(Array.from({ length: 50 }, (_, n) => come(first + n)));
    const kept = await metric(controls[1], "throng_callouts_known ");
    if (kept < 500 || kept > 1000) fail(`${kept} are known`);
  },
  "4. User Authentication Caching: who is nobody is refused": async () => {
    const socket = io(`${urls[0]}/guild/1`, { forceNew: true, reconnection: false, auth: { token: "nonsense" } });
    afterwards(() => socket.disconnect());
    const error = await bounded(new Promise((resolve) => socket.once("connect_error", resolve)), "an answer");
    same([error.message, error.data?.code], ["no such user", "token_refused"], "in the backend's words");
  },
  "5. Event Batching: both events of a track, in order, each once": async () => {
    const sockets = await Promise.all(Array.from({ length: 20 }, () => client("9", { transports: ["websocket"] })));
    const sends = () => metric(controls[0], "throng_sends_total");
    const before = await sends();
    const titles = Array.from({ length: 30 }, (_, number) => ({ title: `track ${number}` }));
    for (const [number, track] of titles.entries()) await play("9", track, titles.slice(number + 1));
    const expected = titles.flatMap((track, number) => begun(track, titles.slice(number + 1)));
    for (const socket of sockets) {
      await until("all events", () => socket.told.length >= 60);
      same(socket.told, expected, "in order");
    }
    // 20 clients, 30 tracks: 600 sends where both events leave together, 1,200 where each goes by itself.
    const used = (await sends()) - before;
    console.log(`        ${used} sends for ${20 * 60} events`);
    if (used > 1000) fail(`${used} sends`);
  },
  "Redis Adapter: a guild's clients at both processes hear the same": async () => {
    const sockets = [await client("r", { at: 0 }), await client("r", { at: 1 })];
    await until("both hear", async () => {
      await play("r", { title: "?" }, []);
      await delay(50);
      return sockets.every((socket) => socket.told.length > 0);
    });
    await delay(300);
    for (const socket of sockets) socket.told.length = 0;
    await play("r", { title: "Naima" }, []);
    for (const socket of sockets) {
      await until("both events", () => socket.told.length === 2);
      same(socket.told, begun({ title: "Naima" }, []), "encoded once, not twice");
    }
  },
  "Event Performance: 100+ sockets in one room": async () => {
    const sockets = await Promise.all(Array.from({ length: 150 }, (_, n) => client("big", { user: `big-${n % 30}`, transports: ["websocket"] })));
    const from = performance.now();
    await play("big", { title: "Giant Steps" }, []);
    for (const socket of sockets) await until("both events", () => socket.told.length === 2);
    console.log(`        to 150 sockets in ${Math.round(performance.now() - from)} ms, the request and this script included`);
    for (const socket of sockets) same(socket.told, begun({ title: "Giant Steps" }, []), show(socket.id));
  },
  "Monitoring Dashboard: connections, messages, peak": async () => {
    const stats = await (await fetch(`${controls[0]}/stats`)).json();
    for (const field of ["connections", "connections_peak"]) same(typeof stats[field], "number", field);
    if (stats.connections_peak < 150) fail(`a peak of ${stats.connections_peak}`);
  },
  "nothing is left of clients that have gone": async () => {
    for (const port of controls) {
      await until("no connections", async () => (await (await fetch(`${port}/stats`)).json()).connections === 0);
    }
  },
});
