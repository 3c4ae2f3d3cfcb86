// The server side of the chat in Socket.IO's tutorial (https://socket.io/docs/v4/tutorial), as a backend behind throng.
//
//   node server.mjs [PORT [FILE]]
//
// Messages are kept in FILE, chat.jsonl if none is named: one a line, the first with the offset 1.

import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";

const [port = "4000", file = "chat.jsonl"] = process.argv.slice(2);

const lines = existsSync(file) ? readFileSync(file, "utf8").split("\n").slice(0, -1) : [];
const messages = lines.map((line) => JSON.parse(line));
const known = new Set(messages.map(({ clientOffset }) => clientOffset));

// Somebody is here: it gets what was said since it was last here.
function connected({ recovered, handshake }) {
  if (recovered) return {};
  const missed = messages
    .map(({ content }, at) => ({ event: "chat message", args: [content, at + 1] }))
    .slice(handshake.auth?.serverOffset ?? 0);
  return { emit: missed.slice(-1000) };
}

// Somebody has said something: it is kept, everybody gets it, and it is acknowledged.
function event({ args: [content, clientOffset] }) {
  if (known.has(clientOffset)) return {}; // it came before, and its ack was lost
  appendFileSync(file, `${JSON.stringify({ content, clientOffset })}\n`);
  known.add(clientOffset);
  messages.push({ content, clientOffset });
  return { emit: [{ event: "chat message", args: [content, messages.length], all: true }] };
}

const handlers = { "/connected": connected, "/event": event };

createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    try {
      const answer = handlers[request.url](JSON.parse(Buffer.concat(chunks)));
      response.end(JSON.stringify(answer));
    } catch (error) {
      // Clients say anything. 400 concerns this one alone; no answer would count as a backend that fails.
      console.error(error);
      response.writeHead(400).end();
    }
  });
}).listen(Number(port), "127.0.0.1");
