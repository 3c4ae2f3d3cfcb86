// Node and socket.io 4 doing the two workloads that throng is measured with: rooms on /socket.io/, and on /engine.io/
// the echo of Engine.IO by itself. Socket.IO encodes a broadcast once for all members of its room.
//
//   node server.js --listen 127.0.0.1:7075
"use strict";

const { createServer } = require("node:http");
const engine = require("engine.io");
const { Server } = require("socket.io");

const listen = process.argv[process.argv.indexOf("--listen") + 1] ?? "";
const [, host, port] = listen.match(/^(.+):(\d+)$/) ?? [];
if (!host) {
  console.error("usage: node server.js --listen ADDR:PORT");
  process.exit(2);
}

// Compression is off by default. `destroyUpgrade` is for whoever serves alone: it ends the upgrades of others.
const options = { transports: ["websocket"], destroyUpgrade: false };
const http = createServer((request, response) => response.writeHead(404).end());
const io = new Server(http, { ...options, serveClient: false });
const echo = engine.attach(http, { ...options, path: "/engine.io/" });

echo.on("connection", (socket) => socket.on("message", (data) => socket.send(data)));

// The documentation's advice: without the first request, a connection takes less memory.
io.engine.on("connection", (socket) => (socket.request = null));
io.on("connection", (socket) => {
  const rooms = socket.nsp.adapter.rooms; // name → Set of ids
  socket.on("join", ({ rooms: names }, ack) => {
    const members = {};
    for (const name of names) {
      members[name] = { members: rooms.get(name)?.size ?? 0 };
      socket.join(name);
    }
    ack?.({ rooms: members });
  });
  socket.on("leave", ({ rooms: names }, ack) => {
    for (const name of names) socket.leave(name);
    ack?.({});
  });
  socket.on("publish", ({ room, event, data }, ack) => {
    socket.to(room).emit(event, data);
    ack?.({});
  });
});

http.listen({ host, port: Number(port), backlog: 4096 }, () => {
  console.log(`listening on ${host}:${http.address().port}`);
});
