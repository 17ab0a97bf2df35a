"""Arrows: every change that the product makes to a file system has a name, and the process can be stopped there.

All of the product's changes go through `core.files.Files`, so one subclass sees them all.  A name reads like
"agent.rename disk staging -> disk"; with the number of its occurrence in one process it is a crash point.  The wrapper
writes down what it sees (a discovery run), and stops the process before or after the one call that a plan names.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import signal
import struct
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from tm_fastcopy.core.files import Files

SHUTDOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, the same as EXT4_IOC_SHUTDOWN

_PART = r"\.fastcopy\.part"
_TREE = r"/\.disk\.[0-9]+\.snap"
_KINDS = [
    (r"/#[0-9]+", "unnamed file"),
    (r"/\.fastcopy\.token\.[0-9a-f]{32}", "token"),
    (r"/ds/[0-9]+/\.[0-9]+\.fastcopy\.(part|moved|old)/\.fastcopy\.receipt", "staged note"),
    (r"/ds/[0-9]+/\.[0-9]+" + _PART + r"/.+", "staged file"),
    (r"/ds/[0-9]+/\.[0-9]+" + _PART, "staged directory"),
    (r"/ds/[0-9]+/\.[0-9]+\.fastcopy\.moved/.+", "departed file"),
    (r"/ds/[0-9]+/\.[0-9]+\.fastcopy\.moved", "departed directory"),
    (r"/ds/[0-9]+/\.[0-9]+\.fastcopy\.old/.+", "old file"),
    (r"/ds/[0-9]+/\.[0-9]+\.fastcopy\.old", "old directory"),
    (r"/ds/[0-9]+/[0-9]+/\.fastcopy\.receipt", "note"),
    (_TREE + _PART + r"/\.0" + _PART, "disk staging"),
    (_TREE + _PART + r"/\.[^/]*" + _PART, "staged tree's file staging"),
    (_TREE + _PART + r"/[^/]*", "staged tree's file"),
    (_TREE + _PART, "staged tree"),
    (_TREE + r"\.fastcopy\.old/[^/]*", "old tree's file"),
    (_TREE + r"\.fastcopy\.old", "old tree"),
    (r"/disk\.[0-9]+\.snap/\.[^/]*" + _PART, "tree's file staging"),
    (r"/disk\.[0-9]+\.snap/[^/]*", "tree's file"),
    (r"/disk\.[0-9]+\.snap", "tree"),
    (r"/\.disk\.[0-9]+" + _PART, "disk staging"),
    (r"/disk\.[0-9]+", "disk"),
    (r"/cache/\.[0-9a-f]{32}\.img" + _PART, "cache image staging"),
    (r"/cache/[0-9a-f]{64}\.img", "cache image"),
    (r"/cache/\.[0-9a-f]{64}\.manifest\.[0-9]+" + _PART, "manifest staging"),
    (r"/cache/[0-9a-f]{64}\.manifest", "manifest"),
    (r"/cache/\.[0-9a-f]{32}\.source\.[0-9]+" + _PART, "source key staging"),
    (r"/cache/[0-9a-f]{32}\.source", "source key"),
    (r"/cache/[0-9a-f]{32}\.kept", "kept note"),
    (r"/cache/[^/]*\.lease", "lease"),
    (r"/cache/\.probe[^/]*", "probe"),
    (r"/\.fastcopy/cache", "cache"),
    (r"/\.fastcopy", "cache root"),
    (r"/\.\.monitor" + _PART, "monitor staging"),
    (r"/\.monitor", "monitor"),
    (r"/ds/[0-9]+/[0-9]+/(tpm(/state)?|vm\.xml|empty)", "VM's file"),  # of `Site.put_household`
    (r"/ds/[0-9]+/[0-9]+", "VM directory"),
    (r"/ds/[0-9]+", "system datastore"),
    (r"/ds", "datastores"),
    (r"/manifests/\.[^/]*", "remembered manifest staging"),
    (r"/manifests/[0-9a-f]{32}", "remembered manifest"),
    (r"/(state|var|fastcopy|manifests)", "state"),
    (r"/images/\.[^/]*\.snap" + _PART + r"/\.[^/]*" + _PART, "image's staged tree's file staging"),
    (r"/images/\.[^/]*\.snap" + _PART + r"/[^/]*", "image's staged tree's file"),
    (r"/images/\.[^/]*\.snap" + _PART, "image's staged tree"),
    (r"/images/\.[^/]*\.snap\.fastcopy\.old/[^/]*", "image's old tree's file"),
    (r"/images/\.[^/]*\.snap\.fastcopy\.old", "image's old tree"),
    (r"/images/[^/]*\.snap/\.[^/]*" + _PART, "image staging"),
    (r"/images/[^/]*\.snap/[^/]*", "image"),
    (r"/images/[^/]*\.snap", "image datastore"),
    (r"/images/\.[^/]*" + _PART, "image staging"),
    (r"/images/[^/]*", "image"),
    (r"/images", "image datastore"),
]


def kind_of(path: str) -> str:
    """What a path is in the words of docs/DESIGN.md."""
    path = path.replace(" (deleted)", "")
    for pattern, kind in _KINDS:
        if re.search(pattern + "$", path):
            return kind
    raise AssertionError(f"the product changed {path}, which the crash walk has no name for: add one to _KINDS")


class Arrow(NamedTuple):
    """One crash point: who does what, for which time in that process."""

    role: str
    change: str
    occurrence: int

    @property
    def method(self) -> str:
        """The method of `Files`."""
        return self.change.split(" ")[0]

    def __str__(self) -> str:
        return f"{self.role}.{self.change} #{self.occurrence}"


class Plan(NamedTuple):
    """What is to happen at an arrow.

    *when* is "before" or "after".  *how* is "kill"; "cut", which shuts the file system *mount* down with *flags*
    first; "fail", where the call fails with the error number *flags* instead; or "stop", which waits until the file
    *hit* is gone again.  *hit* says that it has happened, and in which process: it happens once.
    """

    arrow: Arrow
    when: str
    how: str
    hit: str
    mount: str = ""
    flags: int = 0

    def encode(self) -> Dict[str, Any]:
        """As JSON can carry it."""
        return {**self._asdict(), "arrow": list(self.arrow)}

    @classmethod
    def decode(cls, values: Dict[str, Any]) -> Plan:
        """Undo `encode`."""
        return cls(**{**values, "arrow": Arrow(*values["arrow"])})


class Line(NamedTuple):
    """One change as it was recorded: process, role, method of `Files`, kinds and paths of what it changed."""

    pid: int
    role: str
    method: str
    change: str
    paths: List[str]
    done: bool


class RecordingFiles(Files):
    """`Files` that writes down every change, after it was made, and stops where *plan* says.  *lacking* are methods
    that this file system does not have.
    """

    def __init__(
        self, role: str, log: Optional[str], plan: Optional[Plan] = None, lacking: Sequence[str] = ()
    ) -> None:
        self._role, self._plan, self._depth, self._lacking = role, plan, 0, lacking
        self._seen: Dict[str, int] = {}
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if log else -1

    def step(self, method: str, paths: List[str], call: Callable[[], Any]) -> Any:
        """Make one change.  What a method does through another of this class belongs to the outer one."""
        if self._depth:
            return call()
        change = f"{method} {' -> '.join(map(kind_of, paths))}"
        self._seen[change] = self._seen.get(change, 0) + 1
        here = Arrow(self._role, change, self._seen[change])
        self._stop_at(here, "before")
        self._depth += 1
        result: Any = False
        try:
            if method == "move" and method in self._lacking:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            result = method not in self._lacking and call()
            return result
        finally:
            self._depth -= 1
            if self._log >= 0:
                line = Line(os.getpid(), self._role, method, change, paths, result is not False)
                os.write(self._log, (json.dumps(line) + "\n").encode())
            self._stop_at(here, "after")

    def _stop_at(self, here: Arrow, when: str) -> None:
        plan = self._plan
        if plan is None or here != plan.arrow or when != plan.when:
            return
        try:
            fd = os.open(plan.hit, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return
        os.write(fd, b"%d\n" % os.getpid())
        os.close(fd)
        if plan.how == "fail":
            raise OSError(plan.flags, os.strerror(plan.flags))
        if plan.how == "stop":
            self._plan = None
            while os.path.exists(plan.hit):
                time.sleep(0.01)
            return
        if plan.how == "cut":
            cut_power(plan.mount, plan.flags)
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def cut_power(mount: str, flags: int) -> None:
    """Shut the file system of *mount* down as it is on the device."""
    fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", flags))
    finally:
        os.close(fd)


def path_of(fd: int) -> str:
    """The path of an open file, as it is called now."""
    return os.readlink(f"/proc/self/fd/{fd}")


def _by_fd(method: str) -> Callable[..., Any]:
    plain = getattr(Files, method)

    def changed(self: RecordingFiles, fd: int, *args: Any, **words: Any) -> Any:
        return self.step(method, [path_of(fd)], lambda: plain(self, fd, *args, **words))

    return changed


def _by_names(method: str, names: int) -> Callable[..., Any]:
    plain = getattr(Files, method)

    def changed(self: RecordingFiles, directory: int, *args: Any, **words: Any) -> Any:
        paths = [f"{path_of(directory)}/{name}" for name in args[:names]]
        return self.step(method, paths, lambda: plain(self, directory, *args, **words))

    return changed


def _by_two_directories(method: str) -> Callable[..., Any]:
    plain = getattr(Files, method)

    def changed(self: RecordingFiles, directory: int, name: str, target: int, new: str) -> Any:
        paths = [f"{path_of(directory)}/{name}", f"{path_of(target)}/{new}"]
        return self.step(method, paths, lambda: plain(self, directory, name, target, new))

    return changed


_ONE_NAME = ("create", "make_directory", "make_link", "unlink", "remove_directory")
_NAMES = {"rename": 2, "exchange": 2, **dict.fromkeys(_ONE_NAME, 1)}
METHODS = [name for name in vars(Files) if not name.startswith("_")]
for _method in set(METHODS) - {"move"}:
    setattr(RecordingFiles, _method, _by_names(_method, _NAMES[_method]) if _method in _NAMES else _by_fd(_method))
RecordingFiles.move = _by_two_directories("move")  # type: ignore[method-assign]


def read_log(path: Path) -> List[Line]:
    """What a run recorded, in order."""
    return [Line(*json.loads(text)) for text in path.read_text().splitlines()] if path.exists() else []


def arrows_in(lines: List[Line]) -> List[Arrow]:
    """The crash points of a recorded run.  Of a change that comes often: the first, the middle and the last time."""
    counts: Dict[tuple[str, str], Dict[int, int]] = {}
    for line in lines:
        by_process = counts.setdefault((line.role, line.change), {})
        by_process[line.pid] = by_process.get(line.pid, 0) + 1
    found: List[Arrow] = []
    for (role, change), by_process in counts.items():
        most = max(by_process.values())
        found += [Arrow(role, change, number) for number in sorted({1, (most + 1) // 2, most})]
    return found


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends: no test leaves a process behind (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def obey_permissions() -> None:
    """Have permission bits hold for this process and its children, also if it is root's: oneadmin is not root.

    Drops CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capset(2), version 3); what cuts the power needs the others.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    head, sets = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    if libc.capget(head, sets):
        raise OSError(ctypes.get_errno(), "capget")
    words = list(struct.unpack("=6I", sets.raw))
    if libc.capset(head, struct.pack("=6I", *(word & ~0b110 for word in words[:3]), *words[3:])):
        raise OSError(ctypes.get_errno(), "capset")
