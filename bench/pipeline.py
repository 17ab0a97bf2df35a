"""`ssh-pipeline`: what the stock `ssh` driver makes two machines do for `clone` and `mvds`, and no more.

The bench compares with the real stock driver where an OpenNebula is at hand. Where none is, it runs this:
the same logins in the same order, each a shell that reads its script from stdin, and the same single
`tar | ssh | tar` stream, restated from the behaviour of OpenNebula's driver (7.x, src/tm_mad/ssh and
src/mad/sh). What a transfer costs there is mostly these logins and this stream.

It flatters the stock driver. Left out are: the start of the shell libraries with their Ruby look-ups of
the configuration, `onevm show` and `onedatastore show` with the Ruby XPath program that reads their answer
(one to two seconds for a disk), one_tm's own process, and logging. A driver that beats this, beats stock.

A caller runs the commands as oneadmin on the front-end, one after another, stdin closed after the script,
and stops at the first that fails: `node.run(command.argv, input=command.script)`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import List, Optional, Tuple

MONITOR = "ssh"  # what the driver writes into .monitor: its own name

# The login that starts the stream must be able to go on to the host, and shares no connection.
_FORWARDING = ("-o", "ForwardAgent=yes", "-o", "ControlMaster=no", "-o", "ControlPath=none")

_PLAIN = "export LANG=C LC_ALL=C\n"
_STRICT = "set -e -o pipefail\n"


@dataclass(frozen=True)
class Command:
    """One process on the front-end, and what is written to its stdin."""

    argv: Tuple[str, ...]
    script: str


def clone_commands(
    source: Path,
    front_end: str,
    host: str,
    destination: PurePosixPath,
    size_mb: Optional[int],
    sparse: bool,
) -> List[Command]:
    """The commands that put a copy of the image `source` at `destination` on `host`.

    front_end -- the name under which the front-end logs into itself, to start the stream there
    size_mb   -- the disk's size in MiB where it is larger than the image; None: no resize
    sparse    -- False for `SPARSE=NO`: holes travel as zeros and the disk is allocated in full
    """
    directory = destination.parent
    commands = [
        _on(host, _STRICT + _make_directory(directory)),
        _on(host, _STRICT + _name_monitor(directory)),
        _on(front_end, _PLAIN + _STRICT + _push(source, host, destination, sparse), forward=True),
    ]
    if size_mb is not None:
        preallocate = [] if sparse else ["--preallocation=falloc"]
        resize = ["qemu-img", "resize", *preallocate, str(destination), f"{size_mb}M"]
        commands.append(_on(host, _PLAIN + shlex.join(resize) + "\n"))
    return commands


def mvds_commands(source: PurePosixPath, host: str, destination: Path) -> List[Command]:
    """The commands that bring the disk `source` on `host` back over the image `destination`.

    That is the form in which oned orders it: the image by its path, without a host. As the driver does,
    this writes straight into the image, and a disk with snapshots is made one flat file first; where
    that file replaces the disk, it takes another login to find that no snapshots are left to fetch.
    """
    snapshots = shlex.quote(f"{host}:{source}.snap/")
    look = shlex.join(["ssh", host, shlex.join(["ls", f"{source}.snap"])])
    fetch = f"rsync -r --delete {snapshots} {shlex.quote(f'{destination}.snap')}"
    return [
        _on(host, _PLAIN + _flatten(source)),
        _here(_PLAIN + _STRICT + _pull(source, host, destination)),
        _here(f"if {look} >/dev/null 2>&1; then\n    {fetch}\nfi\n"),
        Command(("rm", "-f", f"{destination}.md5sum"), ""),
    ]


def _on(host: str, script: str, forward: bool = False) -> Command:
    return Command(("ssh", *(_FORWARDING if forward else ()), host, "bash", "-s"), script)


def _here(script: str) -> Command:
    return Command(("bash", "-s"), script)


def _make_directory(directory: PurePosixPath) -> str:
    name = shlex.quote(str(directory))
    return f"[ -d {name} ] || mkdir -p {name}\n"


def _name_monitor(directory: PurePosixPath) -> str:
    """The datastore's `.monitor` lies beside the VM directories, and is written only where it differs."""
    file = shlex.quote(str(directory.parent / ".monitor"))
    return f'[ "$(cat {file} 2>/dev/null || :)" = {MONITOR} ] || echo {MONITOR} > {file}\n'


def _push(source: Path, host: str, destination: PurePosixPath, sparse: bool) -> str:
    """The stream from the front-end, with the image's snapshots where it has some."""
    pack = _pack(source, destination, sparse)
    unpack = shlex.join(["ssh", *_FORWARDING, host, shlex.join(_unpack(destination, sparse))])
    snapshots = shlex.quote(f"{source.name}.snap")
    return (
        f"if [ -d {shlex.quote(f'{source}.snap')} ]; then with={snapshots}; else with=; fi\n"
        f'{shlex.join(pack)} ${{with:+"$with"}} | {unpack}\n'
    )


def _pull(source: PurePosixPath, host: str, destination: Path) -> str:
    pack = shlex.join(["ssh", host, shlex.join(_pack(source, destination, sparse=True))])
    return f"{pack} | {shlex.join(_unpack(destination, sparse=True))}\n"


def _pack(source: PurePath, destination: PurePath, sparse: bool) -> List[str]:
    """tar of one file, which is renamed on the way; the driver's `-S` reads the holes' map first."""
    rename = f"s/^{_pattern(source.name)}/{_replacement(destination.name)}/r"
    mode = "-cSf" if sparse else "-cf"
    return ["tar", "-C", str(source.parent), f"--transform={rename}", mode, "-", source.name]


def _unpack(destination: PurePath, sparse: bool) -> List[str]:
    return ["tar", "-xSf" if sparse else "-xf", "-", "-C", str(destination.parent)]


def _pattern(name: str) -> str:
    """A name as a basic regular expression that matches only itself. A name holds no slash."""
    return re.sub(r"([.*\[\]^$\\])", r"\\\1", name)


def _replacement(name: str) -> str:
    """A name as what sed puts in a pattern's place."""
    return re.sub(r"([&\\])", r"\\\1", name)


def _flatten(disk: PurePosixPath) -> str:
    """A disk that is a link into a qcow2 tree becomes one flat file. Nothing checks that this worked."""
    path, flat, tree = (shlex.quote(str(disk) + end) for end in ("", ".full", ".snap"))
    return (
        f"if [ -L {path} ]; then\n"
        f"    qemu-img convert -O qcow2 {path} {flat}\n"
        f"    rm -f {path}\n"
        f"    rm -rf {tree}\n"
        f"    mv {flat} {path}\n"
        "fi\n"
    )
