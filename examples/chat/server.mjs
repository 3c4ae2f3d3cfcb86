// What is left of the chat's server behind throng: who somebody is, and which channels are theirs.
//
//   node server.mjs [PORT]
//
// It answers throng's questions at PORT, 4000 if none is named. For trying out: a token is a name, and everybody is in the channels below.

import { createServer } from "node:http";

const port = Number(process.argv[2] ?? 4000);

async function getUserChannels(user) {
  return ["general", "random", `notes-${user}`].map((id) => ({ id }));
}

// Who is it?
function authenticate({ token }) {
  return /^[a-z]{1,20}$/.test(token) ? { user: token } : { refuse: "Authentication failed" };
}

const events = {
  async authenticated({ user }) {
    const channels = (await getUserChannels(user)).map(({ id }) => id);
    return { join: channels.map((id) => `channel:${id}`), emit: [{ event: "rooms_joined", data: { channels } }] };
  },
  async join_channel({ user, args: [{ channelId }] }) {
    const channels = await getUserChannels(user);
    if (!channels.some(({ id }) => id === channelId)) {
      return { emit: [{ event: "error", data: { message: "Not a member of this channel" } }] };
    }
    return { join: [`channel:${channelId}`], emit: [{ event: "joined_channel", data: { channelId } }] };
  },
};

const handlers = { "/authenticate": authenticate, "/event": (asked) => events[asked.event](asked) };

createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", async () => {
    try {
      const answer = await handlers[request.url](JSON.parse(Buffer.concat(chunks)));
      response.end(JSON.stringify(answer));
    } catch (error) {
      // Clients say anything. 400 concerns this one alone.
      console.error(error);
      response.writeHead(400).end();
    }
  });
}).listen(port, "127.0.0.1");
