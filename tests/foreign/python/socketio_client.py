"""Socket.IO as the stock `python-socketio` clients see it: the one with coroutines and the one with threads.

    pip install -r requirements.txt && python socketio_client.py http://127.0.0.1:7070 [--recovery]

Prints one line per check and the count; the exit status is 1 when a check failed or 60 s were not enough. The server needs the
settings of examples/socketio-compliance.toml, `socketio.namespaces = ["/","/custom","/guild/*"]`, and a ping timeout of some
seconds. With `--recovery` it is one that has `socketio.recovery_ms`: these clients know nothing of that, and see one argument more.
"""

import asyncio
import os
import sys

try:
    import aiohttp  # noqa: F401 (without it python-socketio has no client with coroutines)
    import requests  # noqa: F401
    import socketio
    import websocket  # noqa: F401
    from engineio.payload import Payload
except ImportError as missing:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.exit(f"{missing}: run `{sys.executable} -m pip install -r {os.path.join(here, 'requirements.txt')}`")

WAIT_S = 10  # for one thing that is expected to happen at once
TOTAL_S = 60
LETTER, FACE = "\u00e9", "\U0001f642"
VALUES = [0, -1.5, True, None, "", f'{LETTER}{FACE} "quoted" \\ \u2028', [], {}, [1, [2, [3, {"four": [5]}]]], {"a": {"b": [None]}}]

# The library refuses payloads of more than 16 packets by default, whatever server it talks to.
Payload.max_decode_packets = 1000

if len(sys.argv) < 2 or not sys.argv[1].startswith("http://") or sys.argv[2:] not in [[], ["--recovery"]]:
    sys.exit("usage: socketio_client.py http://HOST:PORT [--recovery]")
URL = sys.argv[1]
OFFSETS = len(sys.argv) > 2

rooms_named = 0


def room():
    """A room name of this run's own, so that two runs against one server do not meet."""
    global rooms_named
    rooms_named += 1
    return f"python:{os.getpid()}:{rooms_named}"


def same(actual, expected, what):
    assert actual == expected, f"{what}: expected {str(expected)[:300]}, got {str(actual)[:300]}"


async def within(awaitable, what):
    """Bounds the time of what is awaited."""
    try:
        return await asyncio.wait_for(awaitable, WAIT_S)
    except TimeoutError:
        raise AssertionError(f"{what}: nothing within {WAIT_S} s") from None


class Client:
    """A socket of a stock client, and the events that came to it and were not yet taken, for each namespace."""

    opened = []  # all of the running check, to be ended after it

    @classmethod
    async def open(cls, mode, namespaces=("/",), auth=None):
        client = cls(mode)
        await client.connect(namespaces, auth)
        return client

    def __init__(self, mode):
        kind, self.transports = mode
        self.threads = kind is socketio.Client
        options = {"reconnection_delay": 0.02, "reconnection_delay_max": 0.1, "handle_sigint": False}
        self.sio = kind(**options)
        self.inbox = {}
        loop = asyncio.get_running_loop()

        def receive(event, namespace, *args):
            if OFFSETS:
                # One that is missing is seen, since the event differs then.
                args = args[:-1] if args and isinstance(args[-1], str) else ("no offset", *args)
            # The client with threads calls from one of them.
            loop.call_soon_threadsafe(self.queue(namespace).put_nowait, (event, *args))

        self.sio.on("*", receive, namespace="*")
        self.gone = asyncio.Event()
        self.sio.on("disconnect", lambda *_: loop.call_soon_threadsafe(self.gone.set), namespace="*")
        Client.opened.append(self)

    def queue(self, namespace):
        return self.inbox.setdefault(namespace, asyncio.Queue())

    async def act(self, method, *args, **options):
        """Calls a method of the library's client."""
        if self.threads:
            return await within(asyncio.to_thread(method, *args, **options), method.__name__)
        return await within(method(*args, **options), method.__name__)

    async def connect(self, namespaces=("/",), auth=None):
        """Joins namespaces and takes the event with the auth payload of each."""
        options = {"namespaces": list(namespaces), "auth": auth, "transports": self.transports, "wait_timeout": WAIT_S}
        await self.act(self.sio.connect, URL, **options)
        for namespace in namespaces:
            await self.takes("auth", auth or {}, namespace=namespace)

    async def takes(self, *event, namespace="/"):
        got = await within(self.queue(namespace).get(), f"{event[0]} in {namespace}")
        same(got, event, f"the next event in {namespace}")

    async def echoes(self, *args, namespace="/"):
        await self.act(self.sio.emit, "message", args, namespace=namespace)
        await self.takes("message-back", *args, namespace=namespace)

    async def ask(self, event, *args, namespace="/"):
        """Sends an event and returns what its ack says: a tuple when there is more than one argument."""
        return await self.act(self.sio.call, event, args, namespace=namespace, timeout=WAIT_S)

    async def join(self, *rooms, namespace="/"):
        """Joins rooms and returns how many members each had."""
        answer = await self.ask("join", list(rooms), namespace=namespace)
        return [answer["rooms"][name]["members"] for name in rooms]

    async def publish(self, name, event, data, namespace="/", **more):
        same(await self.ask("publish", {"room": name, "event": event, "data": data, **more}, namespace=namespace), {}, "ack")

    async def fence(self):
        """All that was said before has been carried out, and nothing came that was not taken."""
        same(await self.ask("message-with-ack", "fence"), "fence", "the ack of the fence")
        left = {namespace: queue for namespace, queue in self.inbox.items() if not queue.empty()}
        assert not left, f"untaken events: {left}"

    async def close(self):
        await self.act(self.sio.shutdown)


