// What the scripts about Socket.IO share: running checks one after another, comparing, and bounds on time.

import { setTimeout as delay } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";

export const WAIT_MS = 10_000; // for one thing that is expected to happen at once
const TOTAL_MS = 120_000;

// What is left to do after a check, whatever came of it: connections to end.
let endings = [];

// Runs the checks, prints a line for each and the count, and ends the process: with 1 when a check failed or 120 s were not
// enough.
export async function run(checks) {
  let [passed, failed, current] = [0, 0, "the first check"];
  const end = () => {
    console.log(`${passed} passed, ${failed} failed`);
    process.exit(failed === 0 ? 0 : 1);
  };
  const report = (name, error) => {
    if (error) failed += 1;
    else passed += 1;
    console.log(error ? `FAILED  ${name}: ${error.message}` : `ok      ${name}`);
  };
  // A check that has failed leaves behind what it waited for besides.
  process.on("unhandledRejection", () => {});
  setTimeout(() => {
    report(current, new Error(`not done when ${TOTAL_MS / 1000} s were over`));
    end();
  }, TOTAL_MS);
  for (const [name, check] of Object.entries(checks)) {
    current = name;
    try {
      await check();
      report(name);
    } catch (error) {
      report(name, error instanceof Error ? error : new Error(String(error)));
    }
    endings.splice(0).forEach((ending) => ending());
  }
  end();
}

// Something to do when the running check is over.
export function afterwards(ending) {
  endings.push(ending);
}

export function fail(text) {
  throw new Error(text);
}

export function same(actual, expected, what) {
  if (!isDeepStrictEqual(actual, expected)) fail(`${what}: expected ${show(expected)}, got ${show(actual)}`);
}

// A value as a line of text that is not too long.
export function show(value) {
  const hex = (_, part) => (part?.type === "Buffer" ? `<${Buffer.from(part.data).toString("hex")}>` : part);
  const text = JSON.stringify(value, hex) ?? String(value);
  return text.length > 300 ? `${text.slice(0, 300)}… (${text.length} characters)` : text;
}

export function bounded(promise, what, milliseconds = WAIT_MS) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${milliseconds} ms`)), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// Looks again and again until `look` answers something, and answers that.
export async function until(what, look, milliseconds = WAIT_MS) {
  const deadline = Date.now() + milliseconds;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > deadline) fail(`not within ${milliseconds} ms: ${what}`);
    await delay(5);
  }
}

// The address given on the command line, with the flags after it.
export function address(usage) {
  const [url, ...flags] = process.argv.slice(2);
  if (!/^https?:\/\//.test(url ?? "")) {
    console.error(`usage: ${usage}`);
    process.exit(1);
  }
  return { url: new URL(url).origin, flags };
}
