// A Node server of Socket.IO with its Redis adapter and throngs, on one Redis: whatever is said at one reaches the clients of all.
//
//   npm ci && node cluster.mjs http://127.0.0.1:7070 http://127.0.0.1:7080 --redis=redis://127.0.0.1:6379 --adapter=classic
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 120 s were not enough. The throngs need
// `redis.cluster = "socketio"` (or `"socketio-sharded"` with `--adapter=sharded`), the namespaces "/" and "/guild/*", and nobody else on
// them or on Redis.

import { createServer } from "node:http";
import { afterwards, bounded, fail, run, same, show, until, WAIT_MS } from "./checks.mjs";

const packages = ["socket.io", "socket.io-client", "@socket.io/redis-adapter", "@socket.io/redis-emitter", "redis", "ws"];
const [{ Server }, { io }, { createAdapter, createShardedAdapter }, { Emitter }, { createClient, createCluster }, { WebSocket }] = await Promise.all(
  packages.map((name) => import(name)),
).catch(() => {
  console.error(`one of the packages ${packages.join(", ")} is missing: run \`npm ci\` in tests/foreign/node`);
  process.exit(1);
});

const throngs = process.argv.slice(2).filter((argument) => argument.startsWith("http://"));
const flag = (name) => process.argv.find((argument) => argument.startsWith(`--${name}=`))?.slice(name.length + 3);
const [redis, adapter] = [flag("redis"), flag("adapter") ?? "classic"];
if (throngs.length < 2 || !redis) {
  console.error("usage: node cluster.mjs http://HOST:PORT http://HOST:PORT --redis=redis://HOST:PORT [--adapter=sharded]");
  process.exit(2);
}

// Redis, as many connections to it as are needed.
async function connection() {
  const urls = redis.split(",");
  const client = urls.length > 1 ? createCluster({ rootNodes: urls.map((url) => ({ url })) }) : createClient({ url: redis });
  client.on("error", () => {});
  await client.connect();
  return client;
}

const [publisher, subscriber] = [await connection(), await connection()];
const make = adapter === "sharded" ? createShardedAdapter : createAdapter;
const http = createServer();
const node = new Server(http, { adapter: make(publisher, subscriber) });
for (const namespace of [node.of("/"), node.of("/guild/7")]) {
  namespace.on("connection", (socket) => {
    socket.on("join", (room, ack) => (socket.join(room), ack({})));
    socket.on("fence", (ack) => ack());
  });
}
await new Promise((resolve) => http.listen(0, "127.0.0.1", resolve));
const here = `http://127.0.0.1:${http.address().port}`;
const emitter = adapter === "sharded" ? null : new Emitter(publisher);

let roomsNamed = 0;
const room = () => `cluster:${process.pid}:${++roomsNamed}`;
const each = (clients, act) => Promise.all(clients.map(act));

class Client {
  static async open(server, namespace = "/") {
    const client = new Client(server, namespace);
    await client.hears("connect");
    return client;
  }

  constructor(server, namespace) {
    this.name = `${server}${namespace}`;
    this.socket = io(this.name, { forceNew: true, transports: ["websocket"], reconnection: false });
    this.inbox = [];
    this.socket.onAny((...event) => this.inbox.push(event));
    afterwards(() => this.socket.disconnect());
  }

  get id() {
    return this.socket.id;
  }

  hears(name) {
    return bounded(new Promise((resolve) => this.socket.once(name, resolve)), `${this.name}: ${name}`);
  }

  next() {
    return until(`${this.name}: an event`, () => this.inbox.shift());
  }

  async takes(...event) {
    same(await this.next(), event, `${this.name}: the next event`);
  }

  ask(name, ...args) {
    const ack = new Promise((resolve) => this.socket.emit(name, ...args, (...answer) => resolve(answer)));
    return bounded(ack, `${this.name}: the ack of ${name}`);
  }

  async join(...rooms) {
    for (const name of rooms) await this.ask("join", name);
  }

  publish(event) {
    return this.ask("publish", event);
  }
}

