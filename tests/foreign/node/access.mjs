// Tokens as stock `socket.io-client` brings them: good ones and bad, on every way; renewal, expiry, recovery, permissions.
//
//   node access.mjs http://HOST:PORT FOLDER
//
// The server takes HS256 by the secret in FOLDER/secret, requires a token, and lets who drops out come back.

import { setTimeout as delay } from "node:timers/promises";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { SignJWT } from "jose";
import { io } from "socket.io-client";
import { WAIT_MS, afterwards, fail, run, same } from "./checks.mjs";

const [url, folder] = process.argv.slice(2);
const secret = readFileSync(join(folder, "secret"));
const now = () => Math.floor(Date.now() / 1000);
const token = (user, claims = {}) =>
  new SignJWT({ sub: user, exp: now() + 600, ...claims }).setProtectedHeader({ alg: "HS256" }).sign(secret);

function connect(options, namespace = "") {
  const socket = io(url + namespace, { forceNew: true, reconnection: false, ...options });
  afterwards(() => socket.disconnect());
  return socket;
}

function once(socket, event) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`no ${event} within ${WAIT_MS} ms`)), WAIT_MS);
    socket.once(event, (...args) => {
      clearTimeout(late);
      resolve(args);
    });
  });
}

async function refused(options, namespace) {
  const socket = connect(options, namespace);
  socket.once("connect", () => fail("it was let in"));
  const [error] = await once(socket, "connect_error");
  return error;
}

const TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]];

run({
  "a token in auth lets in": async () => {
    for (const transports of TRANSPORTS) {
      const socket = connect({ transports, auth: { token: await token("7", { rooms: ["given"] }) } });
      await once(socket, "connect");
      const { rooms } = await socket.timeout(WAIT_MS).emitWithAck("join", "given");
      same(rooms, { given: { members: 0 } }, "the members of its room besides itself");
      socket.disconnect();
      await delay(50);
    }
  },
  "so does one in a header or in the query": async () => {
    for (const transports of TRANSPORTS) {
      const extraHeaders = { Authorization: `Bearer ${await token("7", { rooms: ["given2"] })}` };
      await once(connect({ transports, extraHeaders }), "connect");
      await once(connect({ transports, query: { token: await token("7") } }), "connect");
    }
  },
  "nobody is told what is missing, and may try again": async () => {
    const error = await refused({ transports: ["websocket"] });
    same([error.message, error.data], ["a token is needed", { code: "token_missing" }], "the error");
    const socket = connect({ transports: ["websocket"] });
    await once(socket, "connect_error");
    socket.auth = { token: await token("7") };
    socket.connect();
    await once(socket, "connect");
  },
  "bad tokens are told apart by a code": async () => {
    const expired = await refused({ auth: { token: await token("7", { exp: now() - 600 }) } });
    same(expired.data, { code: "token_expired" }, "of one that has expired");
    const other = await refused({ auth: { token: `${(await token("7")).slice(0, -6)}AAAAAA` } });
    same([other.message, other.data], ["the signature of the token is wrong", { code: "token_refused" }], "of a forged one");
    const header = await refused({ extraHeaders: { Authorization: "Bearer x.y.z" } });
    same(header.context?.status ?? header.description?.status ?? 401, 401, "the status");
  },
  "all namespaces of a connection are one user's": async () => {
    const one = connect({ forceNew: false, multiplex: true, auth: { token: await token("7") } });
    await once(one, "connect");
    const open = (auth) => {
      const socket = one.io.socket("/custom", { auth });
      socket.connect();
      return socket;
    };
    const [error] = await once(open({ token: await token("8") }), "connect_error");
    same(error.message, "the token is another user's", "the error");
    await once(one.io.socket("/guild/1").connect(), "connect");
  },
  "a token is renewed by an event, and runs out otherwise": async () => {
    for (const transports of [["polling"], ["websocket"]]) {
      const brief = async () => ({ transports, auth: { token: await token("7", { exp: now() + 1 }) } });
      const [one, other] = [connect(await brief()), connect(await brief())];
      await Promise.all([once(one, "connect"), once(other, "connect")]);
      // From now on: on a busy machine the answers may take longer than the token lasts.
      const gone = once(other, "disconnect");
      same(await one.timeout(WAIT_MS).emitWithAck("auth", { token: await token("7") }), {}, "the answer");
      const wrong = await one.timeout(WAIT_MS).emitWithAck("auth", { token: await token("8") });
      same(wrong.error.code, "token_refused", "another user's");
      await gone;
      same(one.connected, true, "the one whose token was renewed");
    }
  },
  "what the token does not allow is forbidden": async () => {
    const permissions = ["join,publish:mine:*", { rooms: "read", allow: ["join"], namespace: "/guild/*" }];
    const options = { auth: { token: await token("7", { permissions }) } };
    const socket = connect(options);
    await once(socket, "connect");
    const ask = (socket, ...args) => socket.timeout(WAIT_MS).emitWithAck(...args);
    same((await ask(socket, "join", "mine:1")).rooms, { "mine:1": { members: 0 } }, "its own");
    same((await ask(socket, "join", "theirs")).error?.code, "forbidden", "another's");
    same((await ask(socket, "join", "read")).error?.code, "forbidden", "one of another namespace");
    same(await ask(socket, "publish", "mine:2", "e", 1), {}, "a publication");
    same((await ask(socket, "publish", { rooms: ["mine:2", "theirs"], event: "e" })).error?.code, "forbidden", "to both");
    const guild = connect(options, "/guild/1");
    await once(guild, "connect");
    same((await ask(guild, "join", "read")).error, undefined, "in the namespace that it is for");
    same((await ask(guild, "publish", "read", "e", 1)).error?.code, "forbidden", "but no more than that");
  },
  "a token bounds what its user may send": async () => {
    const socket = connect({ auth: { token: await token("7", { limits: { messages_per_second_max: 2 } }) } });
    await once(socket, "connect");
    const leave = () => socket.timeout(WAIT_MS).emitWithAck("leave", "nowhere");
    const answers = await Promise.all([leave(), leave(), leave(), leave(), leave()]);
    const refused = answers.filter(({ error }) => error?.code === "rate_limited").length;
    if (refused < 1 || refused > 3) fail(`${refused} of 5 were refused`);
  },
  "who comes back is who it was": async () => {
    for (const [user, expected] of [["7", true], ["8", false]]) {
      let current = "7";
      const socket = connect({
        transports: ["websocket"],
        reconnection: true,
        reconnectionDelay: 50,
        auth: (use) => void token(current, { rooms: ["room"] }).then((token) => use({ token })),
      });
      await once(socket, "connect");
      const id = socket.id;
      current = user;
      socket.io.engine.close();
      await once(socket, "connect");
      same([socket.recovered, socket.id === id], [expected, expected], `recovery as ${user}`);
      socket.disconnect();
    }
  },
});
