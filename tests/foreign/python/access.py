"""Tokens of `pyjwt` as the stock `python-socketio` client brings them.

    python access.py http://HOST:PORT FOLDER

The server takes HS256 by the secret in FOLDER/secret and requires a token.
"""

import asyncio
import os
import sys
import time

import jwt
import socketio

URL, FOLDER = sys.argv[1], sys.argv[2]
WAIT_S = 10
with open(os.path.join(FOLDER, "secret"), "rb") as file:
    SECRET = file.read()


def token(user, **claims):
    return jwt.encode({"sub": user, "exp": int(time.time()) + 600, **claims}, SECRET, algorithm="HS256")


async def connected(**options):
    client = socketio.AsyncClient(reconnection=False)
    await asyncio.wait_for(client.connect(URL, wait_timeout=WAIT_S, **options), WAIT_S)
    return client


async def in_auth(transports):
    client = await connected(transports=transports, auth={"token": token("7", rooms=["given"])})
    answer = await client.call("join", "given", timeout=WAIT_S)
    assert answer == {"rooms": {"given": {"members": 0}}}, answer
    assert await client.call("auth", {"token": token("7")}, timeout=WAIT_S) == {}
    await client.disconnect()


async def in_header(transports):
    headers = {"Authorization": f"Bearer {token('7')}"}
    await (await connected(transports=transports, headers=headers)).disconnect()


async def refused(transports):
    for auth in [None, {"token": token("7", exp=1)}, {"token": "x"}]:
        try:
            await connected(transports=transports, auth=auth)
        except socketio.exceptions.ConnectionError:
            continue
        raise AssertionError(f"{auth} was let in")


async def main():
    passed, failed = 0, 0
    for check in [in_auth, in_header, refused]:
        for transports in [["polling"], ["websocket"]]:
            try:
                await asyncio.wait_for(check(transports), 4 * WAIT_S)
                passed += 1
                print(f"ok      {check.__name__} {transports}")
            except Exception as error:
                failed += 1
                print(f"FAILED  {check.__name__} {transports}: {error!r}")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


asyncio.run(main())
