// The part of Pona that throng asks: who users are, and what plays.
//
//   node backend.mjs [PORT [THRONG]]
//
// THRONG is the control port of a throng, http://127.0.0.1:7071 unless said otherwise.

import { createServer } from "node:http";

const [port = "4100", throng = "http://127.0.0.1:7071"] = process.argv.slice(2);
const KEY = process.env.KEY ?? "change-me-0123456789";
const ROOM = "pona! music";

// What Discord's API would be asked. Here a token is the user's name after "user:".
let lookups = 0;
function authenticate({ token }) {
  lookups += 1;
  const [, user] = /^user:(\S{1,64})$/.exec(token ?? "") ?? [];
  return user ? { user } : { refuse: "no such user" };
}

// A track begins: both events of it, one behind the other. throng encodes them.
function started(track, queue) {
  return [
    { event: "track_started", data: track },
    { event: "queue_updated", data: [track, ...queue] },
  ];
}

// ...because a client wants it: throng tells those in the room of its namespace.
function event({ args: [{ track, queue = [] }] }) {
  return { emit: started(track, queue).map((said) => ({ ...said, room: ROOM })), ack: [{ playing: track }] };
}

// ...or because the one before is over: both in one request.
async function track({ guild, track, queue = [] }) {
  const to = { namespace: `/guild/${guild}`, room: ROOM };
  const answer = await fetch(`${throng}/v1/publish`, {
    method: "POST",
    headers: { authorization: `Bearer ${KEY}`, "content-type": "application/json" },
    body: JSON.stringify({ publications: started(track, queue).map((said) => ({ ...to, ...said })) }),
  });
  return answer.json();
}

const handlers = {
  "/authenticate": authenticate,
  "/event": event,
  "/track": track,
  "/lookups": () => ({ lookups }),
};

createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", async () => {
    try {
      response.end(JSON.stringify(await handlers[request.url](JSON.parse(Buffer.concat(chunks)))));
    } catch (error) {
      // Clients say anything. 400 concerns this one alone.
      console.error(String(error));
      response.writeHead(400).end();
    }
  });
}).listen(Number(port), "127.0.0.1");
