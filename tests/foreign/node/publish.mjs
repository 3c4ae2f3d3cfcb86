// Publishes on a channel of Redis with stock `redis` from npm, as a backend does that knows nothing of throng.
//
//   node publish.mjs redis://HOST:PORT CHANNEL TEXT [TIMES]
//
// Prints how many subscribers have got the last one.

import { createClient } from "redis";

const [url, channel, said, times = "1"] = process.argv.slice(2);
const redis = createClient({ url });
await redis.connect();
let subscribers = [];
for (let sent = 0; sent < Number(times); sent += subscribers.length) {
  const some = Array.from({ length: Math.min(1000, Number(times) - sent) });
  subscribers = await Promise.all(some.map(() => redis.publish(channel, JSON.stringify({ said }))));
}
console.log(subscribers.at(-1));
await redis.quit();
