// A client of Pona: listens to the music of a guild.
//
//   npm install socket.io-client
//   node listen.mjs GUILD [URL [TOKEN]]

import { io } from "socket.io-client";

const [guild = "7", url = "http://127.0.0.1:3000", token = "user:ann"] = process.argv.slice(2);
const decode = (text) => JSON.parse(Buffer.from(text, "base64").toString("utf-8"));

const socket = io(`${url}/guild/${guild}`, { auth: { token } });
socket.on("connect", () => console.log("listening to guild", guild));
socket.on("connect_error", (error) => console.log(error.message));
socket.on("track_started", (text) => console.log("track_started", decode(text)));
socket.on("queue_updated", (text) => console.log("queue_updated", decode(text)));
