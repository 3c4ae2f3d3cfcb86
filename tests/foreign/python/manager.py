"""A stand-in for systemd's manager: runs one service as systemd does, as far as the service can notice, and is driven by a test.

    manager.py [OPTIONS] -- PROGRAM [ARGUMENT...]

Standard input takes commands, one a line: `start`, `stop`, `restart`, `reload`, `kill SIGNAL`, `status`, `quit`. At its end the service is
killed and the manager ends. Standard output has events, each a line of JSON with `event` and `at_us`, microseconds of CLOCK_MONOTONIC.
Standard error is the service's.

What it keeps to is in sd_notify(3), sd_listen_fds(3), systemd.service(5), systemd.exec(5) and systemd.io/FILE_DESCRIPTOR_STORE. What it leaves out:
cgroups (signals go to the main process alone), MAINPID=, NOTIFYACCESS=, ExecStartPre= and the like, and starting the service by traffic.
"""

import argparse
import array
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import time
import uuid

MESSAGE_BYTES_MAX = 4096  # longer datagrams are ignored
DESCRIPTORS_PER_MESSAGE_MAX = 253  # what a socket passes at once
SCM_CREDENTIALS = 2  # the module has no name for it
PR_SET_PDEATHSIG = 1
CLEAN_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE}  # of which a death counts as clean
LISTEN_FDS_START = 3
LIBC = ctypes.CDLL(None, use_errno=True)


def now_us():
    return time.monotonic_ns() // 1000


def tell(event, **fields):
    line = json.dumps({"event": event, "at_us": now_us(), **fields})
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # Nobody listens any more; the end of standard input comes next.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Stored:
    """A descriptor in the store."""

    def __init__(self, fd, name):
        self.fd, self.name = fd, name
        status = os.fstat(fd)
        # Tells sockets, files and pipes apart. Two eventfds look the same to it, which systemd, by kcmp(2), tells apart.
        self.what = (status.st_dev, status.st_ino)


