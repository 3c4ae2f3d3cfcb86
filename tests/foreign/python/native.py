"""The native protocol (docs/protocol.md) as the stock `websockets` client sees it.

    pip install -r requirements.txt && python native.py ws://127.0.0.1:7070/ws

Prints one line per check and the count; the exit status is 1 when a check failed or 60 s were not enough. The server
needs its default limits and more than one shard: twelve clients are spread over them by the kernel.
"""

import asyncio
import contextlib
import json
import os
import sys
from urllib.parse import urljoin

try:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidStatus
except ImportError as missing:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.exit(f"{missing}: run `{sys.executable} -m pip install -r {os.path.join(here, 'requirements.txt')}`")

CLIENTS = 12
WAIT_S = 10  # for one expected message
TOTAL_S = 60
LETTER, FACE = "\u00e9", "\U0001f642"

if len(sys.argv) != 2:
    sys.exit("usage: native.py ws://HOST:PORT/ws")
URL = sys.argv[1]

rooms_named = 0


def room(label="room"):
    """A room name of this run's own, so that two runs against one server do not meet."""
    global rooms_named
    rooms_named += 1
    return f"python:{os.getpid()}:{label}:{rooms_named}"


def same(actual, expected, what):
    assert actual == expected, f"{what}: expected {expected!r}, got {actual!r}"


@contextlib.asynccontextmanager
async def within(what):
    """Bounds the time of what is awaited inside."""
    try:
        async with asyncio.timeout(WAIT_S):
            yield
    except TimeoutError:
        raise AssertionError(f"{what}: nothing within {WAIT_S} s") from None


def parse(text):
    try:
        return json.loads(text)
    except ValueError as error:
        return {"type": "not JSON", "error": str(error)}


class Received:
    """A message, the frame's JSON text as it came, and the payload when the frame was binary."""

    def __init__(self, message, raw, payload=None):
        self.message, self.raw, self.payload = message, raw, payload


