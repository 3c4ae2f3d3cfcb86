// Plain JSON (docs/routes.md) as the stock `ws` client sees it: the client code of an auction that had a WebSocket server of its own,
// beside `socket.io-client` and a client of the native protocol in the same rooms.
//
//   npm ci && node plain.mjs http://127.0.0.1:7070
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The server needs
// `plain.path = "/app"` and the rules of tests/it/plain.rs.

import { address, afterwards, bounded, run, same, until } from "./checks.mjs";

const [{ default: WebSocket }, { io }] = await Promise.all([import("ws"), import("socket.io-client")]).catch(() => {
  console.error("the packages ws and socket.io-client are missing: run `npm ci` in tests/foreign/node");
  process.exit(1);
});

const { url } = address("node plain.mjs http://HOST:PORT");
const at = url.replace(/^http/, "ws");

// A WebSocket, and the messages that came to it.
async function open(path) {
  const socket = new WebSocket(at + path);
  const inbox = [];
  socket.on("message", (data, isBinary) => inbox.push(isBinary ? data : JSON.parse(data)));
  await bounded(new Promise((resolve, reject) => socket.on("open", resolve).on("error", reject)), "the opening");
  afterwards(() => socket.close());
  const say = (message) => socket.send(JSON.stringify(message));
  const next = (what) => until(what, () => inbox.shift());
  return { socket, inbox, say, next };
}

async function watch(auctionId) {
  const client = await open("/app");
  client.say({ type: "joinAuction", auctionId, id: "joined" });
  same((await client.next("the answer")).type, "ack", "the answer to joinAuction");
  return client;
}

run({
  "a message is an event, and an event is a message": async () => {
    const [one, other] = [await watch(101), await watch(101)];
    const update = { auctionId: 101, currentBid: 120.5, currentBidderId: null, bidCount: 3, timeExtended: false };
    one.say({ type: "publish", room: 101, event: "auctionUpdate", data: update });
    same(await other.next("the update"), { type: "auctionUpdate", ...update }, "the update");
    one.say({ type: "ping", sent: 1 });
    same(await one.next("the pong"), { type: "pong", sent: 1 }, "the pong");
    same([one.inbox, other.inbox], [[], []], "nothing else is said");
  },
  "a WebSocket's own pings are answered, and nothing greets": async () => {
    const client = await open("/app");
    const pong = new Promise((resolve) => client.socket.on("pong", resolve));
    client.socket.ping("are you there");
    same((await bounded(pong, "the pong")).toString(), "are you there", "the pong");
    same(client.inbox, [], "what has been said");
  },
  "clients of Socket.IO and of the native protocol are in the same rooms": async () => {
    const [plain, native] = [await watch(102), await open("/ws")];
    const socket = io(url, { forceNew: true, transports: ["websocket"] });
    afterwards(() => socket.disconnect());
    const ack = await bounded(socket.emitWithAck("join", 102), "the ack");
    same(ack, { rooms: { 102: { members: 1 } } }, "the ack");
    native.say({ type: "join", rooms: ["102"], id: 1 });
    await native.next("the ack");
    const heard = [];
    socket.onAny((...event) => heard.push(event));
    plain.say({ type: "publish", room: 102, event: "bid", data: { amount: 5 }, echo: true });
    same(await plain.next("the bid"), { type: "bid", amount: 5 }, "to the plain client");
    same((await native.next("the bid")).data, { amount: 5 }, "to the native client");
    same(await until("the bid", () => heard.shift()), ["bid", { amount: 5 }], "to the client of Socket.IO");
    socket.emit("publish", { room: 102, event: "image", data: Buffer.from([0, 255]) });
    same(await plain.next("the image"), { type: "image", data: { base64: "AP8=" } }, "bytes");
    socket.emit("publish", { room: 102, event: "tile", data: { x: Buffer.from([1]) } });
    same(await plain.next("the tile"), { type: "tile", x: { base64: "AQ==" } }, "bytes within");
  },
  "what is wrong is told, and nothing ends": async () => {
    const client = await open("/app");
    for (const text of ["", "{", "[1]", "{}", '{"type":1}', '{"type":"joinAuction"}', "x".repeat(100_000)]) {
      client.socket.send(text);
      same((await client.next("an error")).type, "error", text.slice(0, 20));
    }
    client.socket.send(Buffer.from('{"type":"ping"}'));
    same((await client.next("an error")).code, "bad_message", "a binary message");
    client.say({ type: "joinAuction", auctionId: 103, id: 7 });
    same((await client.next("the answer")).id, 7, "the answer");
  },
  "a crowd gets every bid, in one order": async () => {
    const crowd = await Promise.all(Array.from({ length: 12 }, () => watch(104)));
    crowd.slice(0, 3).forEach((client, from) => {
      for (let n = 0; n < 50; n += 1) {
        client.say({ type: "publish", room: 104, event: "bid", data: { from, n }, echo: true });
      }
    });
    await until("all bids", () => crowd.every(({ inbox }) => inbox.length === 150));
    crowd.forEach(({ inbox }) => same(inbox, crowd[0].inbox, "the order"));
    for (const from of [0, 1, 2]) {
      const own = crowd[0].inbox.filter((bid) => bid.from === from).map(({ n }) => n);
      same(own, Array.from({ length: 50 }, (_, n) => n), "the order of one bidder");
    }
  },
});
