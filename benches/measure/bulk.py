#!/usr/bin/env python3
"""What one connection brings over a line such as that of link.py.

    ip netns exec near benches/measure/bulk.py serve
    ip netns exec far  benches/measure/bulk.py rate            # bytes a second, of as much as goes
    ip netns exec far  benches/measure/bulk.py pauses 131072   # how long that many bytes take, after 3 s of silence
"""

import socket
import sys
import time

ADDRESS = ("10.9.0.1", 9999)


def serve():
    listener = socket.create_server(ADDRESS)
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while asked := connection.recv(16):
            left = int(asked)
            while left > 0:
                left -= connection.send(b"x" * min(left, 65536))
    except OSError:
        pass  # The other side has heard enough.


def read(connection, length):
    while length > 0:
        length -= len(connection.recv(1 << 20))


def rate():
    connection = socket.create_connection(ADDRESS)
    connection.sendall(b"1000000000000")
    start, count = time.monotonic(), 0
    while (passed := time.monotonic() - start) < 11:
        length = len(connection.recv(1 << 20))
        # The first seconds are for finding the pace.
        count += length if passed > 4 else 0
    print(f"{count / 7 / 1e6:.2f} MB/s")


def pauses(length):
    connection = socket.create_connection(ADDRESS)
    times = []
    for turn in range(9):
        time.sleep(0 if turn < 4 else 3)
        start = time.monotonic()
        connection.sendall(b"%d" % length)
        read(connection, length)
        times.append(round((time.monotonic() - start) * 1000))
    print("at once, ms:", times[:4], " after 3 s of silence, ms:", times[4:])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            serve()
        case ["rate"]:
            rate()
        case ["pauses", length]:
            pauses(int(length))
        case _:
            sys.exit(__doc__)
