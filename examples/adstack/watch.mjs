// A client of AdStack: watches a contract and prints what it is told.
//
//   npm install socket.io-client
//   node watch.mjs CONTRACT [URL [TOKEN]]
//
// Without a TOKEN, `throng token` makes one with the secret of throng.toml.

import { execFileSync } from "node:child_process";
import { io } from "socket.io-client";

const [contractId = "7", url = "http://127.0.0.1:3002", shown] = process.argv.slice(2);
const making = ["token", "--secret", "change me: 32 letters at the least", "--user", "42", "--expires", "1h"];
const token = shown ?? execFileSync("throng", making, { encoding: "utf8" }).trim();

const socket = io(url, { auth: { token } });
socket.on("connect", async () => console.log(await socket.emitWithAck("subscribe", { contractId })));
socket.on("connect_error", (error) => console.log(error.message));
socket.on("event", (event) => console.log("event", event));
socket.on("events", (events) => console.log("events", events));
socket.on("data", (buffer) => console.log("data", JSON.parse(buffer.toString())));
