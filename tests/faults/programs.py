"""Programs: the product's own processes, as the fork server starts them, with the faults that a spec asks for.

A spec is a plain dictionary, handed from the test to the front-end's process and from there to the agent's:

    action, argv, one_location, base, images, disk   what the action is called with, and what oned would say
    lanes, chunk                                     number of lanes, chunk size in bytes
    format, source, fs, sparse                       of the disk, as oned says
    cache                                            whether the host's may be used, "yes" or "no"
    log, plan, lacking                               what `RecordingFiles` does
    mutant                                           the name of a deliberate breakage
    link                                             what `Faulty` does, and to which links
    same_machine                                     whether host and front-end find out that they are one machine
    silence, answer, ping, publishing, follow, pauses  waits of the product, in seconds, shortened
    max_chunks                                       the product's own choice of a chunk size, with another bound
"""

from __future__ import annotations

import importlib
import os
import platform
import socket
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional

from tm_fastcopy.agent import cache as agent_cache
from tm_fastcopy.agent import lanes as agent_lanes
from tm_fastcopy.agent import main as agent_main
from tm_fastcopy.core import identity, manifest
from tm_fastcopy.frontend import agents, bundle, call, channel, lanes, main, perform, pull, push
from tm_fastcopy.frontend.call import Call
from tm_fastcopy.frontend.oned import Datastore, Disk, Vm
from tm_fastcopy.frontend.services import Services

from . import forks, mutants
from .arrows import Plan, RecordingFiles
from .faulty import Faulty, StreamLink

_DIGEST = "0" * 64

for _action in perform.ACTIONS:  # what a process imports only when it is needed shall be there before it is forked
    importlib.import_module(f"tm_fastcopy.frontend.actions.{_action}")


def run_action(spec: Dict[str, Any], fds: List[int]) -> None:
    """The front-end's process: one action as the entry point runs it.  The exit code goes to descriptor 0 of *fds*."""
    os.dup2(fds[1], 2)
    sys.stderr = open(2, "w", closefd=False)
    _shorten(spec)
    if "max_chunks" in spec:
        pull.MAX_CHUNKS = spec["max_chunks"]
    else:
        for module in (push, pull):
            module.chunk_size_for = lambda size: spec["chunk"]
    # The walk's images were made a moment ago.  Clocks that tick finely enough make that safe here.
    identity.SETTLED_NS = 0
    mutants.apply(spec["mutant"])
    code = main.run_action(spec["action"], lambda log: _call(spec, log))
    os.write(fds[0], str(code).encode())


def _call(spec: Dict[str, Any], log: Any) -> Call:
    Path(spec["one_location"], "auth").write_text("oneadmin:secret")
    environ = {
        "ONE_LOCATION": spec["one_location"],
        "ONE_AUTH": f"{spec['one_location']}/auth",
        "FASTCOPY_LANES": str(spec["lanes"]),
        "FASTCOPY_CACHE_ENABLE": spec.get("cache", "yes"),
    }
    services = Services(dialer=ForkDialer(spec), bundles=_NoBundles())  # type: ignore[arg-type]
    made = Call(spec["argv"], environ, log, services, _files("frontend", spec))
    made.oned = _Oned(spec)  # type: ignore[assignment]
    return made