class Client:
    """A connection, what came over it, and those who wait for something that has not come yet."""

    def __init__(self, name, socket):
        self.name = name
        self.socket = socket
        self.inbox = []
        self.waiting = []  # pairs of a predicate and the future it is to settle
        self.ids_used = 0
        self.reader = asyncio.create_task(self.read())

    @classmethod
    async def open(cls, name="guest", url=URL, **options):
        return cls(name, await connect(url, open_timeout=WAIT_S, **options))

    async def read(self):
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.receive(await self.socket.recv())
        for _, future in self.waiting:
            if not future.done():
                future.set_exception(AssertionError(f"{self.name}: closed with {self.socket.close_code}"))

    def receive(self, frame):
        if isinstance(frame, bytes):
            head, _, payload = frame.partition(b"\n")
            self.hand(Received(parse(head), head.decode(errors="replace"), payload))
            return
        parsed = parse(frame)
        for message in parsed if isinstance(parsed, list) else [parsed]:
            self.hand(Received(message, frame))

    def hand(self, received):
        for place, (matches, future) in enumerate(self.waiting):
            if not future.done() and matches(received.message):
                del self.waiting[place]
                future.set_result(received)
                return
        self.inbox.append(received)

    async def take(self, what, matches):
        """The first message that matches, whether it is there or still to come."""
        for place, received in enumerate(self.inbox):
            if matches(received.message):
                return self.inbox.pop(place)
        assert not self.reader.done(), f"{self.name} waits for {what}: closed with {self.socket.close_code}"
        future = asyncio.get_running_loop().create_future()
        waiter = (matches, future)
        self.waiting.append(waiter)
        try:
            async with asyncio.timeout(WAIT_S):
                return await future
        except TimeoutError:
            late = f"{self.name} waits for {what}: nothing within {WAIT_S} s; untaken: {self.untaken()}"
            raise AssertionError(late) from None
        finally:
            if waiter in self.waiting:
                self.waiting.remove(waiter)

    async def take_event(self, name, event):
        return await self.take(
            f"event {event} in {name}",
            lambda message: message["type"] == "event" and (message["room"], message["event"]) == (name, event),
        )

    async def take_kind(self, kind, what):
        return (await self.take(what, lambda message: message["type"] == kind)).message

    async def send(self, message):
        await self.socket.send(message if isinstance(message, str) else json.dumps(message))

    async def ask(self, message, payload=None):
        """Sends a message with an id, as a binary frame when there is a payload, and returns the answer to it."""
        self.ids_used += 1
        own = self.ids_used
        text = json.dumps({**message, "id": own})
        await self.socket.send(text if payload is None else text.encode() + b"\n" + payload)
        what = f"the answer to {message['type']} {own}"
        return (await self.take(what, lambda answer: answer.get("id") == own)).message

    async def acked(self, message, payload=None):
        answer = await self.ask(message, payload)
        same(answer["type"], "ack", f"{self.name}: answer to {message['type']} ({answer})")
        return answer

    async def join(self, *rooms):
        """Joins and returns, for each room, the number of members that were there before."""
        answer = await self.acked({"type": "join", "rooms": rooms})
        same(sorted(answer["rooms"]), sorted(rooms), "rooms in the ack")
        return {name: told["members"] for name, told in answer["rooms"].items()}

    async def leave(self, *rooms):
        await self.acked({"type": "leave", "rooms": rooms})

    async def publish(self, name, event, data, **more):
        await self.acked({"type": "publish", "room": name, "event": event, "data": data, **more})

    async def refused(self, message, code):
        answer = await self.ask(message)
        same((answer["type"], answer.get("code")), ("error", code), f"answer to {json.dumps(message)[:200]}")
        assert isinstance(answer["message"], str), f"an error's message is no text: {answer}"

    async def fence(self):
        """Everything sent before has been answered once this has come back."""
        same((await self.ask({"type": "ping"}))["type"], "pong", f"{self.name}: answer to ping")

    async def closed(self):
        """The code with which the server closes or has closed."""
        async with within("closing"):
            await self.reader
            await self.socket.wait_closed()
        return self.socket.close_code

    def untaken(self):
        return f"{len(self.inbox)} messages {[received.raw[:200] for received in self.inbox[:3]]}"


async def each(clients, act):
    """Does the same with all the clients at once."""
    return await asyncio.gather(*(act(client) for client in clients))


# The checks, in the order of docs/protocol.md. Each has rooms of its own and leaves no message behind: what is left
# untaken after a check (an event too many, an answer nobody asked for) fails it.
CHECKS = []


def check(title):
    def keep(function):
        CHECKS.append((title, function))
        return function

    return keep


@check("the subprotocol throng.v1 comes back when it is offered, and only then")
async def subprotocol(crowd):
    for offered, expected in [(["throng.v1"], "throng.v1"), (["other", "throng.v1"], "throng.v1"), (None, None)]:
        client = await Client.open(subprotocols=offered)
        same(client.socket.subprotocol, expected, f"offered {offered}")
        await client.socket.close()
        same(await client.closed(), 1000, "close code")


@check("a path that does not exist is refused with 404")
async def unknown_path(crowd):
    try:
        await Client.open(url=urljoin(URL, "/nowhere"))
    except InvalidStatus as refusal:
        same(refusal.response.status_code, 404, "status")
    else:
        raise AssertionError("the connection was accepted")


@check("a join of 100 rooms tells for each how many were there before")
async def join_counts(crowd):
    rooms = [room() for _ in range(100)]
    for before, client in enumerate(crowd):
        same(await client.join(*rooms), dict.fromkeys(rooms, before), "members")


