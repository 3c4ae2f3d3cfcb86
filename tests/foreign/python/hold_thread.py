"""Stops one thread of a process, and no other, as a debugger does: what a thread that hangs looks like from outside.

    hold_thread.py PID NAME

Says `held` when it stands still, and ends when the thread does.
"""

import ctypes
import os
import sys

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207  # ptrace(2)
WALL = 0x40000000  # threads as well

pid, name = sys.argv[1:]
threads = [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
thread = next(thread for thread in threads if open(f"/proc/{pid}/task/{thread}/comm").read().strip() == name)
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
for request in PTRACE_SEIZE, PTRACE_INTERRUPT:
    if libc.ptrace(request, thread, None, None) != 0:
        sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
os.waitpid(thread, WALL)
print("held", flush=True)
while not os.WIFEXITED(status := os.waitpid(thread, WALL)[1]) and not os.WIFSIGNALED(status):
    pass
