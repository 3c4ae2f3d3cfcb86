"""A service that speaks to its manager through systemd's own library, libsystemd: `service.py STEP...` takes these steps, one after the other:

    VARIABLE=VALUE,…   says so; `NOW` in a value stands for the clock's microseconds
    passed             says as STATUS which descriptors were passed, as the library finds them, and whether it is watched
    store NAME         stores a listening socket by this name; store-pair one end of a socket pair, whose other end `hang-up` closes; a
                       third word goes into the message as well
    other VARIABLE=…   says so as another process
    deaf               does not end by SIGTERM any more
    sleep SECONDS, wait
"""

import ctypes
import os
import signal
import socket
import sys
import time

LIBRARY = ctypes.CDLL("libsystemd.so.0")
kept = []
ends = []


def notify(text, fds=()):
    text = text.replace(",", "\n").replace("NOW", str(time.monotonic_ns() // 1000))
    numbers = (ctypes.c_int * len(fds))(*fds)
    if LIBRARY.sd_pid_notify_with_fds(0, 0, text.encode(), numbers, len(fds)) <= 0:
        sys.exit("the manager was not told")


def passed():
    names = ctypes.POINTER(ctypes.c_char_p)()
    count = LIBRARY.sd_listen_fds_with_names(0, ctypes.byref(names))
    shown = []
    for number in range(count):
        fd = 3 + number
        blocks = "blocking" if os.get_blocking(fd) else "nonblocking"
        listens = LIBRARY.sd_is_socket(fd, socket.AF_UNSPEC, socket.SOCK_STREAM, 1) > 0
        shown.append(f"{names[number].decode()}/{'listening' if listens else 'other'}/{blocks}")
    usec = ctypes.c_uint64()
    watched = LIBRARY.sd_watchdog_enabled(0, ctypes.byref(usec)) > 0
    store = os.environ.get("FDSTORE", "none")
    return f"{' '.join(shown)} watchdog {usec.value if watched else 'none'} store {store}"


def step(words):
    match words:
        case ["passed"]:
            notify(f"STATUS={passed()}")
        case ["store", name, *more]:
            listener = socket.create_server(("127.0.0.1", 0))
            listener.setblocking(False)
            kept.append(listener)
            notify(",".join([f"FDSTORE=1,FDNAME={name}", *more]), [listener.fileno()])
        case ["store-pair", name, *more]:
            one, other = socket.socketpair()
            kept.append(one)
            ends.append(other)
            notify(",".join([f"FDSTORE=1,FDNAME={name}", *more]), [one.fileno()])
        case ["hang-up"]:
            ends.pop().close()
        case ["other", text]:
            pid = os.fork()
            if pid == 0:
                notify(text)
                os._exit(0)
            os.waitpid(pid, 0)
        case ["deaf"]:
            signal.signal(signal.SIGTERM, lambda *_: None)
        case ["sleep", seconds]:
            until = time.monotonic() + float(seconds)
            while (left := until - time.monotonic()) > 0:
                time.sleep(left)
        case ["wait"]:
            while True:
                time.sleep(3600)
        case ["exit", code]:
            os._exit(int(code))
        case [text]:
            notify(text)


# A signal of its own sort, so that a test can have it go on: what waits for it ends.
signal.signal(signal.SIGHUP, lambda *_: notify("RELOADING=1,MONOTONIC_USEC=NOW") or notify("READY=1"))
for argument in sys.argv[1:]:
    step(argument.split(" "))
