// Routes as stock `socket.io-client` sees them.
//
//   node routes.mjs http://HOST:PORT SECRET
//
// The server has tests/it/routes/settings.toml; SECRET is the one that is in it.

import { io } from "socket.io-client";
import * as msgpack from "socket.io-msgpack-parser";
import { SignJWT } from "jose";
import { WAIT_MS, afterwards, bounded, fail, run, same, show } from "./checks.mjs";

const [url, secret] = process.argv.slice(2);
const now = () => Math.floor(Date.now() / 1000);
const token = (user, claims = {}) =>
  new SignJWT({ sub: user, exp: now() + 600, ...claims })
    .setProtectedHeader({ alg: "HS256" })
    .sign(new TextEncoder().encode(secret));

// A client that is there, and keeps what it is told.
async function client(user, options = {}, namespace = "") {
  const auth = user ? { token: await token(user, options.claims) } : {};
  const socket = io(url + namespace, { forceNew: true, transports: ["websocket"], auth, ...options });
  afterwards(() => socket.disconnect());
  const told = [];
  socket.onAny((event, ...args) => told.push([event, ...args]));
  socket.heard = async (event) => {
    const deadline = Date.now() + WAIT_MS;
    for (;;) {
      const at = told.findIndex(([name]) => name === event);
      if (at >= 0) return told.splice(at, 1)[0].slice(1);
      if (Date.now() > deadline) fail(`no ${event}, only ${show(told)}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  };
  socket.told = told;
  socket.ask = (event, ...args) => socket.timeout(WAIT_MS).emitWithAck(event, ...args);
  await bounded(new Promise((resolve) => socket.once("connect", resolve)), "connect");
  return socket;
}

// All that has been published to a client before has come when this is done.
const settled = (socket) => socket.ask("join_channel", { channelId: "settled" });

run({
  "a room's name is made of the payload": async () => {
    const [one, other] = [await client("ann"), await client("bob")];
    same(await one.ask("join_channel", { channelId: "x1" }), { joined: "x1" }, "the ack");
    await other.ask("join_channel", { channelId: "x1" });
    const ack = await one.ask("send_message", { channelId: "x1", text: 'say "hi"\n', extra: [1, { a: 2 }] });
    const [sent] = await one.heard("message_sent");
    same(sent, { messageId: ack.id }, "the confirmation");
    same(ack.socket, one.id, "its own id");
    const [message] = await other.heard("new_message");
    const { at, ...rest } = message;
    if (Math.abs(at - Date.now()) > 60_000) fail(`the time is ${at}`);
    const line = 'ann: say "hi"\n';
    same(rest, { channelId: "x1", text: 'say "hi"\n', extra: [1, { a: 2 }], id: ack.id, from: "ann", line }, "the message");
    await settled(one);
    same(one.told, [], "nothing else, and not its own message");
    const again = await one.ask("send_message", { channelId: "x1", text: "" });
    if (again.id === ack.id) fail("an id came twice");
  },
  "several rooms are joined at once, and left": async () => {
    const [one, other] = [await client("ann"), await client("bob")];
    one.emit("authenticated", { channels: ["l1", "l2", 3] });
    const [joined] = await one.heard("rooms_joined");
    same(joined.channels, ["l1", "l2", 3], "what it has named");
    same(joined.rooms.sort(), ["channel:3", "channel:l1", "channel:l2"], "its rooms");
    await other.ask("join_channel", { channelId: "3" });
    await other.ask("send_message", { channelId: "3", text: "a" });
    await one.heard("new_message");
    await one.ask("leave_channel", { channelId: 3 });
    await other.ask("send_message", { channelId: "3", text: "b" });
    await settled(one);
    same(one.told, [], "nothing after it has left");
  },
  "who may not is told so": async () => {
    const [nobody, ann] = [await client(), await client("ann")];
    const code = async (socket, event, ...args) => (await socket.ask(event, ...args)).error?.code;
    same(await code(nobody, "send_message", { channelId: "z", text: "a" }), "forbidden", "nobody");
    same(await code(ann, "send_message", { channelId: "z", text: "a" }), "forbidden", "no member");
    same(await code(ann, "shout", "a"), "forbidden", "no admin");
    same(await code(ann, "join_own", { owner: "bob" }), "forbidden", "somebody else's room");
    same(await code(ann, "join_own", { owner: "ann" }), undefined, "its own");
    same((await nobody.ask("join_mine")).error, { code: "forbidden", message: "only users may do this" }, "no user");
    same((await ann.ask("closed")).error, { code: "forbidden", message: "this shop is closed" }, "refused");
    ann.emit("closed");
    same(await ann.heard("error"), [{ code: "forbidden", message: "this shop is closed" }], "without an ack");
  },
  "what is missing or of the wrong kind is told": async () => {
    const ann = await client("ann");
    const error = async (event, ...args) => {
      const { error } = await ann.ask(event, ...args);
      return error && [error.code, error.message];
    };
    await ann.ask("join_channel", { channelId: "k" });
    for (const [event, args, expected] of [
      ["send_message", [], ["bad_message", "`channelId` is missing"]],
      ["send_message", ["text"], ["bad_message", "`channelId` is missing"]],
      ["send_message", [{ channelId: 1, text: "a" }], ["bad_message", "`channelId` is no string"]],
      ["send_message", [{ channelId: "k", text: "a", priority: "high" }], ["bad_message", "`priority` is no number"]],
      ["send_message", [{ channelId: "k", text: "a", priority: null }], undefined],
      ["join_channel", [{ channelId: "a\nb" }], ["bad_room", "`channelId` has letters that are not allowed in a name"]],
      ["join_channel", [{ channelId: "../k" }], ["bad_room", "`channelId` has letters that are not allowed in a name"]],
      ["join_channel", [{ channelId: "k:admin" }], ["bad_room", "`channelId` has letters that are not allowed in a name"]],
      ["join_channel", [{ channelId: "x".repeat(1 << 19) }], ["bad_room", "`channelId` is too long for a name"]],
      ["join_channel", [{ channelId: "x".repeat(60) }], ["bad_room", "a room name has 68 bytes; at most 60 are allowed"]],
      ["leave_channel", [{ channelId: { toString: 1 } }], ["bad_room", "`channelId` is neither a text nor a number"]],
      ["authenticated", [{ channels: ["a", ["b"]] }], ["bad_room", "`channels` is neither a text nor a number"]],
      ["authenticated", [{ channels: Array(11).fill("a") }], ["bad_room", "`channels` names more than 10 rooms"]],
      ["typing", [{}], ["bad_room", "`channelId` is missing"]],
      // A key that is no text hides nothing that comes behind it.
      ["send_message", [{ channelId: "k", "\ud800": 1, text: 7 }], ["bad_message", "`text` is no string"]],
      // Of an empty list there is no room that anybody is in.
      ["send_note", [{ channels: [] }], ["forbidden", "this client is not in this room"]],
      ["send_note", [{ channels: ["k", "other"] }], ["forbidden", "this client is not in this room"]],
      ["send_note", [{ channels: ["k"] }], undefined],
      ["publish", [{ room: "channel:k", event: "e" }], ["forbidden", "publish by routes"]],
    ]) {
      same(await error(event, ...args), expected, `${event} ${show(args).slice(0, 60)}`);
    }
    const many = Array.from({ length: 10 }, (_, n) => `m${n}`);
    same((await error("authenticated", { channels: many }))[0], "too_many_rooms", "one more than it may be in");
  },
  "fields are picked, and what is missing is left out": async () => {
    const [one, other] = [await client(), await client()];
    await other.ask("join_channel", { channelId: "p" });
    one.emit("typing", { channelId: "p", secret: 1 });
    same(await other.heard("user_typing"), [{ channelId: "p", who: one.id }], "what was picked");
    // Bytes that are not picked stay behind as well, and those that are keep their places.
    one.emit("typing", { channelId: "p", secret: Buffer.from("secret") }, Buffer.from("more"));
    same(await other.heard("user_typing"), [{ channelId: "p", who: one.id }], "without bytes");
    one.emit("drawn", { first: Buffer.from("a"), second: Buffer.from("b") }, Buffer.from("c"));
    const [drawn] = await other.heard("drawn");
    same([Object.keys(drawn), Buffer.from(drawn.second).toString()], [["second"], "b"], "one of three");
  },
  "what a route does not change passes as it is": async () => {
    const one = await client();
    for (const options of [{}, { transports: ["polling"] }, { parser: msgpack }]) {
      const other = await client(null, options);
      await other.ask("join_channel", { channelId: "all" });
      one.emit("blob", Buffer.from("raw"), { n: 1, b: Buffer.from([0, 255]) }, null);
      const [raw, object, nothing] = await other.heard("blob");
      same([Buffer.from(raw).toString(), object.n, Buffer.from(object.b).toString("hex"), nothing], ["raw", 1, "00ff", null], "several");
      one.emit("blob", Buffer.from("alone"));
      same((await other.heard("blob")).map((bytes) => Buffer.from(bytes).toString()), ["alone"], "bytes alone");
      one.emit("blob");
      same(await other.heard("blob"), [], "nothing at all");
      one.emit("blob", "text");
      same(await other.heard("blob"), ["text"], "one value");
      other.disconnect();
    }
  },
  "everyone, users, several rooms but for one": async () => {
    const claims = { roles: ["admin"] };
    const [admin, ann, bob, cat] = [await client("root", { claims }), await client("ann"), await client("bob"), await client("cat")];
    admin.emit("shout", 1, { deep: { er: "x" } });
    for (const socket of [admin, ann, bob, cat]) {
      same(await socket.heard("shouted"), [[1, "x", "/", "shout"]], "everyone, itself too");
    }
    await ann.ask("join_channel", { channelId: "a" });
    await ann.ask("join_channel", { channelId: "b" });
    await bob.ask("join_channel", { channelId: "b" });
    await cat.ask("join_channel", { channelId: "a" });
    await cat.ask("join_channel", { channelId: "c" });
    await admin.ask("whisper", { to: "cat", text: "psst" });
    same(await cat.heard("whispered"), [{ text: "psst" }], "the user");
    same(await ann.heard("overheard"), ["cat"], "once");
    same(await bob.heard("overheard"), ["cat"], "in one of them");
    for (const socket of [ann, bob, cat]) await settled(socket);
    same([ann.told, bob.told, cat.told], [[], [], []], "nobody else");
  },
  "rooms are those of the namespace": async () => {
    const [one, other, elsewhere] = [await client(null, {}, "/lots/1"), await client(null, {}, "/lots/1"), await client(null, {}, "/lots/2")];
    await other.ask("bid", { amount: 1 });
    await elsewhere.ask("bid", { amount: 1 });
    await other.heard("bidden");
    await elsewhere.heard("bidden");
    await one.ask("bid", { amount: 2.5 });
    for (const socket of [one, other]) same(await socket.heard("bidden"), [{ amount: 2.5, in: "/lots/1" }], "in its own");
    await elsewhere.ask("bid", { amount: 3 });
    same(await elsewhere.heard("bidden"), [{ amount: 3, in: "/lots/2" }], "not that of another");
  },
});
