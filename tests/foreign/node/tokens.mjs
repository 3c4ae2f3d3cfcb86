// Tokens made by npm's `jose`: the same as those of ../python/tokens.py.
//
//   node tokens.mjs FOLDER

import { createHmac, randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { SignJWT, UnsecuredJWT, exportJWK, exportSPKI, generateKeyPair } from "jose";

const folder = process.argv[2];
const now = Math.floor(Date.now() / 1000);
const GOOD = { sub: "7", iss: "maker", aud: "throng", exp: now + 600, iat: now };
const write = (name, content) => writeFileSync(join(folder, name), content);

const makers = {};
for (const [name, bytes] of [["HS256", 32], ["HS384", 48], ["HS512", 64]]) {
  const secret = randomBytes(bytes / 2).toString("hex");
  write(`${name}.key`, secret);
  makers[name] = new TextEncoder().encode(secret);
}
const jwks = [];
let rsa;
for (const name of ["RS256", "ES256", "EdDSA"]) {
  const pair = await generateKeyPair(name, { extractable: true });
  const pem = await exportSPKI(pair.publicKey);
  if (name === "RS256") rsa = pem;
  write(`${name}.key`, pem);
  jwks.push({ ...(await exportJWK(pair.publicKey)), kid: name, alg: name, use: "sig" });
  makers[name] = pair.privateKey;
}
write("jwks.json", JSON.stringify({ keys: jwks }));

const claims = (changes) => Object.fromEntries(Object.entries({ ...GOOD, ...changes }).filter(([, value]) => value !== null));
const token = (alg, changes = {}, { kid = alg, key = makers[alg] } = {}) =>
  new SignJWT(claims(changes)).setProtectedHeader({ alg, kid, typ: "JWT" }).sign(key);
const part = (content) => Buffer.from(content).toString("base64url");

// Signed as if the public key were a secret.
function confused() {
  const message = `${part(JSON.stringify({ alg: "HS256", kid: "RS256" }))}.${part(JSON.stringify(GOOD))}`;
  return `${message}.${createHmac("sha256", rsa).update(message).digest("base64url")}`;
}

const other = (await generateKeyPair("ES256")).privateKey;
const good = {};
for (const name of Object.keys(makers)) good[name] = await token(name);
good.audiences = await token("EdDSA", { aud: ["elsewhere", "throng"] });
good.begun = await token("ES256", { nbf: now - 5 });
const bad = {
  expired: [await token("EdDSA", { exp: now - 60 }), "expired"],
  later: [await token("ES256", { nbf: now + 600 }), "not_yet"],
  audience: [await token("RS256", { aud: "elsewhere" }), "audience"],
  "no audience": [await token("HS512", { aud: null }), "audience"],
  issuer: [await token("HS384", { iss: "somebody" }), "issuer"],
  "never expires": [await token("HS256", { exp: null }), "claims"],
  nobody: [await token("HS256", { sub: null }), "claims"],
  none: [new UnsecuredJWT(GOOD).encode(), "algorithm"],
  confused: [confused(), "algorithm"],
  "another algorithm": [await token("HS384", {}, { kid: "HS256" }), "algorithm"],
  "another key": [await token("ES256", {}, { key: other }), "signature"],
  "unheard key": [await token("ES256", {}, { key: other, kid: "unheard" }), "unknown_key"],
  huge: [await token("HS256", { text: "x".repeat(6500) }), "too_long"],
  forged: [`${good.RS256.slice(0, -8)}AAAAAAAA`, "signature"],
  garbage: ["x.y.z", "malformed"],
};
console.log(JSON.stringify({ good, bad }));