COROUTINES, THREADS = socketio.AsyncClient, socketio.Client
MODES = {
    "coroutines, both transports": (COROUTINES, None),
    "coroutines, websocket": (COROUTINES, ["websocket"]),
    "coroutines, polling": (COROUTINES, ["polling"]),
    "threads, both transports": (THREADS, None),
    "threads, websocket": (THREADS, ["websocket"]),
    "threads, polling": (THREADS, ["polling"]),
}


async def crowd():
    """Two clients of each mode."""
    return await asyncio.gather(*(Client.open(mode) for mode in MODES.values() for _ in range(2)))


async def each(clients, act):
    """Does the same with all the clients at once."""
    return await asyncio.gather(*(act(client) for client in clients))


# Titles, functions and what they are called with.
CHECKS = []


def check(title):
    """A check between clients of all modes."""

    def keep(function):
        CHECKS.append((title, function, []))
        return function

    return keep


def check_each(title, where=lambda kind, transports: True):
    """A check to be made in each mode, or in those that `where` picks."""

    def keep(function):
        for name, mode in MODES.items():
            if where(*mode):
                CHECKS.append((f"{name}: {title}", function, [mode]))
        return function

    return keep


def keeps_order(kind, transports):
    """The client with threads starts one for each packet, so that packets, attachments too, may overtake each other."""
    return kind is COROUTINES


def can_be_cut(kind, transports):
    """Elsewhere there is no way to cut the connection without cutting into the library."""
    return kind is COROUTINES and transports != ["polling"]


@check_each("connects, and the auth payload arrives")
async def auth_payload(mode):
    for auth in [None, {"token": "123", "list": [1, {LETTER: FACE}]}]:
        client = await Client.open(mode, auth=auth)
        transport = client.sio.transport
        same(transport() if callable(transport) else transport, (mode[1] or ["websocket"])[0], "transport")
        assert client.sio.get_sid() != client.sio.eio.sid, "the socket's id is the session's"
        await client.echoes("hello")


@check_each("events come back with their arguments")
async def events(mode):
    client = await Client.open(mode)
    await client.echoes()
    for value in VALUES:
        await client.echoes(value)
    await client.echoes(*VALUES)


if OFFSETS:

    @check_each("an event whose listener takes no offset is lost, and the next one is not")
    async def narrow_listener(mode):
        client = await Client.open(mode)
        heard = []
        client.sio.on("message-back", lambda data: heard.append(data))
        client.sio.on("wide", lambda data, offset: heard.append(data))
        name = room()
        await client.join(name)
        await client.act(client.sio.emit, "message", "narrow")
        await client.publish(name, "wide", "wide", echo=True)
        async with asyncio.timeout(WAIT_S):
            while not heard:
                await asyncio.sleep(0.01)
        await client.fence()
        same(heard, ["wide"], "what listeners heard")


@check_each("acks come back with their arguments")
async def acks(mode):
    client = await Client.open(mode)
    same(await client.ask("message-with-ack"), None, "an ack of nothing")
    same(await client.ask("message-with-ack", 7), 7, "an ack of one argument")
    same(await client.ask("message-with-ack", *VALUES), tuple(VALUES), "an ack of many arguments")
    same(await asyncio.gather(*(client.ask("message-with-ack", n) for n in range(20))), list(range(20)), "many acks")


@check_each("bytes come back in events and acks", keeps_order)
async def attachments(mode):
    client = await Client.open(mode)
    every = bytes(range(256)) * 4
    await client.echoes(every)
    await client.echoes("before", {"deep": [every, {"deeper": b"\x04"}]}, b"", "after")
    same(await client.ask("message-with-ack", every, 1, b"x"), (every, 1, b"x"), "the ack")
    await client.echoes("text again")


@check_each("namespaces share a connection and nothing else")
async def namespaces(mode):
    names = ["/", "/custom", "/guild/7"]
    client = await Client.open(mode, names, auth={"in": "all"})
    same(len({client.sio.get_sid(name) for name in names}), 3, "different ids")
    for name in names:
        await client.echoes(name, namespace=name)
    await client.fence()


@check_each("a namespace that there is not is refused")
async def unknown_namespace(mode):
    client = Client(mode)
    try:
        await client.connect(["/nope"])
    except socketio.exceptions.ConnectionError as error:
        assert "/nope" in str(error), f"error {error}"
    else:
        raise AssertionError("/nope can be joined")


