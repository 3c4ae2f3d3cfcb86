// Socket.IO from a page in a browser: the bundle of npm's `socket.io-client`, in headless Chromium, against a server of another
// origin than the page's, so that CORS matters.
//
//   (cd ../node && npm ci) && node run.mjs http://127.0.0.1:7070
//
// Prints one line per check and the count; the exit status is 1 when a check failed or 60 s were not enough. The server needs the
// settings of examples/socketio-compliance.toml and a ping timeout of some seconds. CHROMIUM names the browser; else the first of the
// usual names is taken that there is.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const TOTAL_MS = 60_000;
const BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const here = (path) => new URL(path, import.meta.url);
const FILES = {
  "/page.html": [here("page.html"), "text/html"],
  "/page.js": [here("page.js"), "text/javascript"],
  "/frame.html": [here("frame.html"), "text/html"],
  "/socket.io.min.js": [here("../node/node_modules/socket.io-client/dist/socket.io.min.js"), "text/javascript"],
};

const url = process.argv[2];
if (!url?.startsWith("http://")) {
  console.error("usage: node run.mjs http://HOST:PORT");
  process.exit(1);
}

let [passed, failed] = [0, 0];

function report(name, error) {
  if (error) failed += 1;
  else passed += 1;
  console.log(error ? `FAILED  ${name}: ${error}` : `ok      ${name}`);
}

// The page's own server: its files, and what it reports. Answers a promise of the end.
async function serve() {
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, "http://page");
    if (request.method === "POST") {
      const chunks = await request.toArray();
      const { name, error } = JSON.parse(Buffer.concat(chunks));
      if (pathname === "/end") end();
      else report(name, error);
      return response.end();
    }
    const [file, type] = FILES[pathname] ?? [];
    if (!file) return response.writeHead(404).end();
    const body = await readFile(file).catch(() => null);
    if (!body) {
      report(pathname, "the file is missing: run `npm ci` in tests/foreign/node");
      end();
    }
    response.writeHead(200, { "Content-Type": `${type}; charset=utf-8` }).end(body);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { port: server.address().port, ended };
}

// The first browser that can be started, with a profile of its own. It ends with this process at the latest.
async function browse(page, profile) {
  const flags = [
    "--headless",
    "--no-sandbox", // containers seldom have what the sandbox needs, and the page is ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    `--user-data-dir=${profile}`,
    page,
  ];
  for (const name of process.env.CHROMIUM ? [process.env.CHROMIUM] : BROWSERS) {
    // A process group of its own, since the browser is several processes.
    const browser = spawn(name, flags, { stdio: "ignore", detached: true });
    const started = await once(browser, "spawn").then(() => true, () => false);
    if (!started) continue;
    process.on("exit", () => end(browser));
    for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));
    return browser;
  }
  return null;
}

function end(browser) {
  if (browser.exitCode === null && browser.signalCode === null) process.kill(-browser.pid, "SIGKILL");
}

const { port, ended } = await serve();
const profile = await mkdtemp(join(tmpdir(), "throng-page-"));
const browser = await browse(`http://127.0.0.1:${port}/page.html?server=${encodeURIComponent(new URL(url).origin)}`, profile);
if (browser) {
  const late = new Promise((resolve) => setTimeout(resolve, TOTAL_MS, `not done when ${TOTAL_MS / 1000} s were over`));
  const gone = once(browser, "exit").then(([code]) => `the browser ended with ${code}`);
  const why = await Promise.race([ended, late, gone]);
  if (why) report("the page", why);
  end(browser);
  await gone;
} else {
  report("the browser", "there is none: install Chromium (Debian: apt-get install chromium) or set CHROMIUM");
}
await rm(profile, { recursive: true, force: true, maxRetries: 5 });
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
