// Engine.IO v4 as a server has to speak it, packet by packet, at a path where messages come back as they are.
//
//   npm ci && node engineio.mjs http://127.0.0.1:7070
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The server
// needs `engineio.echo_path = "/engine.io/"`, `socketio.cors_origins = ["*"]`, messages of up to 1,000,000 bytes and a heartbeat of a
// few hundred milliseconds: see examples/socketio-compliance.toml.

import { setTimeout as delay } from "node:timers/promises";
import { gunzipSync } from "node:zlib";
import { address, afterwards, fail, run, same, until } from "./checks.mjs";
import { Polling, request, SEPARATOR, Socket } from "./engine.mjs";

const { url } = address("node engineio.mjs http://HOST:PORT");
const ENDPOINT = `${url}/engine.io/`;
const PAYLOAD_MAX = 1_000_000;
const EARLY_MS = 20; // how much before its time something may happen, since two clocks are looked at
const LATE_MS = 2_000; // how much after it, since the machine may be busy

// The keys of an open packet and their values.
function sameHandshake(handshake, upgrades) {
  same(Object.keys(handshake), ["sid", "upgrades", "pingInterval", "pingTimeout", "maxPayload"], "keys of the handshake");
  if (!/^[A-Za-z0-9_-]{20}$/.test(handshake.sid)) fail(`session id ${handshake.sid}`);
  same(handshake.upgrades, upgrades, "upgrades");
  same(handshake.maxPayload, PAYLOAD_MAX, "maxPayload");
  for (const key of ["pingInterval", "pingTimeout"])
    if (!(handshake[key] > 0)) fail(`${key} is ${handshake[key]}`);
}

// A request is refused with a code of Engine.IO.
async function refused(query, code, options) {
  const answer = await request(`${ENDPOINT}${query}`, options);
  same(answer.status, 400, `status of ${options?.method ?? "GET"} ${query} (${answer.text})`);
  same(answer.headers["content-type"], "application/json", `type of the answer to ${query}`);
  same(JSON.parse(answer.text).code, code, `code for ${query}`);
}

function between(elapsed, from, what) {
  if (elapsed < from - EARLY_MS || elapsed > from + LATE_MS) fail(`${what} after ${elapsed} ms, due after ${from} ms`);
}

// Upgrades a session and answers its WebSocket.
async function upgraded(polling) {
  const socket = await Socket.beside(polling);
  socket.send("2probe");
  await socket.hears("3probe");
  socket.send("5");
  return socket;
}

