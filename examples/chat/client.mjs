// A chat in the terminal, with the stock client: `npm install socket.io-client`, then
//
//   node client.mjs NAME [URL]
//
// A line goes to the channel `general`; `/react ID EMOJI` reacts to a message.

import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [token, url = "http://127.0.0.1:3000"] = process.argv.slice(2);
if (!token) {
  console.error("usage: node client.mjs NAME [URL]");
  process.exit(1);
}

const socket = io(url, {
  auth: { token },
  transports: ["websocket"],
  reconnection: true,
  reconnectionDelay: 1000,
  reconnectionDelayMax: 5000,
  reconnectionAttempts: 5,
});
const channelId = "general";
let userChannels = [];

socket.on("connect", () => {
  if (!socket.recovered && userChannels.length === 0) socket.emit("authenticated");
});
socket.on("rooms_joined", ({ channels }) => {
  userChannels = channels;
  console.log(`in ${channels.join(", ")}`);
});
socket.io.on("reconnect_attempt", () => console.log("Reconnecting..."));
socket.io.on("reconnect", () => {
  console.log("Reconnected! Re-joining rooms...");
  userChannels.forEach((ch) => socket.emit("join_channel", { channelId: ch }));
});
socket.on("connect_error", ({ message }) => console.log(`not connected: ${message}`));
socket.on("error", ({ message }) => console.log(`error: ${message}`));

const said = ({ id, userId, content }) => console.log(`${userId}: ${content}   (${id})`);
const reacted = ({ userId, emoji, messageId }) => console.log(`${userId} ${emoji} ${messageId}`);
socket.on("new_message", said);
socket.on("reaction_added", reacted);
socket.on("typing_started", ({ userId }) => console.log(`${userId} …`));
socket.on("batch_update", ({ newMessage, reactionAdded }) => {
  if (newMessage) said(newMessage);
  if (reactionAdded) reacted(reactionAdded);
});

createInterface({ input: process.stdin }).on("line", (line) => {
  const [, messageId, emoji] = line.match(/^\/react (\S+) (\S+)/) ?? [];
  if (messageId) return socket.emit("add_reaction", { channelId, messageId, emoji });
  socket.emit("send_message", { channelId, content: line });
  socket.emit("typing_stopped", { channelId });
});
