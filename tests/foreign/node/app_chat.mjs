// The chat of examples/chat as its clients see it, with the stock `socket.io-client`: its document, section by section. The names of the checks
// quote it.
//
//   npm ci && node app_chat.mjs http://127.0.0.1:3000 [http://127.0.0.1:3001]
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The server has throng.toml of
// examples/chat and server.mjs behind it. A second server shares its Redis.

import { setTimeout as delay } from "node:timers/promises";
import { address, afterwards, bounded, fail, run, same, until } from "./checks.mjs";

const { io } = await import("socket.io-client").catch(() => {
  console.error("the package socket.io-client is missing: run `npm ci` in tests/foreign/node");
  process.exit(1);
});

const { url: here, flags } = address("node app_chat.mjs http://HOST:PORT [http://HOST:PORT]");
const there = flags[0] ?? here;

// Each check has users of its own: what they have sent counts for a minute.
let users = 0;
function name() {
  users += 1;
  return `user${String.fromCharCode(97 + Math.floor(users / 26))}${String.fromCharCode(97 + (users % 26))}`;
}

function connect({ at = here, token = name(), ...options } = {}) {
  const socket = io(at, { forceNew: true, transports: ["websocket"], auth: { token }, ...options });
  const inbox = [];
  socket.onAny((event, data) => inbox.push([event, data]));
  afterwards(() => socket.disconnect());
  const next = (event) =>
    until(event, () => {
      const found = inbox.findIndex(([is]) => is === event);
      return found >= 0 && inbox.splice(found, 1)[0][1];
    });
  return { socket, inbox, token, next };
}

async function open(options) {
  const client = connect(options);
  await bounded(
    new Promise((resolve, reject) => client.socket.on("connect", resolve).on("connect_error", reject)),
    "connect",
  );
  return client;
}

// A client in its channels.
async function member(options) {
  const client = await open(options);
  client.socket.emit("authenticated", {});
  client.channels = (await client.next("rooms_joined")).channels;
  return client;
}

// Two who share channels, one at each server.
const pair = async () => [await member(), await member({ at: there })];
const channelId = "general";