@check("all join many rooms at once; every event reaches every other member once, never its sender")
async def everyone_everywhere(crowd):
    rooms = [room() for _ in range(100)]
    await each(crowd, lambda client: client.join(*rooms))
    senders = [crowd[index % len(crowd)] for index in range(len(rooms))]
    await asyncio.gather(*(senders[index].publish(name, "hello", {"index": index}) for index, name in enumerate(rooms)))

    async def take_all(client):
        for index, name in enumerate(rooms):
            if senders[index] is not client:
                message = (await client.take_event(name, "hello")).message
                same(message, {"type": "event", "room": name, "event": "hello", "data": {"index": index}}, "event")

    await each(crowd, take_all)


@check("data arrives byte for byte as it was published, null when there was none")
async def data_verbatim(crowd):
    sender, receiver = crowd[:2]
    name = room()
    await receiver.join(name)
    texts = [
        r'{"a":1.0,"b":[ 1 , 2 ],"c":"\u00e9\/\n"}',
        "123456789012345678901234567890",
        "-0",
        "1E2",
        '{"again":1,"again":2}',
        '" spaces  inside "',
        f'"{FACE} {LETTER}"',
        "[]",
        "false",
        "null",
    ]
    for index, text in enumerate(texts):
        await sender.send(f'{{"type":"publish","data":{text},"room":{json.dumps(name)},"event":"data {index}"}}')
        raw = (await receiver.take_event(name, f"data {index}")).raw
        assert f'"data":{text}}}' in raw or f'"data":{text},' in raw, f"published data {text}, got {raw}"
    await sender.send({"type": "publish", "room": name, "event": "nothing"})
    same((await receiver.take_event(name, "nothing")).message["data"], None, "data that was left out")


@check("names of rooms and events may be any text")
async def names(crowd):
    sender, receiver = crowd[:2]
    for name, event in [
        (room(f'caf{LETTER} "{FACE}" \\ \u4e16\u754c'), f'na\u00efve "event" \\ {FACE}'),
        (room("").ljust(200, "x"), "e" * 200),
    ]:
        await receiver.join(name)
        await sender.publish(name, event, 1)
        await receiver.take_event(name, event)


@check("with echo the sender gets its event too, if it is in the room")
async def echo(crowd):
    member, other, outsider = crowd[:3]
    name = room()
    await each([member, other], lambda client: client.join(name))
    await member.publish(name, "mine", 1, echo=True)
    await each([member, other], lambda client: client.take_event(name, "mine"))
    await outsider.publish(name, "not mine", 1, echo=True)
    await each([member, other], lambda client: client.take_event(name, "not mine"))


@check("one need not be in a room to publish to it, and nobody need be there")
async def publish_from_outside(crowd):
    outsider, *members = crowd
    name = room()
    await outsider.publish(name, "unheard", 1)
    await each(members, lambda client: client.join(name))
    await outsider.publish(name, "heard", 1)
    await each(members, lambda client: client.take_event(name, "heard"))


@check("who has left gets no more events; leaving a room one is not in is no error")
async def leave(crowd):
    sender, *members = crowd
    name, kept = room(), room()
    await each(members, lambda client: client.join(name, kept))
    leavers, stayers = members[:5], members[5:]
    await each(leavers, lambda client: client.leave(name, room("never joined")))
    for index in range(20):
        await sender.publish(name, f"late {index}", index)
    await sender.publish(kept, "still", 1)

    async def take_all(client):
        for index in range(20):
            await client.take_event(name, f"late {index}")

    await each(stayers, take_all)
    await each(members, lambda client: client.take_event(kept, "still"))
    same(await sender.join(name), {name: len(stayers)}, "members that are left")


@check("a connection that vanishes is no member any more")
async def vanished(crowd):
    watcher, member = crowd[:2]
    name = room()
    await member.join(name)
    guest = await Client.open()
    same(await guest.join(name), {name: 1}, "members before the guest")
    guest.socket.transport.abort()
    async with within("one member fewer"):
        while (await watcher.join(name))[name] != 1:
            await watcher.leave(name)
            await asyncio.sleep(0.02)


