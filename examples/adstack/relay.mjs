// Hears what AdStack's servers publish to Redis' channel global_events, and has throng tell everybody. One is enough for all processes.
//
//   node relay.mjs [REDIS [THRONG]]
//
// REDIS is 127.0.0.1:6379 and THRONG, the control port of a throng, http://127.0.0.1:7071 unless said otherwise. A publisher that can be
// changed needs no relay: with `@socket.io/redis-emitter`, `emitter.emit("event", event)` does the same.

import { connect } from "node:net";

const [redis = "127.0.0.1:6379", throng = "http://127.0.0.1:7071"] = process.argv.slice(2);
const KEY = process.env.KEY ?? "change-me-0123456789";

async function publish(event) {
  const answer = await fetch(`${throng}/v1/publish`, {
    method: "POST",
    headers: { authorization: `Bearer ${KEY}`, "content-type": "application/json" },
    body: JSON.stringify({ all: true, event: "event", data: event }),
  });
  if (!answer.ok) console.error(answer.status, await answer.text());
}

// What Redis says to a subscriber: lists of three texts, each behind its length in bytes.
let heard = Buffer.alloc(0);
function* messages() {
  for (;;) {
    const words = [];
    let at = heard.indexOf("\r\n") + 2; // behind the length of the list
    while (words.length < 3) {
      const end = heard.indexOf("\r\n", at);
      if (at < 2 || end < 0) return;
      const line = heard.toString("utf8", at, end);
      at = end + 2;
      // The third word of a confirmation is a number, which has no length.
      const length = line.startsWith("$") ? Number(line.slice(1)) : 0;
      if (heard.length < at + length) return;
      words.push(heard.toString("utf8", at, at + length));
      if (line.startsWith("$")) at += length + 2;
    }
    if (heard.length < at) return;
    heard = heard.subarray(at);
    if (words[0] === "message") yield words[2];
  }
}

const [host, port] = redis.split(":");
const socket = connect(Number(port), host, () => socket.write("SUBSCRIBE global_events\r\n"));
let order = Promise.resolve();
socket.on("data", (bytes) => {
  heard = Buffer.concat([heard, bytes]);
  for (const message of messages()) {
    // One after the other: events keep their order.
    order = order.then(() => publish(JSON.parse(message))).catch((error) => console.error(String(error)));
  }
});
socket.on("error", (error) => console.error(String(error)));
// Whoever watches over processes starts it again.
socket.on("close", () => process.exit(1));
