"""The server side of the chat in Socket.IO's tutorial (https://socket.io/docs/v4/tutorial), as a backend behind throng.

    python3 server.py [PORT [FILE]]

Messages are kept in FILE, chat.db if none is named.
"""

import json
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
FILE = sys.argv[2] if len(sys.argv) > 2 else "chat.db"

lock = Lock()
db = sqlite3.connect(FILE, check_same_thread=False, isolation_level=None)
db.execute("CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, client_offset TEXT UNIQUE, content TEXT)")


def connected(call):
    """Somebody is here: it gets what was said since it was last here."""
    if call["recovered"]:
        return {}
    auth = call["handshake"]["auth"] or {}
    with lock:
        missed = db.execute(
            "SELECT content, id FROM messages WHERE id > ? ORDER BY id", [auth.get("serverOffset") or 0]
        ).fetchall()
    return {"emit": [{"event": "chat message", "args": message} for message in missed[-1000:]]}


def event(call):
    """Somebody has said something: it is kept, everybody gets it, and it is acknowledged."""
    content, client_offset = call["args"]
    try:
        with lock:
            offset = db.execute(
                "INSERT INTO messages (content, client_offset) VALUES (?, ?)", [content, client_offset]
            ).lastrowid
    except sqlite3.IntegrityError:
        return {}  # it came before, and its ack was lost
    return {"emit": [{"event": "chat message", "args": [content, offset], "all": True}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            status, answer = 200, json.dumps({"/connected": connected, "/event": event}[self.path](call)).encode()
        except Exception as error:
            # Clients say anything. 400 concerns this one alone; no answer would count as a backend that fails.
            print(repr(error), file=sys.stderr)
            status, answer = 400, b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
