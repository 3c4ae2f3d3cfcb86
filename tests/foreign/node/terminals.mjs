// The clients for the terminal that are in examples/, run as their first lines say, with what they print and what is typed into them.
//
//   npm ci && node terminals.mjs EXAMPLES --chat=URL --adstack=URL,CONTROL --pona=URL,CONTROL
//
// EXAMPLES is the folder. Each URL is that of a server with the example's throng.toml and what is behind it, each CONTROL its control port, with
// the example's key. `throng` must be in the PATH. Prints a line for each check and the count.

import { spawn } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterwards, fail, run, show, until } from "./checks.mjs";

const [examples, ...flags] = process.argv.slice(2);
const flag = (name) => flags.find((flag) => flag.startsWith(`--${name}=`)).slice(name.length + 3);

// A client as it runs in a folder in which its packages were installed.
function start(script, ...args) {
  const folder = mkdtempSync(join(tmpdir(), "throng-terminals-"));
  copyFileSync(join(examples, script), join(folder, basename(script)));
  symlinkSync(new URL("node_modules", import.meta.url).pathname, join(folder, "node_modules"));
  const child = spawn(process.execPath, [basename(script), ...args], { cwd: folder });
  let printed = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (printed += data));
  afterwards(() => {
    child.kill();
    rmSync(folder, { recursive: true });
  });
  const prints = (expected) =>
    until(expected, () => printed.match(expected)).catch((error) => fail(`${error.message}; it printed ${show(printed)}`));
  return { prints, type: (line) => child.stdin.write(`${line}\n`) };
}

async function publish(control, publication) {
  const headers = { authorization: "Bearer change-me-0123456789", "content-type": "application/json" };
  const answer = await fetch(`${control}/v1/publish`, { method: "POST", headers, body: JSON.stringify(publication) });
  if (!answer.ok) fail(`publish: ${answer.status} ${await answer.text()}`);
}

run({
  "chat/client.mjs: what one types, the other reads, and reacts to": async () => {
    const [ann, bob] = ["ann", "bob"].map((name) => start("chat/client.mjs", name, flag("chat")));
    await ann.prints(/^in general, random, notes-ann$/m);
    await bob.prints(/^in general, random, notes-bob$/m);
    ann.type("hello there");
    const [, id] = await bob.prints(/^ann: hello there   \((\S+)\)$/m);
    bob.type(`/react ${id} +1`);
    await ann.prints(new RegExp(`^bob \\+1 ${id}$`, "m"));
    bob.type("and back");
    await ann.prints(/^bob: and back   /m);
  },
  "chat/client.mjs: who is nobody is told so": async () => {
    await start("chat/client.mjs", "N.N.", flag("chat")).prints(/^not connected: Authentication failed$/m);
    await start("chat/client.mjs").prints(/^usage: node client.mjs NAME \[URL\]$/m);
  },
  "adstack/watch.mjs: events of a contract, alone and together": async () => {
    const [url, control] = flag("adstack").split(",");
    const client = start("adstack/watch.mjs", "7", url);
    await client.prints(/^\{ subscribed: '7' \}$/m);
    await publish(control, { room: "contract:7", event: "event", data: { type: "click" } });
    await client.prints(/^events \[ \{ type: 'click' \} \]$/m);
    const publications = Array.from({ length: 10 }, (_, n) => ({ room: "contract:7", event: "event", data: { n } }));
    await publish(control, { publications });
    await client.prints(/^events \[\n  \{ n: 0 \}/m);
    await start("adstack/watch.mjs", "7", url, "no token").prints(/^this is no token$/m);
  },
  "pona/listen.mjs: the music of a guild": async () => {
    const [url, control] = flag("pona").split(",");
    const client = start("pona/listen.mjs", "7", url);
    await client.prints(/^listening to guild 7$/m);
    const to = { namespace: "/guild/7", room: "pona! music" };
    await publish(control, { ...to, event: "track_started", data: { title: "So What" } });
    await client.prints(/^track_started \{ title: 'So What' \}$/m);
    await publish(control, { ...to, event: "queue_updated", data: [{ title: "So What" }] });
    await client.prints(/^queue_updated \[ \{ title: 'So What' \} \]$/m);
    await start("pona/listen.mjs", "7", url, "nobody").prints(/^no such user$/m);
  },
});