// Two clients of each server, the first of each in room `one`, the others in room `two`.
async function crowd(namespace = "/") {
  const [one, two] = [room(), room()];
  const clients = [];
  for (const server of [here, ...throngs]) for (const name of [one, two]) {
    const client = await Client.open(server, namespace);
    await client.join(name);
    clients.push(client);
  }
  await heardBy(namespace, one, clients.filter((_, at) => at % 2 === 0));
  await heardBy(namespace, two, clients.filter((_, at) => at % 2 === 1));
  const of = (from, to) => clients.slice(from, to);
  return { one, two, clients, inNode: of(0, 2), inThrong: of(2), inOne: clients.filter((_, at) => at % 2 === 0), inTwo: clients.filter((_, at) => at % 2 === 1) };
}

// Subscriptions take a moment to arrive: until all members hear what is published to a room, somebody says so again and again.
async function heardBy(namespace, name, members) {
  const heard = (client) => client.inbox.some(([event]) => event === "marker");
  await until(`all are heard in ${name}`, () => {
    node.of(namespace).to(name).emit("marker");
    return members.every(heard);
  });
  await nothing(members);
}

// What is under way arrives, and is forgotten; markers stand for it, since Redis keeps the order of what one server says.
async function nothing(clients) {
  await new Promise((resolve) => setTimeout(resolve, 150));
  for (const client of clients) client.inbox.splice(0);
}

async function silence(clients) {
  await new Promise((resolve) => setTimeout(resolve, 150));
  for (const client of clients) same(client.inbox, [], `${client.name}: untaken events`);
}

// Servers of before version 8 ask for no more than ids. All answer them, those of version 8 as well.
async function idsByTheOldRequest(name) {
  const [listener, answers] = [await connection(), []];
  const hear = (answer) => answers.push(JSON.parse(answer));
  for (const channel of ["socket.io-response#/#", "socket.io-response#/#before#"]) await listener.subscribe(channel, hear);
  await publisher.publish("socket.io-request#/#", JSON.stringify({ uid: "before", requestId: "old", type: 0, rooms: [name] }));
  await until("all have answered", () => answers.length === throngs.length + 1);
  await listener.disconnect();
  return answers.flatMap(({ sockets }) => sockets).sort();
}

const values = [1, "two", { three: [4, { five: null }] }, `é\u{1f642}`];

