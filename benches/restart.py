#!/usr/bin/env python3
"""What clients notice of a restart: throng under a stand-in for systemd's manager, filled with connections, then restarted.

    cargo build --release --workspace && benches/restart.py [--connections N] [--proto socketio] [--kept store|sockets|none] [--set KEY=VALUE …]

Prints how the connections were closed and at what pace, whether any was refused or reset, and how long it was until all were back
(docs/loadgen.md has the words), and what the manager saw. The exit code is 0 when all were closed with a code and came back at the first try.

With `--kept store` the manager keeps the listeners that throng gives it, with `sockets` it listens itself and passes those on, as by a
.socket unit; with `none` nobody listens between the two processes, which is to show what that costs.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MANAGER = f"{ROOT}/tests/foreign/python/manager.py"
WAIT_S = 60  # for what is to happen soon, on a busy machine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
    parser.add_argument("--throng", default=f"{target}/release/throng")
    parser.add_argument("--load", default=f"{target}/release/throng-load")
    parser.add_argument("--connections", type=int, default=15_000)
    parser.add_argument("--proto", choices=["native", "socketio"], default="native")
    parser.add_argument("--kept", choices=["store", "sockets", "none"], default="store")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of throng")
    parser.add_argument("--seconds", type=float, default=120, help="how long all may take to come back")
    parser.add_argument("--limit-nofile", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    overflows_before = overflows()
    with tempfile.NamedTemporaryFile("w+", prefix="throng-restart-", suffix=".log") as log:
        manager = Manager(args, log)
        try:
            manager.order("start")
            manager.wait_for("started")
            code, report = storm(args, manager)
        except TimeoutError as error:
            log.seek(0)
            sys.exit(f"{error}; throng said:\n{log.read()[-4000:]}")
        finally:
            manager.process.stdin.close()
            manager.process.wait(WAIT_S)
    seen = manager.figures() | {"overflows": overflows() - overflows_before}
    if args.json:
        print(json.dumps({"kept": args.kept, "proto": args.proto, "manager": seen, "storm": report}))
    else:
        show(args, seen, report)
    sys.exit(code)


def storm(args, manager):
    """Fills the server, restarts it when all are there, and waits until they are back."""
    command = [args.load, "storm", "--restart", "--json", "--proto", args.proto, "--connections", str(args.connections)]
    # As long as the stock client of Socket.IO waits for a connection, which may be accepted by the next process only.
    command += ["--timeout", "20", "--seconds", str(args.seconds), f"ws://127.0.0.1:{manager.port}"]
    load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in load.stderr:
        if "restart the server" in line:
            manager.order("restart")
            break
        print(line, end="", file=sys.stderr)
    said, errors = load.communicate()
    print(errors, end="", file=sys.stderr)
    if not said:
        sys.exit("the load has no report")
    return load.returncode, json.loads(said)


class Manager:
    def __init__(self, args, log):
        # Both processes are to have the same ports, and another's must not be in the way.
        self.port, control = (free_port() for _ in range(2))
        options = ["--timeout-start", str(WAIT_S), "--watchdog", "30", "--limit-nofile", str(args.limit_nofile)]
        if args.kept == "store":
            options += ["--fdstore-max", "64"]
        elif args.kept == "sockets":
            options += ["--listen", f"127.0.0.1:{self.port}", "--nonblocking"]
        settings = [f"server.listen=127.0.0.1:{self.port}", f"server.control=127.0.0.1:{control}", f"server.shards={args.shards}", *args.set]
        program = [args.throng, "serve", *(word for setting in settings for word in ("--set", setting))]
        command = [sys.executable, MANAGER, *options, "--", *program]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self.events = []
        self.changed = threading.Condition()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            with self.changed:
                self.events.append(json.loads(line))
                self.changed.notify_all()

    def order(self, order):
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()

    def wait_for(self, kind):
        with self.changed:
            if not self.changed.wait_for(lambda: any(event["event"] == kind for event in self.events), WAIT_S):
                raise TimeoutError(f"{kind} does not come")

    def figures(self):
        """The restart as the manager has seen it, in seconds."""
        with self.changed:
            events = list(self.events)
        restart = next((at for at, event in enumerate(events) if event.get("reason") == "restart"), len(events))
        # When each happened first from there on.
        at = {event["event"]: event["at_us"] for event in reversed(events[restart:])}
        between = lambda first, second: (at[second] - at[first]) / 1e6 if first in at and second in at else None
        count = lambda kind: sum(event["event"] == kind for event in events)
        return {
            "drain_seconds": between("stopping", "exited"),
            "gap_seconds": between("exited", "started"),
            "listeners_kept": max((len(event["names"]) for event in events if event["event"] == "spawned"), default=0),
            "timeouts": count("timeout"),
            "watchdog": count("watchdog"),
        }


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def overflows():
    """Handshakes that the kernel has put off since a listener's queue was full; the client tries again after a second. Of the whole machine."""
    with open("/proc/net/netstat") as netstat:
        names, values = [line.split() for line in netstat if line.startswith("TcpExt:")]
    return int(values[names.index("ListenOverflows")])


def show(args, seen, report):
    seconds = lambda key: "-" if report[key] is None else f"{report[key] / 1e6:.2f}"
    rows = [
        ("connections", f"{report['opened']:,} {args.proto}, listeners kept: {args.kept} ({seen['listeners_kept']})"),
        ("close codes", ", ".join(f"{code}: {count:,}" for code, count in report["closes_by_code"].items()) or "-"),
        ("hints", f"{report['hints']:,}, {report['hint_ms_max']:,} ms at the longest"),
        ("pace", f"{report['closes_per_second_max']:,} closed in any second, over {report['closing_seconds']} s"),
        ("refused, reset", f"{report['refused']:,}, {report['resets']:,}; by HTTP: {report['http_refusals'] or 0}"),
        ("tries", f"{report['tries']:,} for {report['returns']:,} returns, {report['returns_per_second_max']:,} back in any second"),
        ("away, each", f"{seconds('back_us_p50')} s at the median, {seconds('back_us_p99')} at 99 %, {seconds('back_us_max')} at the longest"),
        ("all back after", f"{report['seconds_until_back']} s; never back: {report['never_back']:,}, never closed: {report['never_closed']:,}"),
        ("manager", f"drain {seen['drain_seconds']} s, gap {seen['gap_seconds']} s, timeouts {seen['timeouts']}, watchdog {seen['watchdog']}"),
        ("queues", f"{seen['overflows']:,} handshakes put off by full ones, on the whole machine"),
        ("errors", report["errors_by_kind"] or "none"),
    ]
    for name, value in rows:
        print(f"{name:15} {value}")


if __name__ == "__main__":
    main()
