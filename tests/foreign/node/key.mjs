// Makes a key for EdDSA with npm's `jose`: the private one as PEM, the public one as JWK.
//
//   node key.mjs PEM JWK KID

import { writeFileSync } from "node:fs";
import { exportJWK, exportPKCS8, generateKeyPair } from "jose";

const [pem, jwk, kid] = process.argv.slice(2);
const { privateKey, publicKey } = await generateKeyPair("EdDSA", { extractable: true });
writeFileSync(pem, await exportPKCS8(privateKey));
writeFileSync(jwk, JSON.stringify({ ...(await exportJWK(publicKey)), kid, alg: "EdDSA" }));
