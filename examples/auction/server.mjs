// What is left of the auction's server behind throng: who a client is, which bids win, and when an auction ends.
//
//   THRONG_API_KEY=… node server.mjs [PORT [THRONG]]
//
// It answers throng's questions at PORT, 4000 if none is named, and publishes through its API at THRONG, http://127.0.0.1:7071.
// For trying out: a token is the user's number, and auctions are kept in memory, 1 to 10 for ten minutes; LOTS_MS has those that begin
// at once and end sooner.

import { createServer } from "node:http";

const [port = "4000", throng = "http://127.0.0.1:7071"] = process.argv.slice(2);
const EXTENSION_MS = 30_000; // a bid so short before the end moves it by as much

const auctions = new Map();

function auction(id, lastsMs = 600_000) {
  if (!auctions.has(id)) {
    auctions.set(id, {
      auctionId: id,
      title: `Lot ${id}`,
      description: "A lot of an auction, described at some length: where it is from, who had it, and what is wrong with it. ".repeat(4),
      imageUrls: [1, 2, 3].map((n) => `https://auction.example/lots/${id}/${n}.jpg`),
      seller: { id: 1, name: "The house" },
      startingBid: 100,
      currentBid: 100,
      currentBidderId: null,
      bidCount: 0,
      timeExtended: false,
      endsAt: Date.now() + lastsMs,
    });
    endLater(id);
  }
  return auctions.get(id);
}

// The end of an auction is nobody's event: it goes through the API.
function endLater(id) {
  const { endsAt } = auctions.get(id);
  setTimeout(() => {
    const { endsAt: end, currentBid, currentBidderId } = auctions.get(id);
    if (end > endsAt) return endLater(id);
    auctions.delete(id);
    publish(`auction:${id}`, "auctionEnded", { auctionId: id, currentBid, currentBidderId });
  }, endsAt - Date.now()).unref();
}

// One after the other: of two requests at a time, the older price might come last.
let published = Promise.resolve();

function publish(room, event, data) {
  const body = JSON.stringify({ room, event, data });
  published = published.then(async () => {
    const answer = await fetch(`${throng}/v1/publish`, {
      method: "POST",
      headers: { authorization: `Bearer ${process.env.THRONG_API_KEY}`, "content-type": "application/json" },
      body,
    }).catch((error) => ({ ok: false, status: error.message }));
    if (!answer.ok) console.error(`${event} was not published: ${answer.status}`);
  });
}

// Who is it?
function authenticate({ token }) {
  return /^\d{1,9}$/.test(token) ? { user: token } : { refuse: "a token is a user's number" };
}

// A bid. What is published is the auction as it is now, whole: throng sends what has changed. It is not in the answer, since those to two
// clients may overtake one another.
function event({ user, event, args: [{ auctionId, amount }] }) {
  if (event !== "bid" || !Number.isInteger(auctionId) || auctionId < 1 || auctionId > 10) return {};
  const lot = auction(auctionId);
  // JSON has numbers that are none: 1e400 is Infinity here.
  if (!(Number.isFinite(amount) && amount > lot.currentBid)) {
    return { emit: [{ event: "bidRejected", data: { auctionId, currentBid: lot.currentBid } }] };
  }
  const timeExtended = lot.endsAt - Date.now() < EXTENSION_MS;
  if (timeExtended) lot.endsAt += EXTENSION_MS;
  Object.assign(lot, { currentBid: amount, currentBidderId: Number(user), bidCount: lot.bidCount + 1, timeExtended });
  publish(`auction:${auctionId}`, "auctionUpdate", lot);
  return {};
}

const handlers = { "/authenticate": authenticate, "/event": event };

createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    try {
      const answer = handlers[request.url](JSON.parse(Buffer.concat(chunks)));
      response.end(JSON.stringify(answer));
    } catch (error) {
      // Clients say anything. 400 concerns this one alone.
      console.error(error);
      response.writeHead(400).end();
    }
  });
}).listen(Number(port), "127.0.0.1");

// Without more, lot 10 is a short one, so that there is an end to see.
const lots = JSON.parse(process.env.LOTS_MS ?? '{"10":120000}');
Object.entries(lots).forEach(([id, lastsMs]) => auction(Number(id), lastsMs));
