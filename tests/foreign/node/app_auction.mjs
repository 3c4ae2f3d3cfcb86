// The auction of examples/auction as its clients see it, with the stock `ws` client: its document, section by section. The names of the checks
// quote it.
//
//   npm ci && node app_auction.mjs http://127.0.0.1:3000 [http://127.0.0.1:3001]
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The server has throng.toml of
// examples/auction, with pings after half a second; server.mjs has LOTS_MS={"9":29000,"10":8000}. A second server shares its Redis.

import { setTimeout as delay } from "node:timers/promises";
import { address, afterwards, bounded, fail, run, same, until } from "./checks.mjs";

const { default: WebSocket } = await import("ws").catch(() => {
  console.error("the package ws is missing: run `npm ci` in tests/foreign/node");
  process.exit(1);
});

const { url, flags } = address("node app_auction.mjs http://HOST:PORT [http://HOST:PORT]");
const here = url.replace(/^http/, "ws");
const there = (flags[0] ?? url).replace(/^http/, "ws");

// Each client has an address of its own, five to one at the most, as people have.
let [addresses, users] = [0, 100];

function connect({ at = here, user, from, ...options } = {}) {
  addresses += 1;
  const localAddress = from ?? `127.0.${1 + (addresses >> 8)}.${1 + (addresses & 127)}`;
  const socket = new WebSocket(`${at}/ws${user ? `?token=${user}` : ""}`, { localAddress, ...options });
  const inbox = [];
  socket.on("message", (data) => {
    const message = JSON.parse(data);
    inbox.push(message);
  });
  const closed = new Promise((resolve) => socket.on("close", (code, reason) => resolve({ code, reason: `${reason}` })));
  socket.on("error", () => {});
  afterwards(() => socket.terminate());
  const say = (message) => socket.send(JSON.stringify(message));
  const next = (what) => until(what, () => inbox.shift());
  return { socket, inbox, closed, say, next };
}

async function open(options) {
  const client = connect(options);
  await bounded(new Promise((resolve, reject) => client.socket.on("open", resolve).on("error", reject)), "the opening");
  return client;
}

async function watch(auctionId, options) {
  const client = await open(options);
  client.say({ type: "joinAuction", auctionId, id: "joined" });
  same(await client.next("the answer"), { type: "ack", id: "joined" }, "the answer to joinAuction");
  return client;
}

const user = () => (users += 1);
// All messages, those of batches too, in their order.
const flat = (inbox) => inbox.flatMap((message) => (message.type === "batch" ? message.messages : [message]));
const updates = (inbox) => flat(inbox).filter(({ type }) => type === "auctionUpdate");

