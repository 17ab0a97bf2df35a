"""Examine: answers what an administrator wants to know of a host.  Nothing is changed, but for a probe file that goes
at once.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import shutil
import stat
import subprocess
import time
from typing import Callable, Dict, List, Optional, Type

from ..core.errors import Refused
from ..core.examine_messages import (
    ClockRead,
    DatastoreExamined,
    DiskFound,
    Examine,
    Examined,
    ExamineDatastore,
    FindDisk,
    Reach,
    Reached,
    ReadClock,
)
from ..core.files import Files, can_share, free_bytes
from ..core.fingerprint import fingerprint
from ..core.paths import disk_name, has, open_directory
from ..core.wire import Message
from .directory import datastore_or_above, open_datastore

_PROBE = ".fastcopy-examine."
_WAIT = 15.0  # seconds for a program of the host's; a login takes half of one
_LONGEST = 300  # characters of what a program says
_MOST_OUTPUT = 1024 * 1024  # bytes that are looked at: libvirt describes itself in some 100 KB
_HOST = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:%\[\]-]{0,254}")  # as the front-end's: never an option of ssh
_SSH = (
    "-o", "BatchMode=yes", "-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ConnectTimeout=10",
    "-o", "ClearAllForwardings=yes", "-o", "LogLevel=ERROR", "-T",
)  # fmt: skip
_BASELABEL = re.compile(r"<baselabel type='(?:kvm|qemu)'>\+([0-9]{1,10}):\+[0-9]{1,10}</baselabel>")

QUESTIONS = (Examine, ReadClock, ExamineDatastore, Reach, FindDisk)


def answer(files: Files, message: Message) -> Message:
    """Answer one question; errors are raised."""
    handlers: Dict[Type[Message], Callable[..., Message]] = {
        Examine: _host,
        ReadClock: lambda _: ClockRead(time.time_ns() // 1000),
        ExamineDatastore: lambda asked: _datastore(files, asked),
        Reach: _reach,
        FindDisk: _look,
    }
    return handlers[type(message)](message)


def _host(message: Examine) -> Message:
    found = _run(["qemu-img", "--version"])
    version = re.search(r"version ([0-9.]{1,20})", found or "")
    return Examined(
        platform.python_version()[:40],
        version[1] if version else "",
        _user(os.geteuid()),
        _guests(),
        fingerprint(os.path.join(message.remotes, "tm", "fastcopy")),
    )


def _guests() -> str:
    """The user that libvirt's guests run as: it says so itself, while its configuration is root's to read."""
    said = _run(["virsh", "--connect", "qemu:///system", "capabilities"])
    if said is None:
        return ""
    label = _BASELABEL.search(said)
    return _user(int(label[1])) if label else "?"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def _run(argv: List[str]) -> Optional[str]:
    """What a program prints; None if it is not there."""
    program = shutil.which(argv[0], path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/libexec:/usr/sbin")
    if program is None:
        return None
    try:
        done = subprocess.run([program, *argv[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=_WAIT, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:_MOST_OUTPUT].decode("utf-8", "replace")


def _datastore(files: Files, message: ExamineDatastore) -> Message:
    base, present = datastore_or_above(message.base)
    try:
        status = os.fstatvfs(base)
        writable, reflink = os.access(".", os.W_OK, dir_fd=base), False
        if writable:
            try:
                reflink = can_share(files, base, f"{_PROBE}{os.getpid()}")
            except OSError:
                writable = False
        kind, total = _kind(os.readlink(f"/proc/self/fd/{base}")), status.f_blocks * status.f_frsize
        return DatastoreExamined(kind, writable, reflink, total, free_bytes(base), present)
    finally:
        os.close(base)


def _kind(path: str) -> str:
    """The kind of the file system that a path lies on, by its mount point (btrfs has other device numbers in files than
    in the table); "" if it cannot be told.
    """
    best, kind = -1, ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                point = words[4].rstrip("/")
                if len(point) >= best and f"{path}/".startswith(f"{point}/"):  # a later mount covers an earlier one
                    best, kind = len(point), words[words.index("-") + 1][:40]
    except (OSError, IndexError, ValueError):
        return ""
    return kind


def _reach(message: Reach) -> Message:
    if not _HOST.fullmatch(message.host):
        raise Refused(f"{message.host[:80]!r} is not the name of a host")
    program = shutil.which("ssh", path="/usr/bin:/bin:/usr/local/bin")
    if program is None:
        return Reached("there is no ssh program")
    try:
        done = subprocess.run([program, *_SSH, "--", message.host, "true"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=2 * _WAIT,
                              check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return Reached(f"ssh did not end within {2 * _WAIT:.0f} s")
    except OSError as error:
        return Reached(f"ssh cannot be started: {error.strerror}")
    if done.returncode == 0:
        return Reached("")
    said = " ".join(done.stderr[-4096:].decode("utf-8", "replace").split())
    return Reached((said or f"ssh ended with code {done.returncode}")[-_LONGEST:])


def _look(message: FindDisk) -> Message:
    base = open_datastore(message.base)
    try:
        if has(base, str(message.vm)) is None:
            return DiskFound("", 0)
        directory = open_directory(base, str(message.vm), f"{message.base}/{message.vm}")
        try:
            status = has(directory, disk_name(message.name))
        finally:
            os.close(directory)
    finally:
        os.close(base)
    if status is None:
        return DiskFound("", 0)
    kinds = {stat.S_IFREG: "file", stat.S_IFLNK: "link", stat.S_IFDIR: "directory"}
    return DiskFound(kinds.get(stat.S_IFMT(status.st_mode), "other"), status.st_size)
