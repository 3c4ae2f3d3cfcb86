// What a backend does by the HTTP API to stock clients of Socket.IO: `backend.mjs THRONG CONTROL KEY`.

import { once } from "node:events";
import { io } from "socket.io-client";
import { afterwards, run, same, until } from "./checks.mjs";

const [throng, control, key] = process.argv.slice(2);

async function ask(method, path, body, kind = "application/json") {
  const answer = await fetch(control + path, {
    method,
    headers: { authorization: `Bearer ${key}`, ...(body === undefined ? {} : { "content-type": kind }) },
    body: kind === "application/json" && body !== undefined ? JSON.stringify(body) : body,
  });
  return { status: answer.status, body: answer.status === 204 ? null : await answer.json() };
}

async function publish(publication) {
  same(await ask("POST", "/v1/publish", publication), { status: 200, body: { published: 1 } }, "the answer");
}

// A client in a namespace, in these rooms, and all that it hears.
async function client(options, namespace = "/", rooms = []) {
  const socket = io(throng + namespace, { ...options, forceNew: true, reconnection: false });
  afterwards(() => socket.disconnect());
  await once(socket, "connect");
  const heard = [];
  socket.onAny((...event) => heard.push(event));
  if (rooms.length > 0) await socket.timeout(10_000).emitWithAck("join", { rooms });
  return { socket, heard, id: socket.id };
}

const heardBy = (who, count) => until(`${count} events`, () => who.heard.length >= count);

const checks = (options) => ({
  "events come to rooms, to one, and to all but one": async () => {
    const [a, b] = [await client(options, "/", ["r"]), await client(options, "/", ["r"])];
    await publish({ room: "r", event: "e", data: { n: [1, 2] } });
    await publish({ room: a.id, event: "you" });
    await publish({ room: "r", event: "others", data: "x", except: [a.id] });
    await publish({ all: true, event: "all", data: 1 });
    await Promise.all([heardBy(a, 3), heardBy(b, 3)]);
    same(a.heard, [["e", { n: [1, 2] }], ["you", null], ["all", 1]], "what one heard");
    same(b.heard, [["e", { n: [1, 2] }], ["others", "x"], ["all", 1]], "what the other heard");
  },
  "bytes come as bytes": async () => {
    const a = await client(options, "/", ["r"]);
    const bytes = Buffer.from([0, 255, 10]);
    const { status } = await ask("POST", "/v1/publish/bytes?room=r&event=raw", bytes, "application/octet-stream");
    same(status, 200, "the status");
    await heardBy(a, 1);
    same(Buffer.from(a.heard[0][1]), bytes, "the payload");
  },
  "a namespace is a world of its own": async () => {
    const [here, there] = [await client(options, "/", ["r"]), await client(options, "/chat", ["r"])];
    await publish({ room: "r", namespace: "/chat", event: "chat" });
    await publish({ all: true, namespace: "/chat", event: "all chat" });
    await publish({ room: "r", event: "main" });
    await Promise.all([heardBy(here, 1), heardBy(there, 2)]);
    same([here.heard, there.heard], [[["main", null]], [["chat", null], ["all chat", null]]], "what was heard");
    const members = await ask("GET", "/v1/rooms/r/members?namespace=/chat");
    same(members.body.members.map(({ id, dialect }) => [id, dialect]), [[there.id, "socketio"]], "the members");
    const rooms = await ask("GET", "/v1/rooms?namespace=/chat");
    same(rooms.body.rooms, [{ room: "r", namespace: "/chat", members: 1 }], "the rooms");
  },
  "a connection is known by its socket's id": async () => {
    const a = await client(options, "/chat", ["r"]);
    const transport = a.socket.io.engine.transport.name;
    const { status, body } = await ask("GET", `/v1/connections/${a.id}`);
    same(status, 200, "the status");
    same([body.id, body.dialect, body.memberships, body.transport], [a.id, "socketio", 1, transport], "what it is");
    same(body.namespaces, [{ namespace: "/chat", id: a.id, rooms: ["r"] }], "its namespaces");
  },
  "it joins and leaves rooms of its namespace": async () => {
    const a = await client(options, "/chat");
    same((await ask("POST", `/v1/connections/${a.id}/join`, { rooms: ["s", "t"] })).status, 204, "the join");
    await publish({ room: "s", namespace: "/chat", event: "in" });
    await heardBy(a, 1);
    same((await ask("POST", `/v1/connections/${a.id}/leave`, { rooms: ["s"] })).status, 204, "the leave");
    const rooms = await ask("GET", "/v1/rooms?namespace=/chat");
    same(rooms.body.rooms.map(({ room }) => room), ["t"], "the rooms");
    same((await ask("GET", "/v1/rooms")).body.rooms, [], "rooms of the main namespace");
  },
  "it is disconnected by the server, alone and with its room": async () => {
    const [a, b] = [await client(options, "/", ["r"]), await client(options, "/", ["r"])];
    const reasons = [a, b].map(({ socket }) => once(socket, "disconnect").then(([reason]) => reason));
    same((await ask("POST", `/v1/connections/${a.id}/disconnect`, { code: 4100 })).status, 204, "the disconnect");
    // Over polling both come in one answer, and stock clients look at the end of the transport first.
    const expected = options.transports[0] === "polling" ? ["io server disconnect", "transport close"] : ["io server disconnect"];
    same(expected.includes(await reasons[0]), true, "the reason");
    same((await ask("POST", "/v1/rooms/r/disconnect")).body, { members: 1 }, "the members");
    same(expected.includes(await reasons[1]), true, "the reason");
    same((await ask("GET", `/v1/connections/${a.id}`)).status, 404, "one that is gone");
  },
});

const named = (name, options) => Object.entries(checks(options)).map(([what, check]) => [`${name}: ${what}`, check]);
const all = [
  ...named("websocket", { transports: ["websocket"] }),
  ...named("polling", { transports: ["polling"] }),
];
// Each begins when nobody is left from the one before.
const alone = (check) => async () => {
  await until("nobody is here", async () => (await ask("GET", "/v1/connections")).body.connections.length === 0);
  await check();
};
run(Object.fromEntries(all.map(([name, check]) => [name, alone(check)])));
