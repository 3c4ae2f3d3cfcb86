// Node and ws 8 doing the two workloads that throng is measured with, as the ws documentation shows a
// broadcast, with one improvement: a publication becomes one Buffer for all subscribers.
//
//   node server.js --listen 127.0.0.1:7074
"use strict";

const { createServer } = require("node:http");
const { WebSocketServer } = require("ws");

const listen = process.argv[process.argv.indexOf("--listen") + 1] ?? "";
const [, host, port] = listen.match(/^(.+):(\d+)$/) ?? [];
if (!host) {
  console.error("usage: node server.js --listen ADDR:PORT");
  process.exit(2);
}

const rooms = new Map(); // name → Set of sockets
const http = createServer((request, response) => response.writeHead(404).end());
const server = new WebSocketServer({ noServer: true, perMessageDeflate: false, clientTracking: false });

http.on("upgrade", (request, socket, head) => {
  const serve = { "/ws": serveRoom, "/echo": serveEcho }[request.url];
  if (!serve) return socket.end("HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n");
  server.handleUpgrade(request, socket, head, serve);
});

function serveEcho(ws) {
  ws.on("error", () => {});
  ws.on("message", (data, binary) => ws.send(data, { binary }));
}

function serveRoom(ws) {
  ws.on("error", () => {});
  ws.on("message", (data) => act(ws, data.toString()));
  ws.on("close", () => {
    for (const members of rooms.values()) members.delete(ws);
  });
}

function act(ws, message) {
  if (message.startsWith('{"type":"publish"')) {
    const at = message.indexOf('"room":"') + 8;
    const members = rooms.get(message.slice(at, message.indexOf('"', at)));
    const event = Buffer.from('{"type":"event"' + message.slice(17));
    for (const member of members ?? []) {
      if (member !== ws) member.send(event, { binary: false });
    }
    return;
  }
  const { type, rooms: names, id } = JSON.parse(message);
  const ack = { type: "ack", id };
  if (type === "join") {
    ack.rooms = {};
    for (const name of names) {
      const members = rooms.get(name) ?? new Set();
      ack.rooms[name] = { members: members.size };
      rooms.set(name, members.add(ws));
    }
  } else if (type === "leave") {
    for (const name of names) rooms.get(name)?.delete(ws);
  }
  if (id !== undefined) ws.send(JSON.stringify(ack));
}

http.listen({ host, port: Number(port), backlog: 4096 }, () => {
  console.log(`listening on ${host}:${http.address().port}`);
});
