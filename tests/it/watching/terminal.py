"""Runs a program in a terminal of 80 columns and 24 rows, waits until it shows some words, ends it, and says what became of the terminal.

  terminal.py q|term WORDS PROGRAM ARGS…      WORDS separated by |
"""

import base64, fcntl, json, os, pty, re, select, signal, struct, subprocess, sys, termios, time

how, words, command = sys.argv[1], sys.argv[2].split("|"), sys.argv[3:]
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
before = termios.tcgetattr(slave)
environment = dict(os.environ, TERM="xterm-256color")
child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True)
said = b""
raw_mode = False


def read(until, done):
    global said
    while time.monotonic() < until and not done():
        ready, _, _ = select.select([master], [], [], 0.05)
        if ready:
            said += os.read(master, 65536)


def plain():
    """What was written, without what moves the cursor or colours, spaces in its place."""
    return re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b" ", said).decode("utf-8", "replace")


end = time.monotonic() + 20
read(end, lambda: all(word in plain() for word in words) or child.poll() is not None)
missing = [word for word in words if word not in plain()]
raw_mode = termios.tcgetattr(slave)[3] != before[3]
if how == "q":
    os.write(master, b"s?hq")
else:
    child.send_signal(signal.SIGTERM)
read(time.monotonic() + 10, lambda: child.poll() is not None)
if child.poll() is None:
    child.kill()
read(time.monotonic() + 0.3, lambda: False)
print(
    json.dumps(
        {
            "missing": missing,
            "status": child.wait(),
            "was_raw": raw_mode,
            "is_as_before": termios.tcgetattr(slave) == before,
            "said": base64.b64encode(said).decode(),
        }
    )
)
