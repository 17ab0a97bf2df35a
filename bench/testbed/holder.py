"""Process 1 of a node: keeps its namespaces open, reaps orphans, does nothing else.

Run by the lab as `unshare ... python3 -I -S holder.py fclab-node DIR NAME`. The arguments are how a later run
finds it again: when it is killed the kernel kills every process of the node with it, and mounts, network
devices and loop devices follow. So nothing of a node can outlive this process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys


def main() -> None:
    """Name the node, say `ready` on stdout, let go of the caller's files, and reap for ever."""
    socket.sethostname(sys.argv[3])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    os.write(1, b"ready\n")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.chdir("/")
    while True:
        signal.sigwait({signal.SIGCHLD})
        reap()


def reap() -> None:
    """Collect every child that has ended, so that a node does not fill with zombies."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
