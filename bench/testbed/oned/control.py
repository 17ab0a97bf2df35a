"""What a test does to the stand-in for oned: change its state, stop it, let it hang, read its calls."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from bench.testbed import processes
from bench.testbed.errors import LabError, program
from bench.testbed.oned import calls, objects, server

if TYPE_CHECKING:
    from bench.testbed.node import Node

ROOT = Path(__file__).resolve().parents[3]
MODULE = "bench.testbed.oned.server"
SIGNAL_WAIT = 30.0  # seconds until a stopped process counts as stopped
COMMANDS = ("onevm", "oneimage", "onedatastore", "onehost")


class Oned:
    """The stand-in of one lab. Ids are OpenNebula's; sizes are MiB."""

    def __init__(self, directory: Path, node: Node, datastores: Path, hosts: Mapping[str, Node]) -> None:
        self.directory = directory
        self.node = node
        self.datastores = datastores
        self.hosts = dict(hosts)

    # -- the process -----------------------------------------------------------------------------------------

    def _server(self) -> list[int]:
        return [pid for pid in self.node.processes() if MODULE in processes.arguments(pid)]

    def start(self) -> None:
        """Start it, or let it go on after `hang`; returns when it listens."""
        running = self._server()
        if running:
            self.node.signal(running, signal.SIGCONT)
            processes.wait_for(lambda: self.condition() == "answers", SIGNAL_WAIT, "oned's stand-in to go on")
            return
        vector = [program("setsid"), "--fork", sys.executable, "-m", MODULE, str(self.directory)]
        env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        done = self.node.run(vector, user="root", env=env)
        if done.stdout != b"ready\n":
            raise LabError(f"The stand-in for oned did not start: {done.stderr.decode()[-500:].strip()}")

    def stop(self) -> None:
        """Kill it: connections are refused from now on."""
        processes.kill(self._server())

    def hang(self) -> None:
        """Let it accept connections and answer nothing, until `start`."""
        running = self._server()
        if not running:
            raise LabError("The stand-in for oned does not run, so it cannot hang.")
        self.node.signal(running, signal.SIGSTOP)
        processes.wait_for(lambda: self.condition() == "hangs", SIGNAL_WAIT, "oned's stand-in to stop")

    def condition(self) -> str:
        """`answers`, `hangs` or `stopped`."""
        running = self._server()
        if not running:
            return "stopped"
        state = Path(f"/proc/{running[0]}/stat").read_text().rpartition(")")[2].split()[0]
        return "hangs" if state == "T" else "answers"

    # -- calls -----------------------------------------------------------------------------------------------

    def _log(self) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.directory / server.LOG).read_text().splitlines()]
        return []

    @property
    def calls(self) -> list[tuple[str, list[Any]]]:
        """Every call since the last `forget_calls`: method, and arguments without the authentication."""
        return [(entry["method"], entry["arguments"]) for entry in self._log()]

    @property
    def unknown_calls(self) -> list[str]:
        """Methods that were called and that the stand-in does not know. A test that leaves one must fail."""
        return [entry["method"] for entry in self._log() if not entry["known"]]

    def forget_calls(self) -> None:
        """Begin counting anew."""
        (self.directory / server.LOG).unlink(missing_ok=True)

    # -- state -----------------------------------------------------------------------------------------------

    def create(self, one: Path, hosts: Sequence[str]) -> None:
        """Write the first state and the commands. Datastores: 0 system, 1 default, 2 files, 100 of driver ssh."""
        self.directory.mkdir()
        self._save(objects.nothing())
        self.add_datastore(0, "system", type="SYSTEM")
        self.add_datastore(1, "default")
        self.add_datastore(2, "files", type="FILE", tm_mad="ssh")
        self.add_datastore(100, "system_ssh", type="SYSTEM", tm_mad="ssh")
        for number, name in enumerate(hosts):
            self.add_host(number, name)
        for name in COMMANDS:
            shutil.copy2(Path(__file__).with_name("cli.py"), one / "bin" / name)
            (one / "bin" / name).chmod(0o755)

    def state(self) -> dict[str, Any]:
        """The state, as read from its file."""
        loaded: dict[str, Any] = json.loads((self.directory / server.STATE).read_text())
        return loaded

    def _save(self, state: Mapping[str, Any]) -> None:
        temporary = self.directory / f"{server.STATE}.new"
        temporary.write_text(json.dumps(state, indent=1) + "\n")
        temporary.replace(self.directory / server.STATE)

    def _put(self, pool: str, item: dict[str, Any]) -> None:
        state = self.state()
        state[pool][str(item["ID"])] = item
        self._save(state)

    def _remove(self, pool: str, number: int) -> None:
        state = self.state()
        if state[pool].pop(str(number), None) is None:
            raise LabError(f"The stand-in for oned has no {number} among its {pool}.")
        self._save(state)

    def add_datastore(
        self,
        id: int,
        name: str,
        *,
        type: str = "IMAGE",
        tm_mad: str = "fastcopy",
        template: Optional[Mapping[str, Any]] = None,
        base_path: Optional[str] = None,
        ds_mad: str = "fs",
    ) -> None:
        """Add or replace a datastore (IMAGE, SYSTEM, FILE, BACKUP) and make its directories.

        The front-end gets one for each, the hosts for system datastores only, as in a real cloud.
        """
        path = base_path or str(self.datastores / str(id))
        self._put("datastores", objects.datastore(id, name, type, tm_mad, path, template or {}, ds_mad))
        for node in [self.node, *(self.hosts.values() if type == "SYSTEM" else ())]:
            make_directory(node, path)

    def add_image(
        self,
        id: int,
        datastore_id: int,
        source: str,
        size_mb: int,
        *,
        format: str = "raw",
        persistent: bool = False,
        name: Optional[str] = None,
        type: str = "OS",
        template: Optional[Mapping[str, Any]] = None,
        extra: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """Add or replace an image whose file is `source`; the file itself is the caller's business.

        `extra` overrides fields of the document, for example MODTIME or STATE, and for a backup's image VMS (ids) and
        INCREMENTS (a list).
        """
        item = objects.image(id, name or f"image-{id}", datastore_id, source, size_mb, format, persistent, type)
        item["TEMPLATE"].update(template or {})
        self._put("images", {**item, **(extra or {})})

    def add_host(self, id: int, name: str, *, state: int = 2, template: Optional[Mapping[str, Any]] = None) -> None:
        """Add or replace a host; `state` 2 is MONITORED, 3 ERROR, 4 DISABLED, 8 OFFLINE."""
        self._put("hosts", objects.host(id, name, state, template or {}))

    def add_vm(
        self,
        id: int,
        *,
        host: str = "host1",
        ds_id: int = 0,
        disks: Sequence[Mapping[str, Any]] = (),
        extra: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """Add or replace a VM in ACTIVE, PROLOG on `host` with system datastore `ds_id`.

        Each disk is a mapping of DISK attributes; with IMAGE_ID the rest is filled in from the image, as
        oned does, and without it the disk is volatile (give TYPE, SIZE, FORMAT). `extra` overrides fields
        of the document: STATE, LCM_STATE, NAME, TEMPLATE, USER_TEMPLATE, SNAPSHOTS (a list), DEPLOY_ID,
        BACKUP_CONFIG.
        """
        self._put("vms", {**objects.vm(self.state(), id, host, ds_id, disks), **(extra or {})})

    def move_vm(self, id: int, host: str, ds_id: Optional[int] = None) -> None:
        """Add a history record: the VM is now, or is about to be, on `host` and in `ds_id` (or where it was)."""
        state = self.state()
        history = state["vms"][str(id)]["HISTORY"]
        history.append(objects.place(state, host, history[-1]["DS_ID"] if ds_id is None else ds_id))
        self._save(state)

    def set_vm(self, id: int, **fields: Any) -> None:
        """Change fields of a VM's document, for example `LCM_STATE=59`."""
        state = self.state()
        state["vms"][str(id)].update(fields)
        self._save(state)

    def remove_datastore(self, id: int) -> None:
        """Forget a datastore; its directories stay."""
        self._remove("datastores", id)

    def remove_vm(self, id: int) -> None:
        """Forget a VM."""
        self._remove("vms", id)

    def remove_image(self, id: int) -> None:
        """Forget an image."""
        self._remove("images", id)

    def xml(self, method: str, *arguments: object) -> str:
        """The document that a call would return, without asking the server. LabError if it would fail."""
        reply = calls.answer(self.state(), method, ["oneadmin:oneadmin", *arguments])
        if not reply[0]:
            raise LabError(str(reply[1]))
        return str(reply[1])


def make_directory(node: Node, path: str) -> None:
    """Make a datastore's directory on a node, oneadmin's."""
    node.run(["mkdir", "-p", "--", path], user="root", check=True)
    os.chown(node.path(path), 9869, 9869)