run({
  "polling: the handshake says what the session may do": async () => {
    const answer = await request(`${ENDPOINT}?EIO=4&transport=polling&t=abc`);
    same(answer.status, 200, "status");
    same(answer.headers["content-type"], "text/plain; charset=UTF-8", "content type");
    same(answer.text[0], "0", "type of the packet");
    sameHandshake(JSON.parse(answer.text.slice(1)), ["websocket"]);
  },

  "polling: no two sessions have the same id": async () => {
    const sessions = await Promise.all(Array.from({ length: 50 }, () => Polling.open(ENDPOINT)));
    same(new Set(sessions.map(({ handshake }) => handshake.sid)).size, 50, "different ids");
  },

  "polling: a handshake of another version is refused": async () => {
    for (const query of ["?transport=polling", "?EIO=3&transport=polling", "?EIO=abc&transport=polling"])
      await refused(query, 5);
  },

  "polling: a handshake for no transport is refused": async () => {
    for (const query of ["?EIO=4", "?EIO=4&transport=abc", ""]) await refused(query, 0);
    await refused("?EIO=4&transport=websocket", 3); // it is there, but not as a plain request
  },

  "polling: a handshake is a GET": async () => {
    for (const method of ["POST", "PUT", "DELETE"]) await refused("?EIO=4&transport=polling", 2, { method });
  },

  "polling: requests for a session that is not there are refused": async () => {
    for (const sid of ["nope", "A".repeat(20), "-".repeat(20), "x".repeat(500)]) {
      await refused(`?EIO=4&transport=polling&sid=${sid}`, 1);
      await refused(`?EIO=4&transport=polling&sid=${sid}`, 1, { method: "POST", body: "4hello" });
    }
  },

  "websocket: the handshake says what the session may do": async () => {
    const socket = await Socket.open(ENDPOINT);
    sameHandshake(socket.handshake, []);
  },

  "websocket: a handshake of another version or for no transport opens nothing": async () => {
    for (const query of ["?transport=websocket", "?EIO=3&transport=websocket", "?EIO=abc&transport=websocket"])
      await Socket.refused(`${ENDPOINT}${query}`, query);
    for (const query of ["?EIO=4", "?EIO=4&transport=abc"]) await Socket.refused(`${ENDPOINT}${query}`, query);
  },

  "websocket: an upgrade of a session that is not there is refused": async () => {
    const query = `?EIO=4&transport=websocket&sid=${"A".repeat(20)}`;
    const outcome = await Socket.connect(`${ENDPOINT}${query}`).then(() => "open", (error) => error.message);
    same(outcome, "HTTP 400", "outcome");
  },

  "polling: a message comes back": async () => {
    const polling = await Polling.open(ENDPOINT);
    for (const message of ["4hello", "4", "4é漢\u{1f642}", "4\\u001e", "4{\"a\":[1]}", "4line\nfeed\r\n\0"]) {
      const posted = await polling.post(message);
      same([posted.status, posted.text], [200, "ok"], "answer to the POST");
      same(posted.headers["content-type"], "text/html", "content type of the answer to the POST");
      const polled = await polling.poll();
      same([polled.status, polled.text], [200, message], "answer to the poll");
      same(polled.headers["content-type"], "text/plain; charset=UTF-8", "content type of the answer to the poll");
      same(polled.headers["cache-control"], "no-store", "cache-control of the answer to the poll");
    }
  },

  "polling: several messages in one payload come back in order": async () => {
    const polling = await Polling.open(ENDPOINT);
    await polling.send("4test1", "4test2", "4test3");
    same(await polling.take(3), ["4test1", "4test2", "4test3"], "packets");
    const many = Array.from({ length: 1000 }, (_, index) => `4${index}`);
    await polling.send(...many);
    same(await polling.take(1000), many, "packets");
  },

  "polling: bytes come back as base64": async () => {
    const polling = await Polling.open(ENDPOINT);
    await polling.send("4hello", "bAQIDBA==", "4between", "b/+8=", "bAA==");
    same(await polling.take(5), ["4hello", "bAQIDBA==", "4between", "b/+8=", "bAA=="], "packets");
    const bytes = Buffer.from(Array.from({ length: 100_000 }, (_, index) => (index * 7) % 256));
    await polling.send(`b${bytes.toString("base64")}`);
    same(await polling.take(1), [`b${bytes.toString("base64")}`], "packets");
  },

  "polling: a poll that waits is answered when there is something": async () => {
    const polling = await Polling.open(ENDPOINT);
    const waiting = polling.poll();
    await delay(50);
    await polling.send("4hello");
    same((await waiting).text, "4hello", "answer to the poll");
  },

  "polling: a large answer is compressed for who can read that, and for nobody else": async () => {
    const message = `4${"throng ".repeat(2000)}`;
    for (const [headers, expected] of [[{ "Accept-Encoding": "gzip, deflate, br" }, true], [{}, false]]) {
      const polling = await Polling.open(ENDPOINT);
      await polling.send(message);
      const { bytes, headers: told } = await polling.poll({ headers });
      same(told["content-encoding"], expected ? "gzip" : undefined, "content encoding");
      same((expected ? gunzipSync(bytes) : bytes).toString(), message, "the message");
      same(told["content-length"] ?? String(bytes.length), String(bytes.length), "content length");
    }
  },

  "websocket: a message comes back": async () => {
    const socket = await Socket.open(ENDPOINT);
    for (const message of ["4hello", "4", "4é漢\u{1f642}", "4\x1e4", "4line\nfeed\r\n\0"]) {
      socket.send(message);
      await socket.hears(message);
    }
  },

  "websocket: several messages, text and bytes, come back in order": async () => {
    const socket = await Socket.open(ENDPOINT);
    const messages = ["4hello", Buffer.from([1, 2, 3, 4]), "4", Buffer.from("4hello"), Buffer.alloc(0), "4end"];
    const many = Array.from({ length: 500 }, (_, index) => `4${index}`);
    socket.send(...messages, ...many);
    await socket.hears(...messages, ...many);
  },

  "a message of nearly the limit comes back, a larger one ends the session": async () => {
    const largest = `4${"x".repeat(PAYLOAD_MAX - 1)}`;
    const polling = await Polling.open(ENDPOINT);
    await polling.send(largest);
    if ((await polling.take(1))[0] !== largest) fail("another message came back over polling");
    const posted = await polling.post(`${largest}x`).catch((error) => ({ status: error.message }));
    same(posted.status, 413, "status of a POST that is too large");
    const socket = await Socket.open(ENDPOINT);
    socket.send(largest);
    if ((await socket.next("the message")) !== largest) fail("another message came back over WebSocket");
    socket.send(`${largest}x`);
    same(await socket.closes("a message that is too large"), 1009, "close code");
  },

  "polling: a packet that is none ends the session": async () => {
    for (const body of ["abc", "", "7", "4fine\x1e", "4fine\x1ex", "\x1e4fine"]) {
      const polling = await Polling.open(ENDPOINT);
      const { status } = await polling.post(body);
      if (![200, 400].includes(status)) fail(`status ${status} for ${JSON.stringify(body)}`);
      // What came before it may have been carried out.
      await until(`the session ends after ${JSON.stringify(body)}`, async () => (await polling.poll()).status === 400);
    }
  },

  "polling: bytes as they are, without base64, are refused": async () => {
    const polling = await Polling.open(ENDPOINT);
    const { status } = await polling.post(Buffer.from([1, 2, 3, 4]), { "Content-Type": "application/octet-stream" });
    same(status, 400, "status");
  },

  "websocket: a packet that is none ends the session": async () => {
    for (const frame of ["abc", "7", ""]) {
      const socket = await Socket.open(ENDPOINT);
      socket.send(frame);
      await socket.closes(JSON.stringify(frame));
    }
  },

  "polling: a second poll beside one that waits ends the session": async () => {
    const polling = await Polling.open(ENDPOINT);
    const first = polling.poll();
    await delay(50);
    const second = await polling.poll();
    same(second.status, 400, "status of the second poll");
    const { status, text } = await first;
    same([status, text], [200, "1"], "answer to the first poll");
    await polling.ends();
  },

  "polling: a poll that the client breaks off ends the session": async () => {
    const polling = await Polling.open(ENDPOINT);
    const broken = new AbortController();
    const waiting = polling.poll({ signal: broken.signal }).catch((error) => error.name);
    await delay(50);
    broken.abort();
    same(await waiting, "AbortError", "the first poll");
    await delay(20);
    await polling.ends();
  },

  "polling: pings come as often as was said, and pongs keep the session": async () => {
    const started = Date.now();
    const polling = await Polling.open(ENDPOINT);
    const { pingInterval } = polling.handshake;
    for (let count = 1; count <= 4; count++) {
      const { status, text } = await polling.poll();
      same([status, text], [200, "2"], `poll ${count}`);
      between(Date.now() - started, count * pingInterval, `ping ${count}`);
      await polling.send("3");
    }
  },

  "polling: without a pong the session ends, and not before its time": async () => {
    const started = Date.now();
    const polling = await Polling.open(ENDPOINT);
    const { pingInterval, pingTimeout } = polling.handshake;
    same((await polling.poll()).text, "2", "the ping");
    // The poll that waits now ends with the session.
    await polling.poll();
    between(Date.now() - started, pingInterval + pingTimeout, "the end of the session");
    await polling.ends();
  },

  "polling: a client that does not even poll loses its session": async () => {
    const polling = await Polling.open(ENDPOINT);
    const { pingInterval, pingTimeout } = polling.handshake;
    await delay(pingInterval + pingTimeout + 300);
    same((await polling.post("3")).status, 400, "status of a POST");
    same((await polling.poll()).status, 400, "status of a poll");
  },

  "websocket: pings come as often as was said, and pongs keep the session": async () => {
    const started = Date.now();
    const socket = await Socket.open(ENDPOINT, { pings: "seen" });
    for (let count = 1; count <= 4; count++) {
      await socket.hears("2");
      between(Date.now() - started, count * socket.handshake.pingInterval, `ping ${count}`);
      socket.send("3");
    }
  },

  "websocket: without a pong the session ends, and not before its time": async () => {
    const started = Date.now();
    const socket = await Socket.open(ENDPOINT, { pings: "seen" });
    const { pingInterval, pingTimeout } = socket.handshake;
    await socket.closes("silence");
    between(Date.now() - started, pingInterval + pingTimeout, "the close");
  },

  // A stock client gives up when no ping comes, whatever else does.
  "websocket: a client that talks without a pause is pinged too": async () => {
    const started = Date.now();
    const socket = await Socket.open(ENDPOINT, { pings: "seen" });
    const { pingInterval } = socket.handshake;
    const talk = setInterval(() => socket.send("4and another thing"), 20);
    afterwards(() => clearInterval(talk));
    for (let count = 1; count <= 3; count++) {
      while ((await socket.next(`ping ${count}`)) !== "2");
      between(Date.now() - started, count * pingInterval, `ping ${count}`);
      socket.send("3");
    }
  },

  "a ping from the client ends the session": async () => {
    const socket = await Socket.open(ENDPOINT, { pings: "seen" });
    socket.send("2");
    await socket.closes("a ping");
    const polling = await Polling.open(ENDPOINT);
    await polling.post("2");
    await polling.ends();
  },

  "polling: a close packet ends the session and the poll that waits": async () => {
    const polling = await Polling.open(ENDPOINT);
    const waiting = polling.poll();
    await delay(50);
    await polling.send("1");
    const { status, text } = await waiting;
    same([status, text], [200, "6"], "answer to the poll that waited");
    await polling.ends();
  },

  // At once, or when no pong comes any more: Node's server does the latter.
  "websocket: a close packet ends the session": async () => {
    const socket = await Socket.open(ENDPOINT, { pings: "seen" });
    socket.send("1");
    await socket.closes("a close packet");
  },

  "websocket: a close frame is answered": async () => {
    const socket = await Socket.open(ENDPOINT);
    socket.socket.close();
    same(await socket.closes("a close frame"), 1005, "close code");
  },

  "upgrade: the poll that waits ends with a noop, then everything goes over the WebSocket": async () => {
    for (const waits of ["before the probe", "after the probe"]) {
      const polling = await Polling.open(ENDPOINT);
      let waiting = waits === "before the probe" ? polling.poll() : null;
      const socket = await Socket.beside(polling);
      socket.send("2probe");
      await socket.hears("3probe");
      waiting ??= polling.poll();
      const { status, text } = await waiting;
      same([status, text], [200, "6"], `answer to the poll that waits since ${waits}`);
      socket.send("5", "4hello", Buffer.from([1, 2, 3]));
      await socket.hears("4hello", Buffer.from([1, 2, 3]));
    }
  },

  "upgrade: what is said while it goes on is neither lost nor doubled": async () => {
    const polling = await Polling.open(ENDPOINT);
    const socket = await Socket.beside(polling);
    await polling.send("4one");
    socket.send("2probe");
    await polling.send("4two");
    await socket.hears("3probe");
    await polling.send("4three");
    socket.send("5", "4four");
    // What had not been fetched before the upgrade comes over the WebSocket.
    await socket.hears("4one", "4two", "4three", "4four");
  },

  "upgrade: afterwards polls and posts with the session's id are refused": async () => {
    const polling = await Polling.open(ENDPOINT);
    const socket = await upgraded(polling);
    socket.send("4first");
    await socket.hears("4first");
    same((await polling.poll()).status, 400, "status of a poll");
    same((await polling.post("4over polling")).status, 400, "status of a POST");
    socket.send("4hello");
    await socket.hears("4hello");
  },

  "upgrade: a probe and the upgrade in one go are enough": async () => {
    const polling = await Polling.open(ENDPOINT);
    const socket = await Socket.beside(polling);
    socket.send("2probe", "5", "4hello");
    await socket.hears("3probe", "4hello");
    same((await polling.poll()).status, 400, "status of a poll");
  },

  "upgrade: afterwards another WebSocket with the session's id is refused": async () => {
    const polling = await Polling.open(ENDPOINT);
    const socket = await upgraded(polling);
    socket.send("4first");
    await socket.hears("4first");
    const second = await Socket.beside(polling).catch(() => null);
    if (second) await second.closes("the session has one already");
    socket.send("4hello");
    await socket.hears("4hello");
  },

  "upgrade: a second WebSocket while one is being probed is refused": async () => {
    const polling = await Polling.open(ENDPOINT);
    const socket = await Socket.beside(polling);
    socket.send("2probe");
    await socket.hears("3probe");
    const second = await Socket.beside(polling).catch(() => null);
    if (second) await second.closes("the session has one already");
    socket.send("5", "4hello");
    await socket.hears("4hello");
  },

  "upgrade: a WebSocket that does not begin with a probe ends alone": async () => {
    const polling = await Polling.open(ENDPOINT);
    const socket = await Socket.beside(polling);
    socket.send("4hello");
    await socket.closes("no probe");
    await polling.send("4still here");
    same(await polling.take(1), ["4still here"], "packets");
    const second = await upgraded(polling);
    second.send("4again");
    await second.hears("4again");
  },

  "upgrade: a WebSocket that goes away before the upgrade leaves the session": async () => {
    const polling = await Polling.open(ENDPOINT);
    const socket = await Socket.beside(polling);
    socket.send("2probe");
    await socket.hears("3probe");
    socket.socket.terminate();
    await polling.send("4still here");
    const packets = await polling.take(1);
    same(packets[0] === "6" ? await polling.take(1) : packets, ["4still here"], "packets");
  },

  "upgrade: pings go on": async () => {
    const polling = await Polling.open(ENDPOINT);
    const socket = await upgraded(polling);
    socket.pings = "seen";
    for (let count = 1; count <= 3; count++) {
      await socket.hears("2");
      socket.send("3");
    }
  },

  "a page of any origin may read the answers": async () => {
    const headers = { Origin: "http://page.example" };
    const query = "?EIO=4&transport=polling";
    const opened = await request(`${ENDPOINT}${query}`, { headers });
    same(opened.headers["access-control-allow-origin"], "*", "on a handshake");
    const { sid } = JSON.parse(opened.text.slice(1));
    const posted = await request(`${ENDPOINT}${query}&sid=${sid}`, { method: "POST", body: "4hello", headers });
    same(posted.headers["access-control-allow-origin"], "*", "on the answer to a POST");
    const error = await request(`${ENDPOINT}?EIO=4`, { headers });
    same([error.status, error.headers["access-control-allow-origin"]], [400, "*"], "on an error");
    const asked = { ...headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-app" };
    const told = await request(`${ENDPOINT}${query}`, { method: "OPTIONS", headers: asked });
    same([told.status, told.headers["access-control-allow-origin"]], [204, "*"], "on the answer to a preflight");
    if (!told.headers["access-control-allow-methods"]?.split(/, ?/).includes("POST")) fail("POST is not allowed");
    if (!told.headers["access-control-allow-headers"]?.split(/, ?/).includes("x-app")) fail("x-app is not allowed");
  },
});