const checks = {
  "an event for all reaches the clients of all servers": async () => {
    const { clients } = await crowd();
    node.emit("all", ...values);
    await each(clients, (client) => client.takes("all", ...values));
    node.local.emit("local");
    await each(clients.slice(0, 2), (client) => client.takes("local"));
    await silence(clients);
  },

  "an event for a room reaches its members everywhere, whoever publishes it": async () => {
    const { one, two, clients, inOne, inTwo } = await crowd();
    node.to(one).emit("room", ...values);
    await each(inOne, (client) => client.takes("room", ...values));
    node.to([one, two]).emit("both");
    await each(clients, (client) => client.takes("both"));
    node.to(one).except(two).emit("but");
    await each(inOne, (client) => client.takes("but"));
    node.except(one).emit("others", 1);
    await each(inTwo, (client) => client.takes("others", 1));
    for (const publisher of clients.slice(2)) {
      await publisher.publish({ room: two, event: "published", data: { by: publisher.id } });
      await each(inTwo, (client) => client === publisher || client.takes("published", { by: publisher.id }));
      await publisher.publish({ rooms: [one, two], except: one, event: "several", data: values });
      await each(inTwo, (client) => client === publisher || client.takes("several", values));
    }
    await silence(clients);
  },

  "bytes arrive as they are, in both directions": async () => {
    const { one, clients, inOne } = await crowd();
    const [bytes, nested] = [Buffer.from([0, 255, 10]), { deep: [Buffer.alloc(70_000, 7), "text"] }];
    node.to(one).emit("bytes", bytes, nested, 1);
    await each(inOne, (client) => client.takes("bytes", bytes, nested, 1));
    const publisher = inOne.at(-1);
    for (const data of [bytes, nested]) {
      await publisher.publish({ room: one, event: "bytes", data });
      await each(inOne.slice(0, -1), (client) => client.takes("bytes", data));
    }
    await silence(clients);
  },

  "the id of a client is its room on all servers": async () => {
    const { clients, inThrong } = await crowd();
    for (const client of clients) {
      node.to(client.id).emit("private", client.id);
      await client.takes("private", client.id);
      const publisher = inThrong.find((other) => other !== client);
      await publisher.publish({ room: client.id, event: "private", data: 2 });
      await client.takes("private", 2);
    }
    node.except(clients.map(({ id }) => id)).emit("nobody");
    await silence(clients);
  },

  "namespaces are shared": async () => {
    const [main, guild] = [await crowd(), await crowd("/guild/7")];
    node.of("/guild/7").emit("guild", 1);
    await each(guild.clients, (client) => client.takes("guild", 1));
    node.of("/guild/7").to(guild.one).emit("room", 2);
    await each(guild.inOne, (client) => client.takes("room", 2));
    await guild.inThrong[0].publish({ room: guild.one, event: "published", data: 3 });
    await each(guild.inOne, (client) => client === guild.inThrong[0] || client.takes("published", 3));
    await silence([...main.clients, ...guild.clients]);
  },

  "sockets join and leave rooms at the word of a server": async () => {
    const { one, clients, inOne } = await crowd();
    const three = room();
    node.in(one).socketsJoin(three);
    await heardBy("/", three, inOne);
    node.to(three).emit("joined");
    await each(inOne, (client) => client.takes("joined"));
    node.in(three).socketsLeave(three);
    await nothing(clients);
    node.to(three).emit("left");
    await silence(clients);
  },

  "sockets are known to other servers": async () => {
    const { one, two, clients, inOne } = await crowd();
    const fetched = await node.fetchSockets();
    same(new Set(fetched.map(({ id }) => id)), new Set(clients.map(({ id }) => id)), "ids of all");
    const inRoom = await node.in(one).fetchSockets();
    same(new Set(inRoom.map(({ id }) => id)), new Set(inOne.map(({ id }) => id)), "ids of those in a room");
    for (const socket of inRoom) {
      same(new Set(socket.rooms), new Set([socket.id, one]), "rooms");
      same(typeof socket.handshake.address, "string", "address");
    }
    same(await node.in(clients.at(-1).id).fetchSockets().then((all) => all.map(({ id }) => id)), [clients.at(-1).id], "one by its id");
    if (adapter === "classic") {
      const rooms = await node.of("/").adapter.allRooms();
      for (const name of [one, two, ...clients.map(({ id }) => id)]) if (!rooms.has(name)) fail(`${name} is not among all rooms`);
      same(await idsByTheOldRequest(one), inOne.map(({ id }) => id).sort(), "ids by the old request");
    }
  },

  "it is known who is in a room, on all servers": async () => {
    const present = async (crowd, natives) => {
      const ids = new Set(crowd.inOne.map(({ id }) => id));
      for (const client of crowd.inOne.slice(1)) {
        const answer = await until(`${client.name}: a complete answer`, async () => {
          const [answer] = await client.ask("presence", { room: crowd.one, who: true });
          return answer.complete && answer.members === ids.size + natives ? answer : undefined;
        });
        const listed = answer.who.map(({ id }) => id);
        same([listed.length, listed.filter((id) => ids.has(id)).length], [ids.size + natives, ids.size], "who is listed");
        same(answer.nodes.map(({ members }) => members).sort(), natives ? [1, 1, 2] : [1, 1, 1], "members of each server");
        const ofNode = answer.who.find(({ id }) => id === crowd.inOne[0].id).node;
        if (adapter === "classic") same(ofNode, "unknown", "what Node is called");
        const [counted] = await client.ask("presence", crowd.one);
        same([counted.members, counted.who], [answer.members, undefined], "who is counted");
      }
    };
    const [main, guild] = [await crowd(), await crowd("/guild/7")];
    const native = new WebSocket(`${throngs[1].replace("http", "ws")}/ws`);
    afterwards(() => native.terminate());
    await bounded(new Promise((resolve) => native.once("open", resolve)), "a native client");
    native.send(JSON.stringify({ type: "join", rooms: [main.one], id: 1 }));
    await bounded(new Promise((resolve) => native.once("message", resolve)), "its join");
    await present(main, 1);
    await present(guild, 0);
  },

  "sockets are disconnected at the word of a server": async () => {
    const { one, two, inOne, inTwo, clients } = await crowd();
    const gone = inOne.map((client) => client.hears("disconnect"));
    node.in(one).disconnectSockets();
    for (const reason of await Promise.all(gone)) same(reason, "io server disconnect", "reason");
    node.to([one, two]).emit("still");
    await each(inTwo, (client) => client.takes("still"));
    const closed = inTwo.map((client) => client.hears("disconnect"));
    node.in(two).disconnectSockets(true);
    for (const reason of await Promise.all(closed)) same(reason, "io server disconnect", "reason");
    await until("nobody is left", async () => (await node.fetchSockets()).length === 0);
    for (const client of clients) same(client.socket.connected, false, "connected");
  },

  "servers' own events are answered, so that nobody waits": async () => {
    const began = performance.now();
    const answers = await node.serverSideEmitWithAck("ping");
    same(answers, throngs.map(() => null), "the answers of the throngs");
    node.serverSideEmit("no answer wanted");
    if (performance.now() - began > 2000) fail("it took too long");
  },

  "acks come from the clients of all servers": async () => {
    const { one, clients, inOne } = await crowd();
    const answer = async (client) => {
      const event = await client.next();
      event.at(-1)({ id: client.id, bytes: Buffer.from(client.id) });
      return event.slice(0, -1);
    };
    const asked = node.to(one).timeout(5000).emitWithAck("question", 1);
    same(await each(inOne, answer), inOne.map(() => ["question", 1]), "what was asked");
    const ids = (answers) => new Set(answers.map(({ id, bytes }) => (String(bytes) === id ? id : show(bytes))));
    same(ids(await asked), new Set(inOne.map(({ id }) => id)), "answers to Node");
    for (const asker of inOne.slice(1)) {
      const others = inOne.filter((client) => client !== asker);
      const began = performance.now();
      const [, [{ answers, missing }]] = await Promise.all([
        each(others, answer),
        asker.publish({ room: one, event: "question", data: 2, ask_ms: 5000 }),
      ]);
      same([ids(answers), missing], [new Set(others.map(({ id }) => id)), 0], "answers to throng");
      if (performance.now() - began > 3000) fail("who has all answers waits no longer");
    }
    // One does not answer.
    const late = node.to(one).timeout(500).emitWithAck("question", 3).catch((error) => error.responses);
    await each(inOne.slice(1), answer);
    same(ids(await late), new Set(inOne.slice(1).map(({ id }) => id)), "answers in time");
    await silence(clients.filter((client) => client !== inOne[0]));
  },
};