run({
  "the end of an auction does not wait: auctionEnded": async () => {
    const watchers = [await watch(10), await watch(10, { at: there })];
    for (const { next } of watchers) {
      same(await next("the end"), { type: "auctionEnded", auctionId: 10, currentBid: 100, currentBidderId: null }, "the end");
    }
  },
  "timeExtended: a bid at the last moment": async () => {
    const bidder = await watch(9, { user: user() });
    bidder.say({ type: "bid", auctionId: 9, amount: 150 });
    same((await bidder.next("the update")).timeExtended, true, "timeExtended");
  },
  "Phase 1, 1. Add Heartbeat Mechanism: ws.ping(), and ws.terminate() of who is not alive": async () => {
    const [alive, dead] = [await watch(8), await watch(8, { autoPong: false })];
    let pings = 0;
    alive.socket.on("ping", () => (pings += 1));
    await bounded(new Promise((resolve) => dead.socket.on("ping", resolve)), "a ping");
    // Its socket is closed, and where it still hears, it is told why.
    same((await bounded(dead.closed, "its end")).code, 4000, "how it ends");
    await until("pings", () => pings >= 2);
    same(alive.socket.readyState, WebSocket.OPEN, "who answers stays");
  },
  "Phase 1, 2. Implement Message Batching: { type: 'batch', messages } after 10 messages": async () => {
    const [watcher, speaker] = [await watch(7), await watch(7, { user: 71 })];
    // On a machine that is busy they may come too far apart.
    for (let attempt = 0; attempt < 5; attempt += 1) {
      const messages = Array.from({ length: 10 }, (_, n) => ({ type: "comment", auctionId: 7, text: `${n}`, userId: "71" }));
      for (const { text } of messages) speaker.say({ type: "comment", auctionId: 7, text });
      await until("all", () => [watcher, speaker].every(({ inbox }) => flat(inbox).length === 10));
      const [seen, own] = [watcher.inbox.splice(0), speaker.inbox.splice(0)];
      same(flat(seen), messages, "the messages");
      same(own, seen, "the same for who has spoken");
      if (seen.length === 1) return same(seen[0], { type: "batch", messages }, "the batch");
      await delay(1000);
    }
    fail("never one batch of ten");
  },
  "Phase 1, 2. Implement Message Batching: or after 100 ms": async () => {
    const [watcher, one, other] = [await watch(6, { at: there }), await watch(6, { user: 61 }), await watch(6, { user: 62 })];
    // On a machine that is busy the two may miss each other.
    for (let attempt = 0; attempt < 20; attempt += 1) {
      const since = Date.now();
      [one, other].forEach(({ say }) => say({ type: "comment", auctionId: 6, text: `${attempt}` }));
      await until("both", () => flat(watcher.inbox).length === 2);
      const [first] = watcher.inbox.splice(0);
      if (first.type !== "batch") continue;
      if (Date.now() - since < 90) fail("nothing has waited");
      return same(Object.keys(first), ["type", "messages"], "a batch");
    }
    fail("no batch in 20 attempts");
  },
  "Phase 1, 3. Add Connection Limits: ws.close(1008, 'Connection limit exceeded')": async () => {
    const from = "127.0.9.9";
    const five = await Promise.all(Array.from({ length: 5 }, () => watch(5, { from })));
    const sixth = connect({ from });
    same(await bounded(sixth.closed, "its end"), { code: 1008, reason: "Connection limit exceeded" }, "the sixth");
    await watch(5, { from: "127.0.9.10" });
    five[0].socket.close();
    await five[0].closed;
    await until("its place", async () => {
      const again = connect({ from });
      const opened = await bounded(Promise.race([again.closed, delay(300)]), "an answer");
      return !opened && again.socket.readyState === WebSocket.OPEN;
    });
  },
  "Phase 2, 3. Implement Redis Adapter: cross-server communication": async () => {
    const [bidder, watcher] = [await watch(4, { user: user() }), await watch(4, { at: there })];
    bidder.say({ type: "bid", auctionId: 4, amount: 101.5 });
    for (const { next } of [bidder, watcher]) {
      const { type, auctionId, currentBid, bidCount } = await next("the update");
      same([type, auctionId, currentBid, bidCount], ["auctionUpdate", 4, 101.5, 1], "the update");
    }
  },
  "Phase 2, 4. checkBidRateLimit: 5 bids per minute, in all processes, of each user": async () => {
    const [id, lot] = [user(), 3];
    const clients = [await open({ user: id }), await open({ user: id, at: there })];
    // Another process may let through one more (docs/clustering.md).
    const most = here === there ? 5 : 6;
    let taken = 0;
    const refused = new Set();
    for (let n = 0; refused.size < 2; n += 1) {
      const client = clients[n % 2];
      client.say({ type: "bid", auctionId: lot, amount: 1 });
      const { retry_ms, ...answer } = await client.next("an answer");
      if (answer.type === "error") {
        same(answer, { type: "error", code: "rate_limited", message: "Rate limit exceeded" }, "one too many");
        if (!(retry_ms > 30_000 && retry_ms <= 60_000)) fail(`it may bid again in ${retry_ms} ms`);
        refused.add(client);
      } else {
        same(answer.type, "bidRejected", "a bid that is taken");
        taken += 1;
      }
      await delay(150);
    }
    if (taken < 5 || taken > most) fail(`${taken} bids were taken`);
    const free = await open({ user: user(), at: there });
    free.say({ type: "bid", auctionId: lot, amount: 3 });
    same((await free.next("an answer")).type, "bidRejected", "another user");
  },
  "Phase 3, 3. Optimize Auction Room Broadcasting: send only changed fields": async () => {
    const [ann, ben, watcher] = [await watch(2, { user: 21 }), await watch(2, { user: 22 }), await watch(2, { at: there })];
    ann.say({ type: "bid", auctionId: 2, amount: 110 });
    const whole = await watcher.next("the first");
    same([whole.title, whole.seller.name, whole.imageUrls.length], ["Lot 2", "The house", 3], "the first is all of it");
    await delay(150);
    ben.say({ type: "bid", auctionId: 2, amount: 120 });
    const minimalUpdate = { type: "auctionUpdate", auctionId: 2, currentBid: 120, currentBidderId: 22, bidCount: 2, timeExtended: false };
    same(await watcher.next("the second"), minimalUpdate, "minimalUpdate");
    const late = await watch(2);
    same(await late.next("all of it"), { ...whole, ...minimalUpdate }, "who joins now gets all of it");
    [130, 140, 150].forEach((amount) => ann.say({ type: "bid", auctionId: 2, amount }));
    ben.say({ type: "bid", auctionId: 2, amount: 160 });
    await until("the last", () => updates(watcher.inbox).at(-1)?.currentBid === 160);
    await delay(250);
    const [seen, others] = [updates(watcher.inbox), updates(late.inbox)];
    same(seen.at(-1), others.at(-1), "all know the same in the end");
    if (seen.some(({ currentBid }, at) => at > 0 && currentBid <= seen[at - 1].currentBid)) fail("a price went down");
  },
  "a bid that is too low is told to its bidder alone": async () => {
    const [bidder, watcher] = [await watch(1, { user: user() }), await watch(1)];
    bidder.say({ type: "bid", auctionId: 1, amount: 1 });
    same(await bidder.next("the answer"), { type: "bidRejected", auctionId: 1, currentBid: 100 }, "the answer");
    bidder.say({ type: "bid", auctionId: 1, amount: "1" });
    same((await bidder.next("the refusal")).code, "bad_message", "an amount that is none");
    const nobody = await watch(1);
    nobody.say({ type: "bid", auctionId: 1, amount: 500 });
    same((await nobody.next("the refusal")).code, "forbidden", "a bid of nobody");
    await delay(200);
    same(watcher.inbox, [], "to others nothing is said");
  },
  "Connection Management: rate limits for general messages, and a longest message": async () => {
    const client = await watch(1, { user: user() });
    for (let n = 0; n < 60; n += 1) client.say({ type: "comment", auctionId: 1, text: "." });
    const error = await until("a refusal", () => flat(client.inbox).find(({ type }) => type === "error"));
    same(error.message, "Rate limit exceeded", "too many");
    const other = await open();
    other.say({ type: "comment", text: "x".repeat(10 << 10) });
    same((await bounded(other.closed, "its end")).code, 1009, "too long");
    // What waits now is for who joins next, too.
    await delay(300);
  },
  "Testing Strategy, 1. Load Testing: joinAuction and bid as in its script": async () => {
    const connections = [];
    for (let i = 0; i < 1000; i += 1) {
      const client = connect({ user: 1000 + i, at: i % 2 ? here : there });
      connections.push(client);
      client.socket.on("open", () => {
        client.say({ type: "joinAuction", auctionId: Math.floor(Math.random() * 10) + 1 });
      });
    }
    await until("all connections", () => connections.every(({ socket }) => socket.readyState === WebSocket.OPEN), 60_000);
    const bidding = setInterval(() => {
      const { socket, say } = connections[Math.floor(Math.random() * connections.length)];
      if (socket.readyState === WebSocket.OPEN) {
        say({ type: "bid", auctionId: Math.floor(Math.random() * 10) + 1, amount: Math.random() * 1000 });
      }
    }, 100);
    await delay(5000);
    clearInterval(bidding);
    // Each auction's watchers know the same price in the end.
    await until("the last bids at all", () => {
      const last = connections.flatMap(({ inbox }) => updates(inbox).slice(-1));
      const prices = new Set(last.map(({ auctionId, currentBid }) => `${auctionId} ${currentBid}`));
      return prices.size === new Set(last.map(({ auctionId }) => auctionId)).size;
    });
    const heard = connections.flatMap(({ inbox }) => flat(inbox));
    const kinds = new Set(heard.map(({ type, code }) => code ?? type));
    for (const kind of kinds) {
      if (!["auctionUpdate", "bidRejected", "rate_limited", "auctionEnded"].includes(kind)) fail(`a message of the kind ${kind}`);
    }
    if (!kinds.has("auctionUpdate")) fail("no updates");
    same(connections.every(({ socket }) => socket.readyState === WebSocket.OPEN), true, "all are still there");
  },
});