@check("without an id there is no ack")
async def silence(crowd):
    client, other = crowd[:2]
    name = room()
    await client.send({"type": "join", "rooms": [name]})
    await client.send({"type": "publish", "room": name, "event": "quiet", "data": 1, "echo": True})
    await client.take_event(name, "quiet")
    await client.send({"type": "leave", "rooms": [name]})
    await client.fence()
    same(await other.join(name), {name: 0}, "members after leaving")


@check("ping is answered by pong; an id comes back as it was written")
async def ping_message(crowd):
    client = crowd[0]
    await client.send({"type": "ping"})
    same(await client.take_kind("pong", "a pong without id"), {"type": "pong"}, "the pong")
    for written in ["7", "-1.50", "1e2", '"text"', r'"\u0041\/"', f'"{"x" * 62}"']:
        await client.send(f'{{"id":{written},"type":"ping"}}')
        raw = (await client.take("a pong", lambda message: message["type"] == "pong")).raw
        assert f'"id":{written}' in raw, f"sent id {written}, got {raw}"


@check("a WebSocket ping is answered with its payload")
async def ping_frame(crowd):
    for index, client in enumerate(crowd):
        # The library settles this only when a pong with the same payload comes.
        pong = await client.socket.ping(bytes([65 + index]) * (114 + index))
        async with within(f"{client.name}: pong"):
            await pong


@check("a binary publish arrives as a binary frame with the same bytes")
async def binary(crowd):
    sender, *members = crowd
    name = room()
    await each(crowd, lambda client: client.join(name))
    every_byte = bytes(range(256)) * 4
    for index, payload in enumerate([every_byte, b"\n\n", b"", b"\xff" * 100_000]):
        event = f"tile {index}"
        await sender.acked({"type": "publish", "room": name, "event": event}, payload)
        for client in members:
            received = await client.take_event(name, event)
            same(received.message, {"type": "event", "room": name, "event": event}, "the JSON part")
            assert received.payload == payload, f"{client.name}: {len(payload)} bytes came as something else"
    await sender.acked({"type": "publish", "room": name, "event": "mine", "echo": True}, every_byte)
    await each(crowd, lambda client: client.take_event(name, "mine"))


@check("an array of messages is carried out in order, each answered for itself")
async def array(crowd):
    client, member = crowd[:2]
    name, second = room(), room()
    await member.join(name)
    await client.send(
        [
            {"type": "join", "rooms": [name], "id": "a"},
            {"type": "publish", "room": name, "event": "one", "data": 1, "id": "b"},
            {"type": "nonsense", "id": "c"},
            {"type": "ping", "id": "d"},
            {"type": "publish", "room": name, "event": "two", "data": 2},
            {"type": "leave", "rooms": [name], "id": "e"},
            {"type": "join", "rooms": [second], "id": "f"},
        ]
    )
    answers = []
    for _ in range(6):
        answer = (await client.take("an answer", lambda message: message["type"] != "event")).message
        answers.append((answer.get("id"), answer["type"]))
    expected = [("a", "ack"), ("b", "ack"), ("c", "error"), ("d", "pong"), ("e", "ack"), ("f", "ack")]
    same(answers, expected, "answers")
    await member.take_event(name, "one")
    await member.take_event(name, "two")
    await client.send("[]")


@check("an echo comes back to who is in the room at the publish's place in the array")
async def echo_in_array(crowd):
    client = crowd[0]
    name = room()
    publish = {"type": "publish", "room": name, "data": 1, "echo": True}
    await client.send(
        [
            {**publish, "event": "before joining"},
            {"type": "join", "rooms": [name]},
            {**publish, "event": "as a member"},
            {"type": "leave", "rooms": [name]},
            {**publish, "event": "after leaving"},
        ]
    )
    same((await client.take_kind("event", "the echo"))["event"], "as a member", "the event that came back")