const withEmitter = {
  "whatever an emitter says is heard by the clients of all servers": async () => {
    const { one, two, clients, inOne, inTwo } = await crowd();
    emitter.emit("all", ...values);
    await each(clients, (client) => client.takes("all", ...values));
    emitter.to(one).emit("room", Buffer.from("bytes"), { deep: [Buffer.from("more")] });
    await each(inOne, (client) => client.takes("room", Buffer.from("bytes"), { deep: [Buffer.from("more")] }));
    emitter.to([one, two]).except(one).volatile.emit("but");
    await each(inTwo, (client) => client.takes("but"));
    emitter.to(clients.at(-1).id).emit("private");
    await clients.at(-1).takes("private");
    const guild = await crowd("/guild/7");
    emitter.of("/guild/7").in(guild.two).compress(false).emit("guild", 7);
    await each(guild.inTwo, (client) => client.takes("guild", 7));
    const three = room();
    emitter.in(one).socketsJoin([three]);
    await heardBy("/", three, inOne);
    emitter.in(one).socketsLeave(three);
    await nothing(clients);
    emitter.to(three).emit("left");
    emitter.serverSideEmit("servers only", 1);
    await silence([...clients, ...guild.clients]);
    const gone = inTwo.map((client) => client.hears("disconnect"));
    emitter.in(two).disconnectSockets(true);
    await Promise.all(gone);
    emitter.emit("still");
    await each(inOne, (client) => client.takes("still"));
  },
};

// Until all servers know of each other.
await until("the throngs listen", async () => (await node.of("/").adapter.serverCount()) === throngs.length + 1);
run({ ...checks, ...(emitter ? withEmitter : {}) });
