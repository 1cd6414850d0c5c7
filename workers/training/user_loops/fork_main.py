"""The process that every loop trial is forked off: torch is imported here, and nothing is run.

    python -m workers.training.user_loops.fork_main SOCKET

For each message, which brings four pipe ends (commands, events, output, status), it forks and says
the fork's id, or 0 if there can be none now. The fork runs the trial as `child` does. This process
reaps it and writes its exit code to `status`. The end of the socket is the end of this process and
of all its forks.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from pathlib import Path

from workers.training.user_loops.child import die_with_parent, serve

WARM = ("numpy", "torch")
ENDS = 4  # of pipes, that come with each message


def main(descriptor: int) -> None:
    """Fork until the socket ends."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Here, once: every fork shares these pages and pays none of the seconds.
    with contextlib.suppress(ImportError):
        for name in WARM:
            __import__(name)
    if _threads() != 1:
        sys.exit("imports have started threads, which a fork would not have")
    gc.collect()
    gc.freeze()  # what is here now is shared with every fork: nothing of it is ever garbage
    waking, woken = os.pipe()
    for end in (waking, woken, descriptor):
        os.set_inheritable(end, False)
    os.set_blocking(woken, False)
    # A handler that does nothing: without one the signal wakes nobody, with one that reaps it would
    # run between any two instructions. The byte in the pipe ends the poll below instead.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    with socket.socket(fileno=descriptor) as control:
        control.sendall(b"true")
        _serve(control, (waking, woken))


def _serve(control: socket.socket, wakeup: tuple[int, int]) -> None:
    status: dict[int, int] = {}
    waking, _ = wakeup
    poll = select.poll()  # `select` refuses descriptors from 1024 on, which a busy parent gives
    poll.register(control.fileno(), select.POLLIN)
    poll.register(waking, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if waking in ready:
            os.read(waking, 4096)
        _reap(status)
        if control.fileno() in ready:
            said, ends, _, _ = socket.recv_fds(control, 1, ENDS)
            if not said:
                return
            # With too many open files only some of the ends arrive.
            pid = _fork() if len(ends) == ENDS else None
            if pid == 0:
                _become_trial(control, wakeup, ends, status)
            if pid is not None:
                status[pid] = ends.pop()
            for end in ends:
                os.close(end)
            control.sendall(str(pid or 0).encode())


def _fork() -> int | None:
    """Fork; return None where the system has no room for it, which must not end the others."""
    with contextlib.suppress(OSError):
        return os.fork()
    return None


def _reap(status: dict[int, int]) -> None:
    """Say how those forks ended that have."""
    while status:
        pid, how = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        end = status.pop(pid)
        with contextlib.suppress(OSError):
            os.write(end, str(os.waitstatus_to_exitcode(how)).encode())
        os.close(end)


def _become_trial(
    control: socket.socket, wakeup: tuple[int, int], ends: list[int], status: dict[int, int]
) -> None:
    """Be the process of a trial, as if it had been started anew; never return."""
    die_with_parent()  # again: a fork does not inherit it
    os.setsid()  # its own group, so that what it starts can be ended with it
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control.close()
    commands, events, output, told = ends
    # Ends of the others' pipes, too: held here, their ends would never be seen.
    for end in (*wakeup, told, *status.values()):
        os.close(end)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    serve(commands, events)


def _threads() -> int:
    """Return how many threads this process has; 1 where the system does not tell."""
    with contextlib.suppress(OSError):
        return len(list(Path("/proc/self/task").iterdir()))
    return 1


if __name__ == "__main__":
    main(int(sys.argv[1]))