@check_each("who disconnects can connect again")
async def again(mode):
    client = await Client.open(mode)
    first = client.sio.get_sid()
    await client.act(client.sio.disconnect)
    await within(client.gone.wait(), "disconnect")
    await client.connect()
    assert client.sio.get_sid() != first, "the same id for another socket"
    await client.echoes("again")


@check_each("who loses the connection is back by itself, and in no room", can_be_cut)
async def reconnection(mode):
    client = await Client.open(mode)
    name = room()
    await client.join(name)
    first = client.sio.get_sid()
    await client.sio.eio.ws.close()
    await within(client.gone.wait(), "disconnect")
    await client.takes("auth", {})
    assert client.sio.get_sid() != first, "the same id for another socket"
    await client.publish(name, "unheard", 1, echo=True)
    await client.fence()


@check_each("events of nearly the largest size pass")
async def large(mode):
    client = await Client.open(mode)
    text = "0123456789" * 99_990
    await client.echoes(text)
    same(await client.ask("message-with-ack", text), text, "the ack")


@check_each("200 events come back in order", keeps_order)
async def order(mode):
    client = await Client.open(mode)
    for n in range(200):
        await client.act(client.sio.emit, "message", n)
    for n in range(200):
        await client.takes("message-back", n)


@check("a join tells how many were there before")
async def members():
    clients = await crowd()
    rooms = [room(), room()]
    for before, client in enumerate(clients):
        same(await client.join(*rooms), [before, before], "members")


@check("an event reaches every other member once, and its sender only with echo")
async def publish():
    clients = await crowd()
    name = room()
    await each(clients, lambda client: client.join(name))
    for sender in clients:
        for value in [{"amount": 120}, None, f"{LETTER}{FACE}"]:
            await sender.publish(name, "news", value)
            await each([client for client in clients if client is not sender], lambda client: client.takes("news", value))
        await sender.publish(name, "for all", 1, echo=True)
        await each(clients, lambda client: client.takes("for all", 1))
    await each(clients, Client.fence)


@check("who has left hears nothing more")
async def leave():
    clients = await crowd()
    name = room()
    await each(clients, lambda client: client.join(name))
    leavers, stayers = clients[::2], clients[1::2]
    for client in leavers:
        same(await client.ask("leave", name), {}, "ack")
    await leavers[0].publish(name, "heard", 1)
    await each(stayers, lambda client: client.takes("heard", 1))
    await each(clients, Client.fence)


@check("each namespace has rooms of its own")
async def rooms_of_namespaces():
    name = room()
    spaces = ["/", "/custom", "/guild/1", "/guild/2"]
    one, two = [await Client.open(MODES["coroutines, both transports"], spaces) for _ in range(2)]
    for client, before in [(one, 0), (two, 1)]:
        for namespace in spaces:
            same(await client.join(name, namespace=namespace), [before], f"members in {namespace}")
    for namespace in spaces:
        await one.publish(name, "here", namespace, namespace=namespace)
        await two.takes("here", namespace, namespace=namespace)
    await each([one, two], Client.fence)


@check("what cannot be carried out is said in the ack")
async def errors():
    client = await Client.open(MODES["coroutines, both transports"])
    for event, argument, code in [
        ("join", "", "bad_room"),
        ("join", ["tab\there"], "bad_room"),
        ("join", True, "bad_message"),
        ("publish", {"room": "", "event": "e"}, "bad_room"),
        ("publish", {"room": room()}, "bad_message"),
    ]:
        answer = await client.ask(event, argument)
        same(answer.get("error", {}).get("code"), code, f"the ack of {event} {argument!r}")


@check("who is silent stays connected")
async def silence():
    clients = await crowd()
    ids = [client.sio.get_sid() for client in clients]
    await asyncio.sleep(1.5)  # several pings
    same([client.sio.get_sid() for client in clients], ids, "socket ids")
    await each(clients, Client.fence)


async def main():
    """Runs the checks and returns how many passed and how many failed."""
    passed = failed = 0
    current = "the first check"
    try:
        async with asyncio.timeout(TOTAL_S) as total:
            for title, function, args in CHECKS:
                current = title
                try:
                    await function(*args)
                    passed += 1
                    print(f"ok      {title}", flush=True)
                except Exception as error:
                    failed += 1
                    print(f"FAILED  {title}: {type(error).__name__}: {error}", flush=True)
                await asyncio.gather(*(client.close() for client in Client.opened), return_exceptions=True)
                Client.opened.clear()
    except Exception as error:
        failed += 1
        why = f"not done when {TOTAL_S} s were over" if total.expired() else f"{type(error).__name__}: {error}"
        print(f"FAILED  {current}: {why}")
    return passed, failed


passed, failed = asyncio.run(main())
print(f"{passed} passed, {failed} failed", flush=True)
# Threads of the library that are left behind would hold up an ordinary exit.
os._exit(0 if failed == 0 else 1)
