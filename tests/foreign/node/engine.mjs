// Engine.IO v4 by hand, so that a check can say what no stock client would: sessions over long-polling and over WebSocket.

import http from "node:http";
import { afterwards, bounded, fail, same, show, until, WAIT_MS } from "./checks.mjs";

const WebSocket = await import("ws").then(
  (module) => module.default,
  () => {
    console.error("the package ws is missing: run `npm ci` in tests/foreign/node");
    process.exit(1);
  },
);

export const SEPARATOR = "\x1e";

// Requests go in turns over connections that are kept and over ones of their own, since the server may have to hand the latter to
// another of its threads.
const kept = new http.Agent({ keepAlive: true });
let requests = 0;

// One HTTP request; answers status, headers and the body as bytes and as text. `signal` breaks it off.
export function request(url, { method = "GET", body, headers = {}, signal } = {}) {
  const agent = requests++ % 2 === 0 ? kept : false;
  const answer = new Promise((resolve, reject) => {
    const outgoing = http.request(url, { method, headers, agent, signal }, (incoming) => {
      const chunks = [];
      incoming.on("data", (chunk) => chunks.push(chunk));
      incoming.on("error", reject);
      incoming.on("end", () => {
        const bytes = Buffer.concat(chunks);
        resolve({ status: incoming.statusCode, headers: incoming.headers, bytes, text: bytes.toString() });
      });
    });
    outgoing.on("error", reject);
    outgoing.end(body);
  });
  return bounded(answer, `the answer to ${method} ${url}`);
}

// A session over long-polling.
export class Polling {
  // `endpoint` is the address of the path, as in http://127.0.0.1:7070/socket.io/.
  static async open(endpoint) {
    const answer = await request(`${endpoint}?EIO=4&transport=polling`);
    same(answer.status, 200, `status of the handshake (${answer.text})`);
    same(answer.text[0], "0", "type of the first packet");
    return new Polling(endpoint, JSON.parse(answer.text.slice(1)));
  }

  constructor(endpoint, handshake) {
    this.endpoint = endpoint;
    this.handshake = handshake;
    this.url = `${endpoint}?EIO=4&transport=polling&sid=${handshake.sid}`;
    this.arrived = []; // packets that came and were not yet taken
  }

  poll(options) {
    return request(this.url, options);
  }

  post(body, headers = { "Content-Type": "text/plain;charset=UTF-8" }) {
    return request(this.url, { method: "POST", body, headers });
  }

  async send(...packets) {
    const { status, text } = await this.post(packets.join(SEPARATOR));
    same([status, text], [200, "ok"], "answer to a POST");
  }

  // The next packets that come, pings aside, which are answered.
  async take(count) {
    while (this.arrived.length < count) {
      const { status, text } = await this.poll();
      same(status, 200, `status of a poll (${text})`);
      for (const packet of text.split(SEPARATOR)) {
        if (packet === "2") await this.send("3");
        else this.arrived.push(packet);
      }
    }
    return this.arrived.splice(0, count);
  }

  // The session ends, without sending anything more than `6` and `1`, which say so.
  async ends() {
    const [code] = await until("the session ends", async () => {
      const { status, text } = await this.poll();
      if (status === 400) return [JSON.parse(text).code];
      same(status, 200, `status of a poll (${text})`);
      // A ping may have been on its way.
      const other = text.split(SEPARATOR).filter((packet) => !["1", "2", "6"].includes(packet));
      same(other, [], "packets of a session that has ended");
    });
    same(code, 1, "code of the refused poll");
  }
}

// A WebSocket, over which a session is opened or an existing one upgraded.
export class Socket {
  // Opens a session; `pings` says whether pings are answered (and not seen) or left to the check.
  static async open(endpoint, { pings = "answered" } = {}) {
    const socket = await Socket.connect(`${endpoint}?EIO=4&transport=websocket`, { pings });
    const open = await socket.next("the open packet");
    same(open[0], "0", "type of the first packet");
    socket.handshake = JSON.parse(open.slice(1));
    return socket;
  }

  // A WebSocket for the session of `polling`.
  static beside(polling) {
    return Socket.connect(`${polling.endpoint}?EIO=4&transport=websocket&sid=${polling.handshake.sid}`);
  }

  // Rejects with the HTTP status when the server refuses.
  static connect(url, { pings = "answered", headers = {} } = {}) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(url.replace("http", "ws"), { handshakeTimeout: WAIT_MS, headers });
      const wrapped = new Socket(socket, pings);
      socket.on("open", () => resolve(wrapped));
      socket.on("unexpected-response", (_, response) => reject(new Error(`HTTP ${response.statusCode}`)));
      socket.on("upgrade", (response) => (wrapped.headers = response.headers));
      socket.on("error", reject); // after the opening this has no effect: `close` follows
    });
  }

  // Nobody can open a session at this address.
  static async refused(url, what) {
    const socket = await Socket.connect(url).catch(() => null);
    if (socket) await socket.closes(what);
  }

  constructor(socket, pings) {
    this.socket = socket;
    this.pings = pings;
    this.arrived = []; // frames that came and were not yet taken: strings and buffers
    this.waiting = null; // who waits for the next one
    socket.on("message", (bytes, isBinary) => this.receive(isBinary ? bytes : bytes.toString()));
    this.closed = new Promise((resolve) => socket.on("close", resolve));
    this.closed.then((code) => this.waiting?.reject(new Error(`closed with ${code}`)));
    afterwards(() => socket.terminate());
  }

  receive(frame) {
    if (frame === "2" && this.pings === "answered") {
      this.send("3");
    } else if (this.waiting) {
      this.waiting.resolve(frame);
      this.waiting = null;
    } else {
      this.arrived.push(frame);
    }
  }

  send(...frames) {
    for (const frame of frames) this.socket.send(frame);
  }

  // The next frame.
  next(what) {
    if (this.arrived.length > 0) return Promise.resolve(this.arrived.shift());
    if (this.socket.readyState === WebSocket.CLOSED) return fail(`${what}: the connection has closed`);
    const frame = new Promise((resolve, reject) => {
      this.waiting = { resolve, reject: (error) => reject(new Error(`${what}: ${error.message}`)) };
    });
    return bounded(frame, what).finally(() => (this.waiting = null));
  }

  // The next frames are these.
  async hears(...frames) {
    for (const frame of frames) same(await this.next(show(frame)), frame, "the next frame");
  }

  // The server closes, and nothing but pings came before that; answers the close code.
  async closes(what, milliseconds) {
    const code = await bounded(this.closed, `closing after ${what}`, milliseconds);
    same(this.arrived.filter((frame) => frame !== "2"), [], `frames before the close after ${what}`);
    return code;
  }
}
