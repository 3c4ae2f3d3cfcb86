"""Applications whose whole server side is a small backend behind throng, seen by the stock `python-socketio` clients.

    pip install -r requirements.txt && python backend_apps.py http://127.0.0.1:7070 echo|chat

throng has the settings of examples/backend/echo/throng.toml or those of the chat beside it, and the backend runs. Prints one line per
check and the count; the exit status is 1 when a check failed or 60 s were not enough.
"""

import asyncio
import sys
import uuid

try:
    import socketio
except ImportError as missing:
    sys.exit(f"{missing}: run `{sys.executable} -m pip install -r requirements.txt` beside this script")

WAIT_S = 10
TOTAL_S = 60
URL, APP = sys.argv[1:]
BYTES = bytes([0, 1, 2, 254, 255])
MODES = {"both transports": None, "websocket": ["websocket"], "polling": ["polling"]}


def same(actual, expected, what):
    assert actual == expected, f"{what}: expected {str(expected)[:300]}, got {str(actual)[:300]}"


async def within(awaitable, what):
    try:
        return await asyncio.wait_for(awaitable, WAIT_S)
    except TimeoutError:
        raise AssertionError(f"{what}: nothing within {WAIT_S} s") from None


class Client:
    opened = []

    @classmethod
    async def open(cls, transports, namespace="/", auth=None, query=""):
        client = cls(transports, namespace)
        options = {"namespaces": [namespace], "auth": auth, "transports": transports, "wait_timeout": WAIT_S}
        await within(client.sio.connect(f"{URL}/{query}", **options), "connect")
        return client

    def __init__(self, transports, namespace):
        self.namespace = namespace
        self.sio = socketio.AsyncClient(reconnection=False, handle_sigint=False)
        self.inbox = asyncio.Queue()
        self.sio.on("*", lambda event, *args: self.inbox.put_nowait((event, *args)), namespace=namespace)
        Client.opened.append(self)

    async def emit(self, event, *args):
        await within(self.sio.emit(event, args, namespace=self.namespace), event)

    async def takes(self, *event):
        same(await within(self.inbox.get(), event[0]), event, "the next event")

    async def ask(self, event, *args):
        """What an ack says: `None`, a value, or a tuple of several."""
        return await within(self.sio.call(event, args, namespace=self.namespace, timeout=WAIT_S), f"ack of {event}")


async def echo(transports):
    anna = await Client.open(transports, auth={"token": [1]}, query="?name=anna")
    await anna.takes("auth", {"token": [1]}, "anna")
    await anna.emit("message", 1, "\u00e9", {"deep": [BYTES, None]}, BYTES)
    await anna.takes("message-back", 1, "\u00e9", {"deep": [BYTES, None]}, BYTES)
    same(await anna.ask("message-with-ack", BYTES), BYTES, "ack")
    same(await anna.ask("message-with-ack", 1, {"x": BYTES}), (1, {"x": BYTES}), "ack")
    same(await anna.ask("message-with-ack"), None, "an empty ack")
    custom = await Client.open(transports, "/custom", auth={"a": 1})
    await custom.takes("auth", {"a": 1}, None)
    same(await custom.ask("message-with-ack", 5), 5, "ack")
    refused = asyncio.get_running_loop().create_future()
    nope = Client(transports, "/nope")
    nope.sio.on("connect_error", lambda data: refused.done() or refused.set_result(data), namespace="/nope")
    try:
        await nope.sio.connect(URL, namespaces=["/nope"], transports=transports, wait_timeout=WAIT_S)
        raise AssertionError("/nope was joined")
    except socketio.exceptions.ConnectionError:
        pass
    expected = {"message": "not here", "data": {"namespace": "/nope"}}
    same(await within(refused, "connect_error"), expected, "why not")
    ben = await Client.open(transports)
    await ben.takes("auth", {}, None)
    room = str(uuid.uuid4())
    for client in (anna, ben):
        same(await client.ask("join", [room]), "ok", "ack")
    await anna.takes("joined", anna.sio.get_sid())
    await anna.takes("joined", ben.sio.get_sid())
    await ben.takes("joined", ben.sio.get_sid())
    same(await ben.ask("say", room, BYTES, "hello"), "ok", "ack")
    await anna.takes("said", BYTES, "hello")
    assert ben.inbox.empty(), "who says something does not hear it"


async def chat(transports):
    said = [f"{uuid.uuid4()}" for _ in range(3)]
    anna, ben = await Client.open(transports), await Client.open(transports)
    # Who has been acknowledged something has been told before what it missed.
    fence = f"fence {uuid.uuid4()}"
    same(await ben.ask("chat message", fence, fence), None, "ack")
    for text in said:
        same(await anna.ask("chat message", text, f"offset of {text}"), None, "ack")
        same(await anna.ask("chat message", text, f"offset of {text}"), None, "ack of what came before")
    heard = []
    while len(heard) < 3:
        event, text, offset = await within(ben.inbox.get(), "a message")
        if text in said:
            heard.append((text, offset))
    same([text for text, _ in heard], said, "what was said")
    late = await Client.open(transports, auth={"serverOffset": heard[0][1]})
    for text, offset in heard[1:]:
        await late.takes("chat message", text, offset)


async def main():
    passed = failed = 0
    for name, transports in MODES.items():
        try:
            async with asyncio.timeout(TOTAL_S / len(MODES)):
                await {"echo": echo, "chat": chat}[APP](transports)
            passed += 1
            print(f"ok      {APP} ({name})")
        except Exception as error:
            failed += 1
            print(f"FAILED  {APP} ({name}): {type(error).__name__}: {error}")
        for client in Client.opened:
            await client.sio.shutdown()
        Client.opened.clear()
    print(f"{passed} passed, {failed} failed", flush=True)
    return failed


sys.exit(1 if asyncio.run(main()) else 0)