@check("errors have their codes and do not end the connection")
async def errors(crowd):
    client = crowd[0]
    name = room()
    deep = "[" * 121 + "]" * 121
    not_json = ["{", "", '{"type":"ping"', '{"type":"ping"} x', "nonsense", '[{"type":"ping"}', "{'type':1}"]
    not_json.append(f'{{"type":"publish","room":"{name}","event":"e","data":{deep}}}')
    for text in not_json:
        await client.send(text)
        same((await client.take_kind("error", f"an error for {text}"))["code"], "bad_json", f"code for {text}")
    publish = {"type": "publish", "room": name, "event": "e"}
    for message, code in [
        ({"type": "shout"}, "unknown_type"),
        ({"type": "join"}, "bad_message"),
        ({"type": "join", "rooms": name}, "bad_message"),
        ({"type": "join", "rooms": [7]}, "bad_message"),
        ({"type": "leave", "rooms": {name: True}}, "bad_message"),
        ({"type": "publish", "event": "e"}, "bad_message"),
        ({"type": "publish", "room": name}, "bad_message"),
        ({**publish, "event": 1}, "bad_message"),
        ({**publish, "echo": "yes"}, "bad_message"),
        ({"type": "join", "rooms": [""]}, "bad_room"),
        ({"type": "join", "rooms": ["x" * 201]}, "bad_room"),
        ({"type": "join", "rooms": ["tab\there"]}, "bad_room"),
        ({**publish, "room": "nul\0"}, "bad_room"),
        ({**publish, "event": ""}, "bad_event"),
        ({**publish, "event": "x" * 201}, "bad_event"),
        ({**publish, "event": "line\nfeed"}, "bad_event"),
    ]:
        await client.refused(message, code)


@check("a join is carried out whole or not at all")
async def join_whole(crowd):
    client, other = crowd[:2]
    name = room()
    await client.refused({"type": "join", "rooms": [name, ""]}, "bad_room")
    same(await other.join(name), {name: 0}, "members after a refused join")
    await other.publish(name, "unheard", 1)


@check("too many rooms and too many messages are refused")
async def too_many(crowd):
    client, other = crowd[:2]
    rooms = [room() for _ in range(1025)]
    await client.refused({"type": "join", "rooms": rooms}, "too_many_rooms")
    same(await other.join(rooms[0]), {rooms[0]: 0}, "members after a refused join")
    publish = {"type": "publish", "room": rooms[0], "event": "unheard", "data": 1}
    await client.send([publish] * 1025)
    same((await client.take_kind("error", "an error"))["code"], "too_many_messages", "code for 1,025 messages")
    await client.send([{**publish, "event": f"heard {index}"} for index in range(1024)])
    for index in range(1024):
        same((await other.take_kind("event", f"heard {index}"))["event"], f"heard {index}", "the event in this place")


@check("a message in fragments, with a ping between them, is one message")
async def fragments(crowd):
    sender, receiver = crowd[:2]
    name = room()
    await receiver.join(name)
    data = (LETTER + FACE) * 200
    text = json.dumps({"type": "publish", "room": name, "event": "parts", "data": data}, ensure_ascii=False)
    pongs = []

    async def parts():
        for start in range(0, len(text), 7):
            yield text[start : start + 7]
            if start == 70:
                pongs.append(await sender.socket.ping("between"))

    await sender.socket.send(parts())
    same((await receiver.take_event(name, "parts")).message["data"], data, "data")
    async with within("pong"):
        await pongs[0]


@check("an event of 200 KB reaches every member")
async def large(crowd):
    sender, *members = crowd
    name = room()
    await each(members, lambda client: client.join(name))
    data = "0123456789" * 20_000
    await sender.publish(name, "large", data)
    for client in members:
        received = (await client.take_event(name, "large")).message
        assert received["data"] == data, f"{client.name}: the data differs"


