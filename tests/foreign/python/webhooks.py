"""A backend that takes webhooks: `webhooks.py PORT JOURNAL SECRET`. It checks signatures with its own code and writes what it has taken into
the journal before it says so. How it behaves is set by `PUT /as/BEHAVIOUR`; `GET /seen` tells what it has taken, batch by batch, each once.
"""

import hashlib
import hmac
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, journal, secret = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
TOLERANCE_S = 300

lock = threading.Lock()
batches = []
known = set()
state = {"as": "well", "refused": 0, "repeated": 0, "ahead_s": 0, "under_way": 0, "under_way_max": 0, "posts": 0, "last": None}


def remember(batch):
    if batch["id"] in known:
        state["repeated"] += 1
        return False
    known.add(batch["id"])
    batches.append(batch)
    return True


def is_genuine(header, body):
    try:
        fields = dict(part.split("=", 1) for part in (header or "").split(","))
        at_s, given = int(fields["t"]), fields["v1"]
    except (KeyError, ValueError):
        return False
    if abs(time.time() + state["ahead_s"] - at_s) > TOLERANCE_S:
        return False
    expected = hmac.new(secret, f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, given)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", kind="application/json", headers=()):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        with lock:
            seen = {"batches": batches, **state}
            body = json.dumps(seen).encode()
        self.answer(200, body)

    def do_PUT(self):
        behaviour = self.path.rsplit("/", 1)[1]
        with lock:
            state["ahead_s"] = 600 if behaviour == "ahead" else 0
            state["as"] = behaviour
        self.answer(204)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with lock:
            state["posts"] += 1
            state["under_way"] += 1
            state["under_way_max"] = max(state["under_way_max"], state["under_way"])
        try:
            self.take(body)
        finally:
            with lock:
                state["under_way"] -= 1

    def take(self, body):
        header = self.headers.get("Throng-Signature")
        if self.path != "/throng/webhooks" or self.headers["Content-Type"] != "application/json":
            return self.answer(404)
        behaviour = state["as"]
        if behaviour == "slow":
            time.sleep(0.2)
        elif behaviour in ("404", "500", "503", "429"):
            return self.answer(int(behaviour), b"<html>no</html>", "text/html")
        elif behaviour in ("429-2", "503-3600"):
            status, seconds = behaviour.split("-")
            return self.answer(int(status), headers=[("Retry-After", seconds)])
        elif behaviour in ("poison-400", "poison-500") and b'"poison"' in body:
            return self.answer(int(behaviour.split("-")[1]))
        elif behaviour == "302":
            return self.answer(302, headers=[("Location", f"http://127.0.0.1:{port}/elsewhere")])
        elif behaviour == "long":
            return self.answer(200, b"x" * 10_000_000, "text/plain")
        elif behaviour == "garbage":
            self.wfile.write(b"\x00\xff\x16\x03\x01 this is no HTTP\r\n\r\n" * 50)
            self.close_connection = True
            return None
        elif behaviour == "silent":
            self.close_connection = True
            return None
        if not is_genuine(header, body):
            with lock:
                state["refused"] += 1
            return self.answer(401)
        batch = json.loads(body)
        with lock:
            state["last"] = [header, body.decode()]
            if remember(batch):
                with open(journal, "a") as file:
                    file.write(json.dumps(batch) + "\n")
        if behaviour == "forgetful":
            # It has taken it, and nobody hears of that.
            self.close_connection = True
            return None
        if behaviour == "html":
            return self.answer(200, b"<!doctype html><p>Thanks!", "text/html")
        return self.answer(204)


try:
    with open(journal) as file:
        for line in file:
            remember(json.loads(line))
except FileNotFoundError:
    pass
# Who hangs up because an answer takes too long is no error.
ThreadingHTTPServer.handle_error = lambda *args: None
ThreadingHTTPServer.allow_reuse_address = True
ThreadingHTTPServer.daemon_threads = True
server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
print("listening", flush=True)
server.serve_forever()
