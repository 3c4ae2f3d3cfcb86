#!/usr/bin/env python3
"""What a publication costs the server by each way in: HTTP requests on one connection, lists, a stream of lines, and a WebSocket.

    cargo build --release && benches/backend.py [PROGRAM] [--members N]

Starts a server with one shard for itself. Prints publications a second, which this script may be what limits, and the server's CPU time for
each, which it is not.
"""

import argparse
import http.client
import json
import os
import socket
import struct
import subprocess
import threading
import time

KEY = "a-key-for-measuring"
SINGLE, LISTED, STREAMED = 10_000, 100_000, 500_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", default="target/release/throng")
    parser.add_argument("--members", type=int, default=0, help="clients that get it all")
    args = parser.parse_args()
    server = Server(args.program)
    try:
        for _ in range(args.members):
            member = WebSocket(server.listen)
            member.send(b'{"type":"join","rooms":["ticks"],"id":1}')
            member.wait_for(b"ack")
            threading.Thread(target=member.read_all, daemon=True).start()
        single(server)
        listed(server)
        streamed(server)
        websocket(server)
    finally:
        server.process.kill()


def publication(number):
    return b'{"room":"ticks","event":"tick","data":{"n":%d,"price":123.45}}' % number


def single(server):
    backend = Backend(server)
    with server.measured("one connection, one request at a time", SINGLE):
        for number in range(SINGLE):
            backend.post(publication(number), b'{"published":1}')


def listed(server):
    backend = Backend(server)
    with server.measured("one connection, lists of 1,000", LISTED):
        for start in range(0, LISTED, 1000):
            items = b",".join(publication(start + number) for number in range(1000))
            backend.post(b'{"publications":[%s]}' % items, b"]}")


def streamed(server):
    lines = b"\n".join(publication(number) for number in range(STREAMED))
    headers = {"Authorization": "Bearer " + KEY, "Content-Type": "application/x-ndjson"}
    with server.measured("a stream of lines", STREAMED):
        connection = http.client.HTTPConnection(*server.control)
        connection.request("POST", "/v1/publish/stream", lines, headers)
        summary = json.loads(connection.getresponse().read())
    assert summary["published"] == STREAMED, summary


def websocket(server):
    client = WebSocket(server.listen)
    frames = b"".join(frame(b'{"type":"publish",' + publication(number)[1:]) for number in range(STREAMED))
    with server.measured("a WebSocket", STREAMED):
        client.socket.sendall(frames)
        client.send(b'{"type":"ping","id":1}')
        client.wait_for(b"pong")


class Server:
    def __init__(self, program):
        settings = ["server.listen=127.0.0.1:0", "server.control=127.0.0.1:0", "server.shards=1", "server.pin=false"]
        settings += ["log.format=json", "api.key=" + KEY]
        command = [program, "serve", *(word for setting in settings for word in ("--set", setting))]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            fields = json.loads(line)["fields"]
            if fields["message"] == "listening":
                break
        self.listen, self.control = (address(fields[name]) for name in ("listen", "control"))

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            # Behind the name, in brackets, utime and stime are the 12th and 13th.
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def measured(self, name, count):
        return Measured(self, name, count)


class Measured:
    def __init__(self, server, name, count):
        self.server, self.name, self.count = server, name, count

    def __enter__(self):
        self.began, self.cpu = time.monotonic(), self.server.cpu_seconds()

    def __exit__(self, *_):
        took, cpu = time.monotonic() - self.began, self.server.cpu_seconds() - self.cpu
        print(f"{self.name:40} {self.count / took:>11,.0f}/s {cpu / self.count * 1e6:7.2f} µs of CPU each")


class Backend:
    def __init__(self, server):
        self.socket = socket.create_connection(server.control)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, body, end):
        head = f"POST /v1/publish HTTP/1.1\r\nHost: throng\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)
        answer = b""
        while not answer.endswith(end):
            piece = self.socket.recv(1 << 16)
            assert piece, answer
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200"), answer


class WebSocket:
    def __init__(self, listen):
        self.socket = socket.create_connection(listen)
        head = "GET /ws HTTP/1.1\r\nHost: throng\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        self.socket.sendall(head.encode())
        self.wait_for(b"\r\n\r\n")

    def send(self, text):
        self.socket.sendall(frame(text))

    def wait_for(self, text):
        heard = b""
        while text not in heard:
            piece = self.socket.recv(1 << 16)
            assert piece, heard
            heard = heard[-len(text) :] + piece

    def read_all(self):
        while self.socket.recv(1 << 20):
            pass


def frame(text):
    """A text frame with a mask of zeroes."""
    length = bytes([0x80 | len(text)]) if len(text) < 126 else struct.pack(">BH", 0x80 | 126, len(text))
    return b"\x81" + length + bytes(4) + text


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


if __name__ == "__main__":
    main()