@check("1,000 messages of each of two publishers arrive in one order at all members of each room")
async def order(crowd):
    rooms = [room("order"), room("order")]
    publishers = crowd[:2]
    count = 1000
    await each(crowd, lambda client: client.join(*rooms))

    async def publish_all(origin):
        messages = [
            {"type": "publish", "room": name, "event": "n", "data": [origin, n]} for n in range(count) for name in rooms
        ]
        # One sends every message in a frame of its own, the other fifty in one frame.
        if origin == 0:
            for message in messages:
                await publishers[origin].send(message)
        else:
            for start in range(0, len(messages), 50):
                await publishers[origin].send(messages[start : start + 50])
        await publishers[origin].fence()

    async def take_all(client):
        seen = {name: [] for name in rooms}
        expected = len(rooms) * count * (1 if client in publishers else 2)
        for _ in range(expected):
            message = await client.take_kind("event", f"{expected} events")
            seen[message["room"]].append(message["data"])
        return seen

    *_, orders = await asyncio.gather(publish_all(0), publish_all(1), each(crowd, take_all))
    for name in rooms:
        reference = orders[-1][name]
        for origin in range(2):
            numbers = [n for sender, n in reference if sender == origin]
            assert numbers == list(range(count)), f"{name}: the order of publisher {origin} is {numbers}"
        for client, seen in zip(crowd, orders):
            # A publisher does not get its own, but the other's in the same order.
            due = [data for data in reference if client is not publishers[data[0]]]
            assert seen[name] == due, f"{name}: {client.name} saw another order than {crowd[-1].name}"


@check("a client's own close code comes back to it")
async def close_codes(crowd):
    for code in [1000, 1001, 3001, 4999]:
        client = await Client.open()
        await client.socket.close(code, "bye")
        same(await client.closed(), code, "close code")


@check("what breaks the rules is closed with 1007 or 1009")
async def offences(crowd):
    for code, what, message, options in [
        (1009, "a text message of 1 MiB and 1 byte", "x" * 1_048_577, {}),
        (1009, "a message in 4,097 frames", ["x"] * 4097, {}),
        (1007, "text that is not UTF-8", b'"\xff"', {"text": True}),
    ]:
        client = await Client.open()
        with contextlib.suppress(ConnectionClosed):  # the server may close before all is sent
            await client.socket.send(message, **options)
        same(await client.closed(), code, f"close code for {what}")


@check("a message of 1 MiB is still taken")
async def largest(crowd):
    client = await Client.open()
    await client.send('{"type":"ping","id":1}'.ljust(1_048_576))
    await client.take_kind("pong", "a pong")
    await client.socket.close()
    same(await client.closed(), 1000, "close code")


async def open_crowd():
    return await asyncio.gather(*(Client.open(f"client {index}") for index in range(CLIENTS)))


async def main():
    """Runs the checks and returns the exit status."""
    passed = failed = 0
    current = "opening the connections"
    try:
        async with asyncio.timeout(TOTAL_S) as total:
            crowd = await open_crowd()
            for title, function in CHECKS:
                current = title
                try:
                    await function(crowd)
                    await each(crowd, Client.fence)
                    for client in crowd:
                        assert not client.inbox, f"{client.name} got more than expected: {client.untaken()}"
                    passed += 1
                    print(f"ok      {title}", flush=True)
                except Exception as error:
                    failed += 1
                    print(f"FAILED  {title}: {type(error).__name__}: {error}", flush=True)
                    # Start afresh, so that one failure does not spoil the checks after it.
                    for client in crowd:
                        client.socket.transport.abort()
                    crowd = await open_crowd()
    except Exception as error:
        failed += 1
        why = f"not done when {TOTAL_S} s were over" if total.expired() else f"{type(error).__name__}: {error}"
        print(f"FAILED  {current}: {why}")
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if failed == 0 else 1


sys.exit(asyncio.run(main()))
