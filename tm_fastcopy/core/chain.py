"""Chain: the files of a qcow2 disk's tree, and which of them rests on which.

    disk.0 -> disk.0.snap/2      the active file: what the VM writes
    disk.0.snap/2                rests on 1
    disk.0.snap/1                rests on 0; the disk as it was when snapshot 1 was made
    disk.0.snap/0                rests on nothing; snapshot 0

Snapshot N is the file N, unless a file `N.current` says in its last word which other file it is: so the stock drivers
write it when they have merged files of a VM that ran, and so we read it.  A file rests on another by the name in its
header, which must be the number of a file in the same tree: any other name is refused (`core/qcow2.py` says why).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Dict, List, Mapping, Tuple

from . import qcow2
from .errors import Refused
from .paths import has, list_names
from .publish import is_staging
from .qcow2 import Header

MAX_FILES = 256  # of a tree: QEMU holds all files of a chain open, and its own limit for a process is 1024
_NUMBER = re.compile("[0-9]{1,9}")
_CURRENT = re.compile(r"([0-9]{1,9})\.current")
_MAX_CURRENT = 4096  # bytes: a path
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Chain:
    """The files of a tree by name; *others* are the snapshots that are another file than their own number's, and
    *strangers* names that are neither.
    """

    headers: Mapping[str, Header]
    others: Mapping[str, str]
    strangers: Tuple[str, ...]

    def file_of(self, snapshot: int) -> str:
        """The name of the file that is a snapshot; there need not be one."""
        return self.others.get(str(snapshot), str(snapshot))

    def children(self, name: str) -> List[str]:
        """The files that rest on *name* itself."""
        return sorted(child for child, header in self.headers.items() if header.backing == name)


def is_number(name: str) -> bool:
    """Whether a file of this name belongs to a tree as the disk at some time."""
    return _NUMBER.fullmatch(name) is not None


def is_current(name: str) -> bool:
    """Whether a file of this name says which file a snapshot is."""
    return _CURRENT.fullmatch(name) is not None


def read_chain(tree: int, shown: str) -> Chain:
    """Look at all files of an open tree, which errors call *shown*; `Refused` if one is not what it must be."""
    headers: Dict[str, Header] = {}
    others: Dict[str, str] = {}
    strangers: List[str] = []
    for name in list_files(tree, shown):
        current = _CURRENT.fullmatch(name)
        if is_number(name):
            fd = open_member(tree, name, shown)
            try:
                headers[name] = qcow2.read(fd, f"{shown}/{name}")
            finally:
                os.close(fd)
        elif current:
            others[current.group(1)] = _read_current(tree, name, shown)
        else:
            strangers.append(name)
    chain = Chain(headers, others, tuple(strangers))
    for name in headers:
        _check(chain, name, shown)
    return chain


def list_files(tree: int, shown: str) -> List[str]:
    """The names in a tree, but for what belongs to no disk: staging files, and the link of a tree to itself that the
    stock drivers for shared storage make.  `Refused` if there are more than `MAX_FILES`.
    """
    found = sorted(name for name in list_names(tree) if not is_staging(name) and not _is_link(tree, name))
    if len(found) > MAX_FILES:
        raise Refused(f"{shown} holds {len(found)} files, and more than {MAX_FILES} are not handled: delete snapshots")
    return found


def list_members(tree: int, shown: str) -> List[str]:
    """The files of a tree that is to be carried; `Refused` if there is anything in it that belongs to no disk."""
    names = list_files(tree, shown)
    strangers = [name for name in names if not (is_number(name) or is_current(name))]
    if strangers:
        raise Refused(f"{shown} holds {', '.join(strangers)[:200]!r}, which is no file of a disk: it is not carried")
    return names


def check_whole(tree: int, active: str, shown: str) -> None:
    """Raise `Refused` unless every file of a tree stands for itself or rests on one in it, and *active* is one."""
    if active not in read_chain(tree, shown).headers:
        raise Refused(f"{shown} does not hold {active}, which is to be the disk")


def _is_link(tree: int, name: str) -> bool:
    status = has(tree, name)
    return not is_number(name) and status is not None and stat.S_ISLNK(status.st_mode)


def open_member(tree: int, name: str, shown: str) -> int:
    """Open a file of a tree for reading; `Refused` if it is none."""
    try:
        fd = os.open(name, _READ, dir_fd=tree)
    except FileNotFoundError as error:
        raise Refused(f"there is no {shown}/{name}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused(f"{shown}/{name} is not a regular file")
    return fd


def _read_current(tree: int, name: str, shown: str) -> str:
    fd = open_member(tree, name, shown)
    try:
        text = os.read(fd, _MAX_CURRENT).decode("utf-8", "replace").strip()
    finally:
        os.close(fd)
    target = text.rpartition("/")[2]
    if not is_number(target):
        raise Refused(f"{shown}/{name} does not name a file of its tree: look at it, and repeat the action")
    return target


def _check(chain: Chain, name: str, shown: str) -> None:
    """Raise `Refused` unless *name*, and all that it rests on, is in the tree."""
    passed = [name]
    while True:
        header = chain.headers[passed[-1]]
        qcow2.check_in_tree(header, chain.headers, f"{shown}/{passed[-1]}")
        if header.backing is None:
            return
        if header.backing in passed:
            raise Refused(f"{shown}/{name} rests on itself, so it is damaged")
        passed.append(header.backing)
