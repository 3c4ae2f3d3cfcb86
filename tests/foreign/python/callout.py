"""What the stock `python-socketio` client sees where the backend says who clients are.

    python callout.py http://HOST:PORT

The backend is callout_backend.py.
"""

import asyncio
import sys

import socketio

URL = sys.argv[1]
WAIT_S = 10


async def connected(**options):
    client = socketio.AsyncClient(reconnection=False)
    await asyncio.wait_for(client.connect(URL, wait_timeout=WAIT_S, **options), WAIT_S)
    return client


async def in_auth(transports):
    client = await connected(transports=transports, auth={"password": "user:anna", "device": "phone"})
    assert await client.call("join", "auction-7", timeout=WAIT_S) == {"rooms": {"auction-7": {"members": 0}}}
    assert (await client.call("join", "other", timeout=WAIT_S))["error"]["code"] == "forbidden"
    assert await client.call("auth", {"token": "user:anna"}, timeout=WAIT_S) == {}
    answer = await client.call("auth", {"token": "user:bert"}, timeout=WAIT_S)
    assert answer["error"]["code"] == "token_refused", answer
    await client.disconnect()


async def in_cookie(transports):
    client = await connected(transports=transports, headers={"Cookie": "lang=en; session=anna"})
    assert "rooms" in await client.call("join", "auction-8", timeout=WAIT_S)
    await client.disconnect()


async def in_header(transports):
    client = await connected(transports=transports, headers={"Authorization": "Bearer user:anna"}, auth={"app": 1})
    await client.disconnect()


async def events_behind_auth_are_done_after_it(transports):
    client = await connected(transports=transports, auth={"password": "nobody:"})
    answers = await asyncio.gather(
        client.call("auth", {"token": "user:anna"}, timeout=WAIT_S),
        client.call("join", "auction-9", timeout=WAIT_S),
        client.call("join", "other", timeout=WAIT_S),
    )
    assert answers[0] == {} and "rooms" in answers[1], answers
    assert answers[2]["error"]["code"] == "forbidden", answers
    await client.disconnect()


async def refused(transports):
    for auth in [{"password": "banned:bert"}, {"password": "what"}, {"token": "forbidden:x"}]:
        client = socketio.AsyncClient(reconnection=False)
        told = asyncio.get_running_loop().create_future()
        client.on("connect_error", lambda data: told.done() or told.set_result(data))
        try:
            await asyncio.wait_for(client.connect(URL, wait_timeout=WAIT_S, transports=transports, auth=auth), WAIT_S)
        except socketio.exceptions.ConnectionError:
            data = await asyncio.wait_for(told, WAIT_S)
            assert data["data"]["code"] == "token_refused", data
            is_banned = auth.get("password") == "banned:bert"
            assert (data["message"] == "bert is banned: “hate”") == is_banned, data
            await client.disconnect()
            continue
        raise AssertionError(f"{auth} was let in")


async def main():
    passed, failed = 0, 0
    for check in [in_auth, in_cookie, in_header, events_behind_auth_are_done_after_it, refused]:
        for transports in [["polling"], ["websocket"], ["polling", "websocket"]]:
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
