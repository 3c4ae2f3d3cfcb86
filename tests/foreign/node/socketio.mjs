// Socket.IO v5 as a server has to speak it, packet by packet.
//
//   npm ci && node socketio.mjs http://127.0.0.1:7070
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The server needs the
// settings of examples/socketio-compliance.toml, and `socketio.namespaces = ["/","/custom","/guild/*"]`.

import { setTimeout as delay } from "node:timers/promises";
import { address, fail, run, same, show } from "./checks.mjs";
import { Polling, SEPARATOR, Socket } from "./engine.mjs";

const { url } = address("node socketio.mjs http://HOST:PORT");
const ENDPOINT = `${url}/socket.io/`;
const CONNECT_TIMEOUT_MS = 1000; // the server's socketio.connect_timeout_ms
const EARLY_MS = 20;
const LATE_MS = 2_000;

const hole = (num) => ({ _placeholder: true, num });

// What a packet that joins `namespace` (or says something there) begins with.
const prefix = (namespace) => (namespace === "/" ? "" : `${namespace},`);

// The answer to a CONNECT, which is followed by the event with the auth payload; answers the socket's id.
async function joined(socket, namespace, auth) {
  const answer = await socket.next(`the answer to a CONNECT to ${namespace}`);
  const start = `40${prefix(namespace)}`;
  if (!answer.startsWith?.(`${start}{`)) fail(`answer to a CONNECT to ${namespace}: ${show(answer)}`);
  const { sid } = JSON.parse(answer.slice(start.length));
  if (!/^[A-Za-z0-9_-]{20}$/.test(sid)) fail(`socket id ${sid}`);
  await socket.hears(`42${prefix(namespace)}["auth",${JSON.stringify(auth)}]`);
  return sid;
}

// A WebSocket that has joined the namespace `/`.
async function connected(options) {
  const socket = await Socket.open(ENDPOINT, options);
  socket.send("40");
  socket.id = await joined(socket, "/", {});
  return socket;
}

