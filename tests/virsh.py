"""A program that stands in for virsh, and a guest that obeys it.  libvirt is on none of the machines that tests run on.

Everything is in one directory: the program `virsh`, `calls` (one line a call, without the connection), `state` (of the
guest, as domstate says it), `frozen` (while its file systems are), `source` (path of the disk, for blockcopy), and
`behave`, one line of JSON: {command: "fail" | "hang" | "late" | "vanish"}.  "late" does it and then fails; "vanish"
kills the process that called.  While there is a file `obeys`, a step waits until the guest has seen it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Dict, List

PROGRAM = r'''#!%(python)s -IS
import json, os, shutil, signal, sys, time
top = os.path.dirname(os.path.realpath(__file__))
path = lambda name: os.path.join(top, name)
read = lambda name: open(path(name)).read().strip()
def put(name, text):
    with open(path(name + ".new"), "w") as file:
        file.write(text)
    os.rename(path(name + ".new"), path(name))
assert sys.argv[1] == "--connect", sys.argv
uri, command, domain = sys.argv[2:5]
with open(path("calls"), "a") as calls:
    calls.write(" ".join(sys.argv[3:]) + "\n")
how = json.loads(read("behave")).get(command, "")
if uri != "qemu:///system" or domain != "one-42":
    sys.exit("error: failed to get domain '%%s'" %% domain)
if how == "hang":
    time.sleep(600)
if how == "fail":
    sys.exit("error: %%s is not what this test wants" %% command)
state = read("state")
def obeyed(state):
    put("state", state)
    end = time.time() + 10
    while os.path.exists(path("obeys")) and read("obeys") != state and time.time() < end:
        time.sleep(0.002)
if command == "domstate":
    print(state + "\n")
elif command == "suspend":
    if state != "running":
        sys.exit("error: domain is not running")
    obeyed("paused")
elif command == "resume":
    if state != "paused":
        sys.exit("error: domain is not paused")
    obeyed("running")
elif command == "domfsfreeze":
    put("frozen", "yes")
elif command == "domfsthaw":
    if state != "running":
        sys.exit("error: guest agent is not responding")
    if os.path.exists(path("frozen")):  # of what is not frozen, a real one thaws nothing, and says so
        os.unlink(path("frozen"))
elif command == "blockcopy":
    target, to, *rest = sys.argv[5:]
    assert rest == ["--wait", "--finish"] and target == "vda", sys.argv
    obeyed("paused")  # a real one mirrors writes; here the guest stands still for it
    shutil.copyfile(read("source"), to)
    obeyed("running")
elif command == "blockjob":
    assert sys.argv[5:] == ["vda", "--abort"], sys.argv
else:
    sys.exit("error: unknown command: '%%s'" %% command)
if how == "vanish":
    os.kill(os.getppid(), signal.SIGKILL)
if how == "late":
    sys.exit("error: %%s took too long" %% command)
'''


class Virsh:
    """The program in *directory*, and the guest `one-42` whose disk is *source*, as the program reaches it."""

    def __init__(self, directory: Path, source: str) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.put("virsh", PROGRAM % {"python": os.path.realpath(sys.executable)})
        (directory / "virsh").chmod(0o755)
        self.put("source", source)
        self.put("calls", "")
        self.state = "running"
        self.behave({})
        directory.chmod(0o777)
        (directory / "calls").chmod(0o666)

    def put(self, name: str, text: str) -> None:
        """Write a file in one step."""
        scratch = self.directory / f"{name}.test"
        scratch.write_text(text)
        scratch.rename(self.directory / name)

    def behave(self, how: Dict[str, str]) -> None:
        """Have commands do otherwise."""
        self.put("behave", json.dumps(how))

    @property
    def state(self) -> str:
        """The guest's state."""
        return (self.directory / "state").read_text().strip()

    @state.setter
    def state(self, value: str) -> None:
        self.put("state", value)

    @property
    def frozen(self) -> bool:
        """Whether the guest's file systems are."""
        return (self.directory / "frozen").exists()

    @property
    def calls(self) -> List[str]:
        """What virsh was called with."""
        return (self.directory / "calls").read_text().splitlines()

    @property
    def commands(self) -> List[str]:
        """The first word of each call, without the questions."""
        return [line.split()[0] for line in self.calls if not line.startswith("domstate")]

    def forget(self) -> None:
        """Begin counting anew."""
        (self.directory / "calls").write_text("")

    def undisturbed(self) -> bool:
        """Whether the guest runs and nothing of it is frozen."""
        return self.state == "running" and not self.frozen

    def wait(self, bound: float = 120.0) -> None:
        """Wait until the guest runs again; `AssertionError` if it does not."""
        self._await(self.undisturbed, bound)

    def wait_for_call(self, command: str, bound: float = 120.0) -> None:
        """Wait until virsh was called with a command; `AssertionError` if it is not."""
        self._await(lambda: command in self.commands, bound)

    def _await(self, true: Callable[[], bool], bound: float) -> None:
        end = time.monotonic() + bound
        while not true():
            assert time.monotonic() < end, f"the guest is {self.state}, frozen: {self.frozen}; {self.calls}"
            time.sleep(0.01)


class Guest:
    """A thread that writes into a disk while its guest runs: counters, in order, into the first and the last block.

    A copy from one moment has the same in both, or one more in the first.
    """

    def __init__(self, virsh: Virsh, disk: Path) -> None:
        self._virsh, self._disk = virsh, disk
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.written = 0

    def __enter__(self) -> Guest:
        self._virsh.put("obeys", "running")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(20)
        (self._virsh.directory / "obeys").unlink()

    def _run(self) -> None:
        fd = os.open(self._disk, os.O_RDWR)
        last = os.fstat(fd).st_size - 4096
        seen = "running"
        while not self._end.is_set():
            state = self._virsh.state
            if state != seen:
                seen = state
                self._virsh.put("obeys", state)
            if state != "running":
                time.sleep(0.001)
                continue
            self.written += 1
            block = self.written.to_bytes(8, "big") * 512
            os.pwrite(fd, block, 0)
            os.pwrite(fd, block, last)
        os.close(fd)


def is_of_one_moment(copy: Path) -> bool:
    """Whether a copy of a guest's disk could have been all of it at one moment."""
    with copy.open("rb") as file:
        first = file.read(4096)
        file.seek(-4096, os.SEEK_END)
        last = file.read(4096)
    numbers = {int.from_bytes(block[i : i + 8], "big") for block in (first, last) for i in range(0, 4096, 8)}
    one, other = int.from_bytes(first[:8], "big"), int.from_bytes(last[:8], "big")
    return numbers == {one, other} and one - other in (0, 1)