run({
  "1. Horizontal Scaling with Redis: messages across server instances": async () => {
    const [one, other] = await pair();
    one.socket.emit("send_message", { channelId, content: "there" });
    other.socket.emit("send_message", { channelId, content: "and back" });
    same((await other.next("new_message")).content, "there", "from the one to the other");
    same((await one.next("new_message")).content, "and back", "and back");
  },
  "2. transports: ['websocket']; and long-polling and the upgrade where a client begins so": async () => {
    for (const transports of [["websocket"], ["polling"], ["polling", "websocket"]]) {
      const client = await member({ transports });
      same(client.channels, ["general", "random", `notes-${client.token}`], `${transports}`);
      if (transports.length === 2) await until("the upgrade", () => client.socket.io.engine.transport.name === "websocket");
    }
  },
  "2. pingInterval: 25000, pingTimeout: 20000, maxHttpBufferSize: 1e6": async () => {
    const answer = await (await fetch(`${here}/socket.io/?EIO=4&transport=polling`)).text();
    const { pingInterval, pingTimeout, maxPayload, upgrades } = JSON.parse(answer.slice(1));
    same([pingInterval, pingTimeout], [25_000, 20_000], "the heartbeat");
    same([maxPayload, upgrades], [1_000_000, ["websocket"]], "the bounds");
    const { socket } = await member();
    const gone = new Promise((resolve) => socket.on("disconnect", resolve));
    socket.io.reconnection(false);
    socket.emit("send_message", { channelId, content: "x".repeat(1_000_001) });
    same(await bounded(gone, "the end"), "transport close", "a longer message");
  },
  "2. connectTimeout: 10000": async () => {
    const answer = await (await fetch(`${here}/socket.io/?EIO=4&transport=polling`)).text();
    const { sid } = JSON.parse(answer.slice(1));
    const since = Date.now();
    // No namespace is joined: the poll ends with the connection.
    const end = await (await fetch(`${here}/socket.io/?EIO=4&transport=polling&sid=${sid}`)).text();
    const took = Date.now() - since;
    if (took < 8_000 || took > 20_000) fail(`it ended after ${took} ms: ${end}`);
  },
  "2. connectionStateRecovery: maxDisconnectionDuration 2 min, skipMiddlewares": async () => {
    const [one, other] = await pair();
    const id = other.socket.id;
    one.socket.emit("send_message", { channelId, content: "before" });
    await other.next("new_message");
    other.socket.io.engine.close();
    await until("it is out", () => !other.socket.connected);
    one.socket.emit("send_message", { channelId, content: "meanwhile" });
    await one.next("message_sent");
    await until("it is back", () => other.socket.connected);
    same([other.socket.recovered, other.socket.id], [true, id], "recovered, and the same");
    same((await other.next("new_message")).content, "meanwhile", "what it has missed");
    one.socket.emit("send_message", { channelId, content: "after" });
    same((await other.next("new_message")).content, "after", "it is still in its rooms");
  },
  "3. Limit Connections Per User: 5, new Error('Connection limit exceeded')": async () => {
    const token = name();
    const five = [];
    for (let n = 0; n < 5; n += 1) five.push(await open({ token, at: here }));
    const sixth = connect({ token, reconnection: false });
    const error = await bounded(new Promise((resolve) => sixth.socket.on("connect_error", resolve)), "connect_error");
    same(error.message, "Connection limit exceeded", "the sixth");
    five[0].socket.disconnect();
    await until("its place", async () => {
      const again = connect({ token, reconnection: false });
      const is = new Promise((resolve) => {
        again.socket.on("connect", () => resolve(true)).on("connect_error", () => resolve(false));
      });
      return bounded(is, "an answer");
    });
  },
  "3. Rate Limit Message Sending: 60 a minute, error { message: 'Rate limit exceeded' }": async () => {
    const [token, peer] = [name(), await member()];
    const [one, other] = [await member({ token }), await member({ token, at: there })];
    // Another process may let through one more (docs/clustering.md).
    const most = here === there ? 60 : 61;
    let sent = 0;
    const refused = new Set();
    for (let n = 0; refused.size < 2; n += 1) {
      const client = n % 2 ? one : other;
      client.socket.emit("send_message", { channelId: "random", content: `${n}` });
      const answer = () => client.inbox.findIndex(([event]) => event === "message_sent" || event === "error");
      await until("an answer", () => answer() >= 0);
      const [[event, data]] = client.inbox.splice(answer(), 1);
      if (event === "error") {
        same(data.message, "Rate limit exceeded", "one too many");
        refused.add(client);
      } else {
        sent += 1;
      }
      if (here !== there && n > 50) await delay(150);
    }
    if (sent < 60 || sent > most) fail(`${sent} messages were sent`);
    peer.socket.emit("send_message", { channelId: "random", content: "free" });
    await peer.next("message_sent");
    // What waits now is for who joins next, too.
    await delay(300);
  },
  "5. Batch Room Operations: 'authenticated' joins all rooms, 'rooms_joined' { channels }": async () => {
    const token = name();
    const client = await open({ token });
    client.socket.emit("authenticated", {});
    same(await client.next("rooms_joined"), { channels: ["general", "random", `notes-${token}`] }, "rooms_joined");
    const peer = await member({ token, at: there });
    for (const room of client.channels ?? peer.channels) {
      peer.socket.emit("send_message", { channelId: room, content: room });
      same((await client.next("new_message")).channelId, room, "it is in all of them");
    }
  },
  "5. Use Native Socket.IO Rooms: who is no member neither hears nor speaks": async () => {
    const [one, other] = await pair();
    other.socket.emit("send_message", { channelId: `notes-${one.token}`, content: "let me in" });
    same((await other.next("error")).code, "forbidden", "a room of somebody else");
    other.socket.emit("join_channel", { channelId: `notes-${one.token}` });
    same((await other.next("error")).message, "Not a member of this channel", "and it does not get in");
    const ack = await bounded(other.socket.emitWithAck("join", { room: `channel:notes-${one.token}` }), "the ack");
    same(ack.error.code, "forbidden", "nor past the application");
  },
  "6. Avoid Broadcasting to Sender: new_message to the others, message_sent { messageId } to the sender": async () => {
    const [one, other] = await pair();
    one.socket.emit("send_message", { channelId, content: "hi", userId: "somebody else" });
    const sent = await one.next("message_sent");
    const { createdAt, ...message } = await other.next("new_message");
    same(message, { channelId, content: "hi", id: sent.messageId, userId: one.token }, "the message");
    if (Math.abs(Date.now() - createdAt) > 60_000) fail(`it was sent at ${createdAt}`);
    same(Object.keys(sent), ["messageId"], "the confirmation");
    await delay(200);
    same(one.inbox, [], "its sender hears no more");
  },
  "6. Batch Multiple Events: batch_update { newMessage, typingStopped, reactionAdded }": async () => {
    const [one, other] = await pair();
    const third = await member();
    // On a machine that is busy they may miss each other.
    for (let attempt = 0; attempt < 20; attempt += 1) {
      one.socket.emit("send_message", { channelId, content: "hi" });
      one.socket.emit("typing_stopped", { channelId });
      one.socket.emit("add_reaction", { channelId, messageId: "m1", emoji: "+1" });
      await until("something", () => other.inbox.length > 0 && third.inbox.length > 0);
      await delay(100);
      const [[event, update], ...more] = other.inbox.splice(0);
      third.inbox.splice(0);
      if (event !== "batch_update" || more.length > 0) continue;
      same(Object.keys(update).sort(), ["newMessage", "reactionAdded", "typingStopped"], "its fields");
      same(update.newMessage.content, "hi", "the message");
      same(update.typingStopped, { channelId, userId: one.token }, "the end of the typing");
      same(update.reactionAdded, { channelId, messageId: "m1", emoji: "+1", userId: one.token }, "the reaction");
      return same(one.inbox.filter(([event]) => event !== "message_sent"), [], "their sender gets none of it");
    }
    fail("no batch_update in 20 attempts");
  },
  "6. an event that is alone is itself: typing_started, typing_stopped, reaction_added": async () => {
    const [one, other] = await pair();
    for (const [event, data, heard] of [
      ["typing_started", {}, "typing_started"],
      ["typing_stopped", {}, "typing_stopped"],
      ["add_reaction", { messageId: "m2", emoji: "+1" }, "reaction_added"],
    ]) {
      one.socket.emit(event, { channelId, ...data });
      same(await other.next(heard), { channelId, ...data, userId: one.token }, event);
      await delay(60);
    }
  },
  "10. Reconnection Strategy: reconnect_attempt, reconnect, and re-joining by join_channel": async () => {
    const one = await member({ at: there });
    const client = await member({ reconnection: true, reconnectionDelay: 10, reconnectionDelayMax: 50, reconnectionAttempts: 5 });
    const said = [];
    client.socket.io.on("reconnect_attempt", () => said.push("Reconnecting..."));
    client.socket.io.on("reconnect", () => {
      said.push("Reconnected!");
      client.channels.forEach((ch) => client.socket.emit("join_channel", { channelId: ch }));
    });
    client.socket.io.engine.close();
    for (const channelId of client.channels) same(await client.next("joined_channel"), { channelId }, "joined_channel");
    same(said, ["Reconnecting...", "Reconnected!"], "what the client sees");
    one.socket.emit("send_message", { channelId, content: "once" });
    await client.next("new_message");
    await delay(100);
    same(client.inbox, [], "it is in each room once");
  },
  "who is nobody does not get in": async () => {
    for (const [auth, message] of [
      [{ token: "1 2 3" }, "Authentication failed"],
      [{}, undefined],
    ]) {
      const { socket } = connect({ auth, reconnection: false });
      const error = await bounded(new Promise((resolve) => socket.on("connect_error", resolve)), "connect_error");
      if (message) same(error.message, message, "what the application says");
    }
  },
  "Health Check Endpoint": async () => {
    const answer = await fetch(`${here}/health`);
    same(answer.status, 200, "the status");
    const { status, connections, uptime_seconds, memory_bytes } = await answer.json();
    same([status, ...[connections, uptime_seconds, memory_bytes].map(Number.isInteger)], ["ok", true, true, true], "what it says");
  },
});