// A session over polling that has joined the namespace `/`.
async function connectedByPolling() {
  const polling = await Polling.open(ENDPOINT);
  await polling.send("40");
  const [answer, auth] = await polling.take(2);
  if (!/^40\{"sid":"[A-Za-z0-9_-]{20}"/.test(answer)) fail(`answer to a CONNECT: ${answer}`);
  same(auth, '42["auth",{}]', "the event with the auth payload");
  return polling;
}

// The event or ack that comes next, with its attachments in their places.
async function reply(socket, attachments) {
  const text = await socket.next("the reply");
  const [, kind, rest] = /^(4[56]\d+-(?:\/[^,]*,)?\d*)(\[.*)$/s.exec(text) ?? fail(`not a packet with attachments: ${text}`);
  const bytes = [];
  for (let index = 0; index < attachments; index++) bytes.push(await socket.next(`attachment ${index}`));
  if (!bytes.every(Buffer.isBuffer)) fail(`an attachment that is none: ${show(bytes)}`);
  const filled = JSON.parse(rest, (_, value) => (value?._placeholder === true ? bytes[value.num] : value));
  return [kind, ...filled];
}

// All of these end a session that has joined `/`.
async function offences(list) {
  await Promise.all(
    list.map(async ([what, ...frames]) => {
      const socket = await connected();
      socket.send(...frames);
      await socket.closes(what);
      const polling = await connectedByPolling();
      await polling.post(frames.map((frame) => (typeof frame === "string" ? frame : `b${frame.toString("base64")}`)).join(SEPARATOR));
      await polling.ends();
    }),
  );
}

run({
  "a CONNECT joins the namespace `/`": async () => {
    const socket = await connected();
    if (socket.id === socket.handshake.sid) fail("the socket's id is the session's");
    const polling = await connectedByPolling();
    await polling.send('42["message","over polling"]');
    same(await polling.take(1), ['42["message-back","over polling"]'], "packets");
  },

  "a CONNECT may carry an object, which the server has then": async () => {
    const payloads = [{}, { token: "123" }, { a: [1, null, { b: "é\u{1f642}" }], pid: 1 }];
    for (const auth of payloads) {
      const socket = await Socket.open(ENDPOINT);
      socket.send(`40${JSON.stringify(auth)}`);
      await joined(socket, "/", auth);
    }
  },

  "a CONNECT names another namespace, with a comma at its end or without": async () => {
    const socket = await connected();
    const ids = [socket.id, socket.handshake.sid];
    for (const [packet, namespace, auth] of [
      ["40/custom", "/custom", {}],
      ["40/guild/7,", "/guild/7", {}],
      ['40/guild/eight,{"role":"member"}', "/guild/eight", { role: "member" }],
    ]) {
      socket.send(packet);
      ids.push(await joined(socket, namespace, auth));
      socket.send(`42${namespace},["message",1]`);
      await socket.hears(`42${namespace},["message-back",1]`);
    }
    same(new Set(ids).size, ids.length, "different ids");
    socket.send('42["message",2]');
    await socket.hears('42["message-back",2]');
  },

  "one need not be in the namespace `/` to be in another": async () => {
    const socket = await Socket.open(ENDPOINT);
    socket.send('40/custom,{"token":"123"}');
    await joined(socket, "/custom", { token: "123" });
    socket.send('42/custom,["message",1]');
    await socket.hears('42/custom,["message-back",1]');
  },

  "a namespace that there is not is refused, and nothing else happens": async () => {
    const socket = await connected();
    for (const namespace of ["/random", "/guild", "/guild/", "/guild/1/2", "/customs", "/Custom"]) {
      socket.send(`40${namespace}`, `40${namespace},{"token":1}`);
      const refusal = `44${namespace},{"message":"Invalid namespace"}`;
      await socket.hears(refusal, refusal);
    }
    socket.send('42["message","still here"]');
    await socket.hears('42["message-back","still here"]');
  },

  "who has joined no namespace in time is closed, and not before": async () => {
    const cases = { nothing: [], "a namespace that there is not": ["40/random"] };
    await Promise.all(
      Object.entries(cases).map(async ([what, frames]) => {
        const started = Date.now();
        const socket = await Socket.open(ENDPOINT);
        socket.send(...frames);
        for (const _ of frames) await socket.hears('44/random,{"message":"Invalid namespace"}');
        await socket.closes(what);
        const elapsed = Date.now() - started;
        if (elapsed < CONNECT_TIMEOUT_MS - EARLY_MS || elapsed > CONNECT_TIMEOUT_MS + LATE_MS)
          fail(`closed ${elapsed} ms after ${what}`);
      }),
    );
    const polling = await Polling.open(ENDPOINT);
    await polling.ends();
  },

  "who has joined a namespace in time stays": async () => {
    const socket = await connected();
    await delay(CONNECT_TIMEOUT_MS + 300);
    socket.send('42["message","still here"]');
    await socket.hears('42["message-back","still here"]');
  },

  "a CONNECT that is none ends the session": async () => {
    for (const packet of ["4abc", "4", "40[]", '40"x"', "40{", "40/custom,[]", '42["message",1]', '42/custom,["message",1]']) {
      const socket = await Socket.open(ENDPOINT);
      socket.send(packet);
      await socket.closes(packet);
    }
  },

  "a second CONNECT to the same namespace ends the session": async () => {
    const socket = await connected();
    socket.send("40");
    await socket.closes("a second CONNECT");
  },

  "who has left `/` may stay and join again": async () => {
    const socket = await connected({ pings: "seen" });
    socket.send("41");
    // Nothing comes of it but the next ping.
    await socket.hears("2");
    socket.send("3", "40");
    const again = await joined(socket, "/", {});
    if (again === socket.id) fail("the same id for another socket");
    socket.send('42["message",1]');
    await socket.hears('42["message-back",1]');
  },

  "who has left another namespace is still in `/`": async () => {
    for (const leave of ["41/custom", "41/custom,"]) {
      const socket = await connected();
      socket.send("40/custom");
      await joined(socket, "/custom", {});
      socket.send(leave, '42["message","to the main namespace"]');
      await socket.hears('42["message-back","to the main namespace"]');
    }
  },

  "an event in a namespace that was left ends the session": async () => {
    const socket = await connected();
    socket.send("40/custom");
    await joined(socket, "/custom", {});
    // Node's server settles a DISCONNECT a moment later, so that an event right behind it is only ignored.
    socket.send("41/custom,", '42["message",1]');
    await socket.hears('42["message-back",1]');
    socket.send('42/custom,["message",1]');
    await socket.closes("an event after leaving");
  },

  "an event comes back with its arguments": async () => {
    const socket = await connected();
    for (const args of ['1,"2",{"3":[true]}', "", "null", "[]", "{}", '"é漢\u{1f642}"', '"\\n\\u0000\\""', '-1.5,1e100,"]"', '["]","["]']) {
      const list = args && `,${args}`;
      socket.send(`42["message"${list}]`);
      const answer = await socket.next("the reply");
      same(answer.slice(0, 2), "42", "type of the reply");
      same(JSON.parse(answer.slice(2)), JSON.parse(`["message-back"${list}]`), "the reply");
    }
  },

  "space between the parts of an event means nothing": async () => {
    const socket = await connected();
    socket.send('42[ "message" , 1 ,\t{ "a" : 2 }\n]');
    same(JSON.parse((await socket.next("the reply")).slice(2)), ["message-back", 1, { a: 2 }], "the reply");
  },

  "an event that nothing is said about is taken, and not acknowledged": async () => {
    const socket = await connected();
    socket.send('42["nobody listens",1]', '427["nobody listens",1]', '42["message","next"]');
    await socket.hears('42["message-back","next"]');
  },

  "an event with an id is acknowledged with it": async () => {
    const socket = await connected();
    for (const id of ["0", "7", "456", "4294967296", "999999999999999"]) {
      socket.send(`42${id}["message-with-ack",1,"2",{"3":[false]}]`);
      await socket.hears(`43${id}[1,"2",{"3":[false]}]`);
    }
    socket.send('421["message-with-ack"]');
    await socket.hears("431[]");
    socket.send("40/custom,");
    await joined(socket, "/custom", {});
    socket.send('42/custom,12["message-with-ack","x"]', '4212["message-with-ack","y"]');
    await socket.hears('43/custom,12["x"]', '4312["y"]');
  },

  "an event with attachments comes back with them": async () => {
    const socket = await connected();
    const [one, two] = [Buffer.from([4, 1, 2, 3]), Buffer.from([4, 4, 5, 6])];
    socket.send(`452-["message",${JSON.stringify(hole(0))},${JSON.stringify(hole(1))}]`, one, two);
    same(await reply(socket, 2), ["452-", "message-back", one, two], "the reply");
    const nested = { a: [hole(1), "text", { b: hole(0) }] };
    socket.send(`452-["message",${JSON.stringify(nested)}]`, one, two);
    same(await reply(socket, 2), ["452-", "message-back", { a: [two, "text", { b: one }] }], "the reply");
    const ten = Array.from({ length: 10 }, (_, index) => Buffer.alloc(index, index));
    socket.send(`4510-${JSON.stringify(["message", ...ten.map((_, index) => hole(index))])}`, ...ten);
    same(await reply(socket, 10), ["4510-", "message-back", ...ten], "the reply");
    socket.send("40/custom,");
    await joined(socket, "/custom", {});
    socket.send(`451-/custom,["message",${JSON.stringify(hole(0))}]`, one);
    same(await reply(socket, 1), ["451-/custom,", "message-back", one], "the reply");
  },

  "an event with attachments and an id is acknowledged with both": async () => {
    const socket = await connected();
    const [one, two] = [Buffer.from([4, 1, 2, 3]), Buffer.from([4, 4, 5, 6])];
    socket.send(`452-789["message-with-ack",${JSON.stringify(hole(0))},${JSON.stringify(hole(1))}]`, one, two);
    same(await reply(socket, 2), ["462-789", one, two], "the ack");
  },

  "attachments go over polling as base64": async () => {
    const polling = await connectedByPolling();
    const event = `451-["message",{"_placeholder":true,"num":0}]`;
    await polling.send(event, "bAQIDBA==", '42["message","next"]');
    const expected = ['451-["message-back",{"_placeholder":true,"num":0}]', "bAQIDBA==", '42["message-back","next"]'];
    same(await polling.take(3), expected, "packets");
    // The attachment may be in another request than the event.
    await polling.send(event);
    await polling.send("bAQIDBA==");
    same(await polling.take(2), expected.slice(0, 2), "packets");
  },

  "the events of one namespace do not come to another": async () => {
    const socket = await connected();
    socket.send("40/guild/1,", "40/guild/2,");
    await joined(socket, "/guild/1", {});
    await joined(socket, "/guild/2", {});
    socket.send('42/guild/2,["message",2]', '42["message",0]', '42/guild/1,["message",1]');
    await socket.hears('42/guild/2,["message-back",2]', '42["message-back",0]', '42/guild/1,["message-back",1]');
  },

  "packets that are none end the session": async () => {
    await offences([
      ["no type", "4"],
      ["an unknown type", "49"],
      ["letters", "4abc"],
      ["an event that is an object", "42{}"],
      ["an event that is text", '42"message"'],
      ["an event without a name", "42[]"],
      ["an event whose name is an object", "42[{}]"],
      ["an event that is cut off", '42["message",1'],
      ["an event with more behind it", '42["message",1]]'],
      ["an id that is none", '42abc["message-with-ack",1]'],
      ["an ack that is an object", "431{}"],
      ["a DISCONNECT with something", '41{"a":1}'],
    ]);
  },

  "names that belong to the library are no events": async () => {
    const names = ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];
    await offences(names.map((name) => [name, `42["${name}",1]`]));
  },

  "attachments that do not fit end the session": async () => {
    const bytes = Buffer.from([1, 2, 3]);
    const two = JSON.stringify(["message", hole(0), hole(1)]);
    const eleven = JSON.stringify(["message", ...Array.from({ length: 11 }, (_, index) => hole(index))]);
    await offences([
      ["bytes that nobody announced", bytes],
      ["text where bytes were announced", `452-${two}`, bytes, '42["message",1]'],
      ["no number of attachments", `45${two}`, bytes, bytes],
      ["a number that is none", `45x-${two}`, bytes, bytes],
      ["too many", `4511-${eleven}`, ...Array(11).fill(bytes)],
      ["a place that there is not", `451-["message",${JSON.stringify(hole(1))}]`, bytes],
      ["a place that is no number", '451-["message",{"_placeholder":true,"num":"0"}]', bytes],
    ]);
  },

  "packets for a namespace that was not joined end the session": async () => {
    await offences([
      ["an event", '42/custom,["message",1]'],
      ["an ack", "43/custom,1[]"],
      ["a DISCONNECT", "41/custom,"],
    ]);
  },

  "packets of Engine.IO that are none end the session": async () => {
    await offences([
      ["an unknown type", "9"],
      ["a ping", "2"],
    ]);
  },

  "an upgrade in the midst of a conversation loses nothing": async () => {
    const polling = await connectedByPolling();
    await polling.send('42["message",1]', '451-["message",{"_placeholder":true,"num":0}]');
    const socket = await Socket.beside(polling);
    socket.send("2probe");
    await socket.hears("3probe");
    await polling.send("bAQIDBA==", '42["message",3]');
    socket.send("5", '42["message",4]');
    await socket.hears('42["message-back",1]');
    same(await reply(socket, 1), ["451-", "message-back", Buffer.from([1, 2, 3, 4])], "the reply");
    await socket.hears('42["message-back",3]', '42["message-back",4]');
  },

  "a CONNECT over polling is answered over the WebSocket that took over": async () => {
    const polling = await Polling.open(ENDPOINT);
    const socket = await Socket.beside(polling);
    socket.send("2probe", "5");
    await socket.hears("3probe");
    socket.send("40");
    await joined(socket, "/", {});
    socket.send('42["message",1]');
    await socket.hears('42["message-back",1]');
  },
});