class Manager:
    """The service and what is kept for it. Its state is one of dead, starting, running, reloading, stopping, waiting (to restart)."""

    def __init__(self, options):
        self.options = options
        self.state = "dead"
        self.pid = self.pidfd = None
        self.store = []
        # What ends the state, and what is missing when no WATCHDOG=1 comes; in microseconds of the clock.
        self.deadline_us = self.watchdog_us = None
        # What was ordered, stop or restart, and what has gone wrong, timeout or watchdog, while it is stopping.
        self.job = self.failure = None
        self.reload_begun_us = 0
        self.restarts = 0
        self.quitting = False
        self.input = b""
        self.epoll = select.epoll()
        self.epoll.register(0, select.EPOLLIN)
        self.directory = tempfile.TemporaryDirectory(prefix="throng-manager-")
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        name = uuid.uuid4().hex
        self.notify_name = f"@throng-notify-{name}" if options.abstract else f"{self.directory.name}/notify"
        self.notify.bind("\0" + self.notify_name[1:] if options.abstract else self.notify_name)
        self.epoll.register(self.notify, select.EPOLLIN)
        self.listeners = [self.listen(number, address) for number, address in enumerate(options.listen)]

    def listen(self, number, address):
        host, port = address.rsplit(":", 1)
        host = host.strip("[]")
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.options.reuseport:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if int(port) == 0 and number > 0 and self.options.reuseport:
            # The port that the kernel has found for the first.
            port = self.listeners_port
        listener.bind((host, int(port)))
        listener.listen(self.options.backlog)
        self.listeners_port = listener.getsockname()[1]
        names = self.options.fdname or ["throng.socket"]
        name = names[min(number, len(names) - 1)]
        shown = f"[{host}]" if ":" in host else host
        tell("listening", address=f"{shown}:{self.listeners_port}", name=name)
        return listener, name

    def run(self):
        if self.options.start:
            self.start()
        while not (self.quitting and self.state == "dead"):
            for fd, _ in self.epoll.poll(self.wait_s()):
                if fd == 0:
                    self.read_commands()
                elif fd == self.pidfd:
                    # What it said before it ended counts.
                    self.read_messages()
                    self.reap()
                elif fd == self.notify.fileno():
                    self.read_messages()
                else:
                    self.drop([stored for stored in self.store if stored.fd == fd], "hangup")
            self.look_at_the_clock()
        tell("ended")

    def wait_s(self):
        due = [due_us for due_us in (self.deadline_us, self.watchdog_us) if due_us is not None]
        return max(0, (min(due) - now_us()) / 1e6) if due else None

    # Commands

    def read_commands(self):
        chunk = os.read(0, 4096)
        self.input += chunk
        *lines, self.input = self.input.split(b"\n")
        for line in lines:
            self.obey(line.decode())
        if not chunk:
            # Who drives this is gone, and with it the patience.
            self.epoll.unregister(0)
            self.obey("quit")
            if self.pid is not None:
                self.send(signal.SIGKILL)

    def obey(self, command):
        match command.split():
            case ["start"] if self.state in ("dead", "waiting"):
                self.restarts = 0
                self.start()
            case ["stop"] if self.state == "waiting":
                self.end("stop")
            case ["restart"] if self.state in ("dead", "waiting"):
                self.start()
            case ["stop" | "restart" as job]:
                # A later order replaces an earlier one.
                self.job = job if self.state != "dead" else None
                if self.state not in ("dead", "stopping"):
                    self.stop(job)
            case ["reload"] if self.state == "running":
                self.reload_begun_us = now_us()
                self.send(signal.SIGHUP)
                if self.options.type == "notify-reload":
                    self.enter("reloading", self.options.timeout_start)
            case ["kill", name] if self.pid is not None and name in signal.Signals.__members__:
                self.send(signal.Signals[name])
            case ["status"]:
                names = [stored.name for stored in self.store]
                tell("status", state=self.state, pid=self.pid, stored=names, restarts=self.restarts)
            case ["quit"]:
                self.quitting = True
                self.obey("stop")
            case _:
                tell("bad_command", command=command, state=self.state)

    def send(self, number):
        os.kill(self.pid, number)
        tell("signalled", signal=signal.Signals(number).name)

    # The service's life

    def enter(self, state, timeout_s):
        self.state = state
        self.deadline_us = now_us() + int(timeout_s * 1e6) if timeout_s else None

    def start(self):
        for listener, _ in self.listeners:
            # Anew at each start, whatever the service has made of it. What is stored stays as it is.
            listener.setblocking(not self.options.nonblocking)
        descriptors = [(listener.fileno(), name) for listener, name in self.listeners]
        descriptors += [(stored.fd, stored.name) for stored in self.store]
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "INVOCATION_ID": uuid.uuid4().hex}
        environment["NOTIFY_SOCKET"] = self.notify_name
        if self.options.fdstore_max > 0 and not self.options.before_254:
            environment["FDSTORE"] = str(self.options.fdstore_max)
        if self.options.watchdog:
            environment["WATCHDOG_USEC"] = str(int(self.options.watchdog * 1e6))
        if descriptors:
            environment["LISTEN_FDS"] = str(len(descriptors))
            environment["LISTEN_FDNAMES"] = ":".join(name for _, name in descriptors)
        environment |= dict(pair.split("=", 1) for pair in self.options.env)
        self.job = self.failure = self.watchdog_us = None
        self.pid = os.fork()
        if self.pid == 0:
            self.become(environment, [fd for fd, _ in descriptors])
        self.pidfd = os.pidfd_open(self.pid)
        self.epoll.register(self.pidfd, select.EPOLLIN)
        self.enter("starting", self.options.timeout_start)
        tell("spawned", pid=self.pid, names=[name for _, name in descriptors])

    def become(self, environment, fds):
        """Turns this process, a child, into the service."""
        try:
            os.setsid()
            # A manager that is killed leaves nothing behind.
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            # Of systemd's services SIGPIPE is ignored, as it is of Python.
            for other in (signal.SIGINT, signal.SIGXFSZ):
                signal.signal(other, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            # Out of the way first, then to their places: those may be taken by others of them.
            first_free = LISTEN_FDS_START + len(fds)
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(first_free, 64)) for fd in fds]
            for place, fd in enumerate(high, LISTEN_FDS_START):
                os.dup2(fd, place, inheritable=True)
            os.closerange(first_free, 65_536)
            if self.options.limit_nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, (self.options.limit_nofile, self.options.limit_nofile))
            own = str(os.getpid())
            environment["SYSTEMD_EXEC_PID"] = own
            if fds:
                environment["LISTEN_PID"] = own
            if "WATCHDOG_USEC" in environment:
                environment["WATCHDOG_PID"] = own
            os.execvpe(self.options.program[0], self.options.program, environment)
        except OSError as error:
            os.write(2, f"manager.py: {self.options.program[0]}: {error}\n".encode())
        finally:
            os._exit(203)  # EXIT_EXEC of systemd.exec(5)

    def stop(self, reason, number=signal.SIGTERM):
        self.watchdog_us = None
        self.enter("stopping", self.options.timeout_stop)
        tell("stopping", reason=reason)
        if reason != "notify":
            self.send(number)
            # So that a process that is stopped takes note.
            os.kill(self.pid, signal.SIGCONT)

    def reap(self):
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        name = signal.Signals(-code).name if code < 0 else None
        tell("exited", pid=self.pid, code=None if code < 0 else code, signal=name)
        self.epoll.unregister(self.pidfd)
        os.close(self.pidfd)
        self.pid = self.pidfd = self.watchdog_us = None
        if self.job == "stop":
            self.end("stop")
        elif self.job == "restart":
            self.start()
        else:
            clean = self.failure is None and (code == 0 or -code in CLEAN_SIGNALS)
            # A start that ends before READY=1 has failed, however it ended.
            clean = clean and self.state != "starting"
            wanted = self.options.restart == "always" or self.options.restart == "on-failure" and not clean
            if not wanted:
                self.end("clean" if clean else "failed")
            elif self.restarts >= self.options.restarts_max:
                self.end("start_limit")
            else:
                self.restarts += 1
                self.enter("waiting", max(self.options.restart_pause, 1e-6))
                tell("restarting", restarts=self.restarts)

    def end(self, result):
        self.state, self.deadline_us, self.job = "dead", None, None
        self.drop(list(self.store), "stop")
        tell("stopped", result=result)

    def look_at_the_clock(self):
        now = now_us()
        if self.watchdog_us is not None and now >= self.watchdog_us:
            self.abort(requested=False)
        if self.deadline_us is None or now < self.deadline_us:
            return
        self.deadline_us = None
        if self.state == "waiting":
            self.start()
            return
        tell("timeout", state=self.state)
        if self.state == "starting":
            self.failure = "timeout"
            self.stop("timeout")
        elif self.state == "reloading":
            # The service goes on as it was.
            self.state = "running"
        elif self.state == "stopping":
            self.failure = self.failure or "timeout"
            self.send(signal.SIGKILL)

    def abort(self, requested):
        self.failure = "watchdog"
        tell("watchdog", requested=requested)
        self.stop("watchdog", signal.SIGABRT)

    # What it says

    def read_messages(self):
        ancillary_bytes = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * DESCRIPTORS_PER_MESSAGE_MAX)
        while True:
            try:
                message, ancillary, flags, _ = self.notify.recvmsg(MESSAGE_BYTES_MAX, ancillary_bytes, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            fds, pid, uid = array.array("i"), None, None
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                elif (level, kind) == (socket.SOL_SOCKET, SCM_CREDENTIALS):
                    pid, uid, _ = struct.unpack("3i", data)
            kept = self.hear(message, flags, list(fds), pid, uid)
            for fd in fds:
                if fd not in kept:
                    os.close(fd)

    def hear(self, message, flags, fds, pid, uid):
        """Takes in one datagram; returns which of its descriptors are kept."""
        text = message.removesuffix(b"\0").decode(errors="replace")
        pairs = [line.split("=", 1) for line in text.split("\n") if "=" in line]
        said = {key: value for key, value in reversed(pairs)}
        refused = None
        if flags & socket.MSG_TRUNC:
            refused = "too_long"
        elif flags & socket.MSG_CTRUNC or pid is None:
            refused = "ancillary"
        elif "\0" in text:
            refused = "nul"
        elif said.get("BARRIER") == "1":
            # Its one descriptor is closed, which is the answer.
            refused = None if len(pairs) == 1 and len(fds) == 1 else "barrier"
            tell("notify", pid=pid, uid=uid, said=said, descriptors=len(fds), refused=refused)
            return []
        elif self.options.notify_access == "main" and pid != self.pid:
            refused = "not_main"
        tell("notify", pid=pid, uid=uid, said=said, descriptors=len(fds), refused=refused)
        return [] if refused else self.heed(said, fds)

    def heed(self, said, fds):
        state = self.state
        # STOPPING wins over READY, which wins over RELOADING.
        if said.get("STOPPING") == "1":
            if state in ("running", "reloading"):
                self.stop("notify")
        elif said.get("READY") == "1":
            if state == "starting":
                self.enter("running", None)
                self.feed_watchdog()
                tell("started")
            elif state == "reloading" and (self.options.type == "notify" or self.reload_begun_us is None):
                self.reloaded()
            elif state == "reloading" and said.get("RELOADING") == "1" and self.is_answer(said):
                self.reloaded()
        elif said.get("RELOADING") == "1":
            if state == "running":
                self.reload_begun_us = None
                self.enter("reloading", self.options.timeout_start)
                tell("reloading")
            elif state == "reloading" and self.reload_begun_us is not None and self.is_answer(said):
                self.reload_begun_us = None
                tell("reloading")
        if (usec := number(said.get("EXTEND_TIMEOUT_USEC"))) is not None:
            # Both timers reach so far at the least; neither is cut short.
            until_us = now_us() + usec
            self.deadline_us = self.deadline_us and max(self.deadline_us, until_us)
            self.watchdog_us = self.watchdog_us and max(self.watchdog_us, until_us)
        if said.get("WATCHDOG") == "1":
            # In any state: who says it while stopping has to go on saying it.
            self.feed_watchdog()
        elif said.get("WATCHDOG") == "trigger" and self.pid is not None:
            self.abort(requested=True)
        if (usec := number(said.get("WATCHDOG_USEC"))) is not None:
            self.options.watchdog = usec / 1e6
            self.feed_watchdog()
        name = said.get("FDNAME")
        if said.get("FDSTOREREMOVE") == "1":
            self.drop([stored for stored in self.store if stored.name == name], "asked")
        elif said.get("FDSTORE") == "1":
            return self.keep(fds, name if is_name(name) else "stored", said.get("FDPOLL") != "0")
        return []

    def feed_watchdog(self):
        self.watchdog_us = now_us() + int(self.options.watchdog * 1e6) if self.options.watchdog else None

    def is_answer(self, said):
        """True when a service says that it has begun to reload after it was told to, not before."""
        at_us = number(said.get("MONOTONIC_USEC"))
        return at_us is not None and at_us >= self.reload_begun_us

    def reloaded(self):
        self.enter("running", None)
        tell("reloaded")

    # The store

    def keep(self, fds, name, polls):
        kept = []
        for fd in fds:
            if len(self.store) >= self.options.fdstore_max:
                tell("store_full", name=name)
                break
            stored = Stored(fd, name)
            if any(other.what == stored.what for other in self.store):
                continue
            if polls:
                try:
                    self.epoll.register(fd, 0)  # no more than a hang-up or an error
                except PermissionError:
                    pass  # of files there is nothing to wait for
            self.store.insert(0, stored)
            kept.append(fd)
            tell("stored", name=name, polls=polls)
        return kept

    def drop(self, dropped, reason):
        for stored in dropped:
            try:
                self.epoll.unregister(stored.fd)
            except FileNotFoundError:
                pass  # with FDPOLL=0 it never was in there, nor is a file
            os.close(stored.fd)
            self.store.remove(stored)
            tell("removed", name=stored.name, reason=reason)


def is_name(name):
    return bool(name) and len(name) <= 255 and name.isascii() and name.isprintable() and ":" not in name


def number(text):
    return int(text) if text and text.isascii() and text.isdigit() else None


def main():
    parser = argparse.ArgumentParser(description="A stand-in for systemd's manager, for tests.", allow_abbrev=False)
    parser.add_argument("--start", action="store_true", help="start the service at once")
    parser.add_argument("--type", choices=["notify", "notify-reload"], default="notify", help="what `reload` waits for")
    parser.add_argument("--notify-access", choices=["main", "all"], default="main")
    parser.add_argument("--abstract", action="store_true", help="$NOTIFY_SOCKET is an abstract name, not a path")
    parser.add_argument("--timeout-start", type=float, default=90, metavar="SECONDS")
    parser.add_argument("--timeout-stop", type=float, default=90, metavar="SECONDS")
    parser.add_argument("--watchdog", type=float, default=0, metavar="SECONDS", help="0: off")
    parser.add_argument("--restart", choices=["no", "on-failure", "always"], default="no")
    parser.add_argument("--restart-pause", type=float, default=0.1, metavar="SECONDS")
    parser.add_argument("--restarts-max", type=int, default=5, metavar="COUNT", help="without a command in between")
    parser.add_argument("--fdstore-max", type=int, default=0, metavar="COUNT")
    parser.add_argument("--before-254", action="store_true", help="no $FDSTORE, as of systemd before version 254")
    parser.add_argument("--listen", action="append", default=[], metavar="ADDRESS:PORT")
    parser.add_argument("--fdname", action="append", metavar="NAME", help="of the listener in this place, and those after it")
    parser.add_argument("--backlog", type=int, default=4096)
    parser.add_argument("--reuseport", action="store_true")
    parser.add_argument("--nonblocking", action="store_true", help="listeners do not block, as with NonBlocking=yes")
    parser.add_argument("--limit-nofile", type=int, metavar="COUNT")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("program", nargs="+")
    # A terminal's Ctrl-C is for who drives this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Manager(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
