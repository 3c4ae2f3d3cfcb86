"""Tokens made by PyPI's `pyjwt`: keys of every kind, and with them good tokens and bad ones.

    python tokens.py FOLDER

Writes the public keys as PEM, the secrets and a set of keys (JWKS) into the folder, and prints two objects of JSON: tokens that are good, by
their names, and tokens that are not, each with what is wrong.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

FOLDER = sys.argv[1]
NOW = int(time.time())
GOOD = {"sub": "7", "iss": "maker", "aud": "throng", "exp": NOW + 600, "iat": NOW}


def write(name, content):
    with open(os.path.join(FOLDER, name), "wb") as file:
        file.write(content)


def pem(key):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


secrets = {name: os.urandom(bytes).hex().encode() for name, bytes in [("HS256", 16), ("HS384", 24), ("HS512", 32)]}
keys = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
for name, secret in secrets.items():
    write(f"{name}.key", secret + b"\n")
for name, key in keys.items():
    write(f"{name}.key", pem(key))
makers = {**secrets, **keys}
algorithms = jwt.algorithms.get_default_algorithms()
jwks = [{**algorithms[name].to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig"} for name, key in keys.items()]
write("jwks.json", json.dumps({"keys": jwks}).encode())


def token(algorithm="HS256", key=None, headers=None, **claims):
    claims = {name: value for name, value in {**GOOD, **claims}.items() if value is not None}
    key = makers[algorithm] if key is None else key
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": algorithm, **(headers or {})})


def confused():
    """Signed as if the public key were a secret. The library refuses to, so it is done by hand."""

    def part(content):
        return base64.urlsafe_b64encode(content).rstrip(b"=")

    head = part(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "RS256"}).encode())
    message = head + b"." + part(json.dumps(GOOD).encode())
    signature = hmac.new(pem(keys["RS256"]), message, hashlib.sha256).digest()
    return (message + b"." + part(signature)).decode()


other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
good = {name: token(name) for name in makers}
good["audiences"] = token(aud=["elsewhere", "throng"])
good["begun"] = token(nbf=NOW - 5)
bad = {
    "expired": [token(exp=NOW - 60), "expired"],
    "later": [token(nbf=NOW + 600), "not_yet"],
    "audience": [token(aud="elsewhere"), "audience"],
    "no audience": [token(aud=None), "audience"],
    "issuer": [token(iss="somebody"), "issuer"],
    "never expires": [token(exp=None), "claims"],
    "nobody": [token(sub=None), "claims"],
    "none": [jwt.encode(GOOD, None, algorithm="none"), "algorithm"],
    "none of a key": [jwt.encode(GOOD, None, algorithm="none", headers={"kid": "RS256"}), "algorithm"],
    "confused": [confused(), "algorithm"],
    "another algorithm": [token("PS256", keys["RS256"], {"kid": "RS256"}), "algorithm"],
    "another hash": [token("RS512", keys["RS256"], {"kid": "RS256"}), "algorithm"],
    "another key's name": [token("HS384", headers={"kid": "HS256"}), "algorithm"],
    "another key": [token("RS256", other), "signature"],
    "unheard key": [token("RS256", other, {"kid": "unheard"}), "unknown_key"],
    "huge": [token(text="x" * 6_500), "too_long"],
    "forged": [good["ES256"][:-8] + "A" * 8, "signature"],
    "garbage": ["x.y.z", "malformed"],
    "words": ["no-token", "malformed"],
}
print(json.dumps({"good": good, "bad": bad}))
