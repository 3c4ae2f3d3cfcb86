"""An application that sends back what it gets, as a backend behind throng: arguments of any kind, acks, rooms, namespaces.

    python3 server.py [PORT]
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 4000


def connect(call):
    """Somebody wants to come in. Who may, is told what it said for itself."""
    if call["namespace"] not in ("/", "/custom"):
        return {"refuse": {"message": "not here", "data": {"namespace": call["namespace"]}}}
    handshake = call["handshake"]
    return {"emit": [{"event": "auth", "args": [handshake["auth"] or {}, handshake["query"].get("name")]}]}


def disconnected(call):
    return {"emit": [{"event": "left", "args": [call["connection"], call["reason"]], "room": "watchers"}]}


def event(call):
    """An event has come: with its arguments are its attachments, and the same goes for what is sent."""
    name, args, attachments = call["event"], call["args"], call["attachments"]
    if name == "message":
        return {"emit": [{"event": "message-back", "args": args, "attachments": attachments}]}
    if name == "message-with-ack":
        return {"ack": args, "attachments": attachments}
    if name == "join":
        return {"join": args[0], "emit": [{"event": "joined", "args": [call["connection"]], "rooms": args[0]}], "ack": ["ok"]}
    if name == "leave":
        return {"leave": args[0], "ack": ["ok"]}
    if name == "say":
        room, *said = args
        said = {"event": "said", "args": said, "attachments": attachments, "room": room}
        return {"emit": [said | {"except": [call["connection"]]}], "ack": ["ok"]}
    if name == "bye":
        return {"ack": ["bye"], "disconnect": True}
    if name == "close":
        return {"disconnect": {"code": 4100, "reason": "as you wish"}}
    return {"ack": [{"error": f"there is no event {name}"}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        handlers = {"/connect": connect, "/disconnected": disconnected, "/event": event}
        try:
            status, answer = 200, json.dumps(handlers[self.path](call)).encode()
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
