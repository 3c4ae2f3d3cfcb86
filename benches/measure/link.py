#!/usr/bin/env python3
"""A slow, long or lossy line between two network namespaces, for kernels without netem. Needs root and /dev/net/tun.

    benches/measure/link.py DELAY_MS LOSS SECONDS

Makes the namespaces `near` (10.9.0.1) and `far` (10.9.0.2). Each packet takes DELAY_MS; of those that leave `near`, a share of LOSS
(0 to 1) is lost. After SECONDS it ends and takes the namespaces away.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def end(namespace, address, peer):
    """One end of the line: a descriptor on which the packets are."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"tun-{namespace}"
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    ip("netns", "add", namespace)
    ip("link", "set", name, "netns", namespace)
    ip("-n", namespace, "link", "set", "lo", "up")
    ip("-n", namespace, "addr", "add", address, "peer", peer, "dev", name)
    # Packets larger than Ethernet's, so that this program keeps up.
    ip("-n", namespace, "link", "set", name, "up", "mtu", os.environ.get("MTU", "1500"), "txqueuelen", "5000")
    return descriptor


def main():
    delay, loss, until = float(sys.argv[1]) / 1000, float(sys.argv[2]), time.monotonic() + float(sys.argv[3])
    near, far = end("near", "10.9.0.1", "10.9.0.2"), end("far", "10.9.0.2", "10.9.0.1")
    other = {near: far, far: near}
    # When a packet is due, which it is of all, where it goes, and what it is.
    waiting, count = [], 0
    while (now := time.monotonic()) < until:
        pause = min(max(waiting[0][0] - now, 0), 0.2) if waiting else 0.2
        ready, _, _ = select.select([near, far], [], [], pause)
        for descriptor in ready:
            for _ in range(64):
                try:
                    packet = os.read(descriptor, 65536)
                except BlockingIOError:
                    break
                if descriptor == near and random.random() < loss:
                    continue
                count += 1
                heapq.heappush(waiting, (time.monotonic() + delay, count, other[descriptor], packet))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, descriptor, packet = heapq.heappop(waiting)
            try:
                os.write(descriptor, packet)
            except OSError:
                pass  # The other end takes no more just now: a packet is lost, as they are.


if __name__ == "__main__":
    try:
        main()
    finally:
        for namespace in ("near", "far"):
            subprocess.run(["ip", "netns", "del", namespace], check=False)