def run_agent(spec: Dict[str, Any], fds: List[int]) -> None:
    """The agent's or a lane's process, from the bootstrap's banner on."""
    os.dup2(fds[0], 0)
    os.dup2(fds[0], 1)
    os.dup2(os.open(spec["agent_errors"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
    sys.stderr = open(2, "w", closefd=False)
    plan = Plan.decode(spec["plan"]) if spec["plan"] else None
    if plan and plan.how == "cut" and plan.mount == spec["host_mount"] and os.path.exists(plan.hit):
        return  # the host has no power
    _shorten(spec)
    mutants.apply(spec["mutant"])
    if not spec.get("same_machine"):
        identity.BOOT_ID = "/nonexistent"  # the two machines may be one directory: the image is to travel all the same
    # A killed agent leaves the directory of its socket behind: it shall be one that the test removes.
    agent_lanes.tempfile = SimpleNamespace(  # type: ignore[assignment]
        mkdtemp=lambda prefix, dir: tempfile.mkdtemp(prefix="", dir=spec["doors"])
    )
    version = "{}.{}".format(*sys.version_info[:2])
    os.write(1, f"\nFASTCOPY-BOOT 1 {version} {sys.implementation.name} {platform.machine()}\n".encode())
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return
        line += byte
    _, digest, _, mode = line.decode().split()
    os.write(1, b"\nHAVE\n")
    agent_main.main(mode, 0, 1, digest, _files("agent" if mode == "control" else "lane", spec))


PROGRAMS = {"frontend": run_action, "host": run_agent}


def _files(role: str, spec: Dict[str, Any]) -> RecordingFiles:
    return RecordingFiles(role, spec["log"], Plan.decode(spec["plan"]) if spec["plan"] else None, spec["lacking"])


def _shorten(spec: Dict[str, Any]) -> None:
    manifest.MAX_CHUNKS = spec.get("max_chunks", manifest.MAX_CHUNKS)
    agent_main.SILENCE = spec.get("silence", agent_main.SILENCE)
    agents.PING = spec.get("ping", agents.PING)
    lanes.INLINE = spec.get("inline", 0)  # the walk's images are small, and lanes are what it is about
    call._PAUSES = spec.get("pauses", ())  # the walk looks at what one attempt leaves
    push._FOLLOW = spec.get("follow", push._FOLLOW)
    agent_cache._PUBLISHING = spec.get("publishing", agent_cache._PUBLISHING)
    if "answer" in spec:
        channel.Channel.receive.__defaults__ = (spec["answer"],)


class ForkDialer:
    """Dials by having the fork server start an agent at the other end of a socket pair."""

    def __init__(self, spec: Dict[str, Any]) -> None:
        self._spec = spec
        self._faults = dict(spec["link"]) if spec.get("link") else None

    async def dial(self, name: str, bulk: bool) -> Any:
        """See `Dialer`."""
        ours, theirs = socket.socketpair()
        forks.start(self._spec["forks"], "host", self._spec, [theirs.fileno()])
        theirs.close()
        link = await StreamLink.over(ours)
        faults: Optional[Dict[str, Any]] = self._faults
        if faults is None or faults["on"] != ("lane" if bulk else "control"):
            return link
        if faults["once"]:
            self._faults = None
        return Faulty(link, **{key: value for key, value in faults.items() if key not in ("on", "once")})

    async def close(self) -> None:
        """See `Dialer`."""


class _NoBundles:
    """The agent's code is there already."""

    def get(self, python: bundle.HostPython) -> bundle.Bundle:
        return bundle.Bundle(_DIGEST, b"")


class _Oned:
    """What oned would answer."""

    endpoint = "nowhere"

    def __init__(self, spec: Dict[str, Any]) -> None:
        self._spec = spec

    def vm(self, vm_id: int) -> Vm:
        spec = self._spec
        how = spec["format"], spec.get("sparse", True), spec.get("fs", ""), spec.get("source", "")
        disk = Disk(0, *spec["disk"], *how)
        return Vm(vm_id, spec.get("seq", 0), {} if spec["action"] == "context" else {0: disk})

    def ask(self, method: str, *arguments: Any) -> ElementTree.Element:
        """The documents that a restore asks for."""
        vm = int(Path(self._spec["argv"][0]).name)
        return ElementTree.fromstring(
            {
                "one.vm.info": f"<VM><ID>{vm}</ID></VM>",
                "one.image.info": f"<IMAGE><VMS><ID>{vm}</ID></VMS><DATASTORE_ID>9</DATASTORE_ID></IMAGE>",
                "one.datastore.info": "<DATASTORE><DS_MAD>fake</DS_MAD></DATASTORE>",
            }[method]
        )

    def datastores(self) -> Dict[int, Datastore]:
        return {
            0: Datastore(0, self._spec["base"], True),
            1: Datastore(1, self._spec["images"], False),
        }


if __name__ == "__main__":
    forks.serve(int(sys.argv[1]), PROGRAMS)
