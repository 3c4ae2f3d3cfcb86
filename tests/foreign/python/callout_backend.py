"""A backend that says who clients are: `POST /authenticate`, signed with the secret of the first argument.

    python callout_backend.py SECRET

It prints its port. What it does is in what it is asked: of the token `user:NAME` it says NAME; others are below. `POST /mode` sets how it
answers from then on; `GET /asked` lists what it was asked.
"""

import hashlib
import hmac
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = sys.argv[1].encode()
asked, mode = [], "good"
lock = threading.Lock()


def is_signed(header, body):
    parts = dict(part.split("=", 1) for part in header.split(","))
    if abs(time.time() - int(parts["t"])) > 60:
        return False
    expected = hmac.new(SECRET, parts["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts["v1"])


def answer(question):
    """The status and the body."""
    credential = question.get("token") or question.get("cookie") or ""
    if not credential and isinstance(question.get("auth"), dict):
        credential = question["auth"].get("password", "")
    kind, _, name = credential.partition(":")
    if credential.startswith("session="):
        kind, name = "user", credential.removeprefix("session=")
    if kind == "user":
        return 200, {"user": name, "rooms": [f"inbox-{name}"], "permissions": ["join:auction-*", "join:inbox-*"], "more": [1]}
    if kind == "brief":
        return 200, {"user": name, "expires_in_s": 1}
    if kind == "number":
        return 200, {"user": int(name)}
    if kind == "nobody":
        return 200, {"user": None}
    if kind == "banned":
        return 200, {"refuse": f"{name} is banned: “hate”"}
    if kind == "forbidden":
        return 403, {}
    if kind == "wrong":
        return 200, {"user": "7", "rooms": "not a list"}
    return 401, {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with lock:
            self.reply(200, json.dumps(asked).encode())

    def do_POST(self):
        global mode
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/mode":
            mode = body.decode()
            return self.reply(200, b"{}")
        if self.path != "/throng/authenticate" or not is_signed(self.headers["Throng-Signature"], body):
            return self.reply(404, b"{}")
        question = json.loads(body)
        with lock:
            asked.append(question)
        if mode == "slow":
            time.sleep(1)
        elif mode == "html":
            return self.reply(200, b"<html>It works!</html>", "text/html")
        elif mode == "long":
            return self.reply(200, b'{"user":"' + b"x" * (10 << 20) + b'"}')
        elif mode == "garbage":
            self.close_connection = True
            return self.wfile.write(bytes(range(256)) * 20)
        elif mode == "redirect":
            return self.reply(302, b"", location="/elsewhere")
        elif mode == "once" and (mode := "good"):
            return self.reply(503, b"")
        elif mode != "good":
            return self.reply(int(mode), b"{}")
        status, said = answer(question)
        self.reply(status, json.dumps(said).encode())

    def reply(self, status, body, content_type="application/json", location=None):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_):
        """Clients that hang up are no news."""


server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
