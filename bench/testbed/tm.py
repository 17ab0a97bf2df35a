"""Running transfer scripts: through OpenNebula's own one_tm where the lab has it, else through a small
equivalent.

Both take the lines of a script one after another and stop at the first failure. What a driver writes to
stderr decides what an administrator sees: lines `INFO|ERROR|DEBUG|WARN: text` are log lines, all others are
glued together and become the VM's error.
"""

from __future__ import annotations

import abc
import dataclasses
import os
import queue
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Optional

from bench.testbed.errors import LabError
from bench.testbed.node import UID, Node

DRIVERS = ("dummy", "ssh", "local", "shared", "qcow2", "fastcopy")
SLOTS = 15  # one_tm's own default for scripts at once
START_WAIT = 30.0  # seconds for Ruby to start
STOP_WAIT = 10.0  # seconds for one_tm to notice that its input ended
LOG_LINE = re.compile(r"(ERROR|INFO|WARN|DEBUG):\s+(?:\d+\s+)?(.*)")  # a number sends the line to that VM's log
SEVERITIES = {"E": "ERROR", "I": "INFO", "W": "WARN", "D": "DEBUG"}


@dataclasses.dataclass(frozen=True)
class TmResult:
    """What oned would see. `info` is the error text, or `-`; `log` has lines like `INFO: clone: text`.

    `seconds` is from handing the script over to the answer.
    """

    success: bool
    info: str
    log: list[str]
    seconds: float


class Transfers(abc.ABC):
    """Takes transfer scripts; `run` may be called by several threads at once."""

    def __init__(self, node: Node, one: Path) -> None:
        self.node = node
        self.one = one

    @abc.abstractmethod
    def run(self, script_lines: list[str], vm_id: int, timeout: float = 120.0) -> TmResult:
        """Run one script for a VM. LabError when there is no answer after `timeout` seconds."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End what was started."""

    def __enter__(self) -> Transfers:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def write_script(self, lines: list[str], vm_id: int) -> Path:
        """Write a script where oned puts them; its path."""
        directory = self.one / "var/vms" / str(vm_id)
        directory.mkdir(exist_ok=True)
        path = directory / "transfer.0.prolog"
        path.write_text("".join(f"{line}\n" for line in lines))
        for item in (directory, path):
            os.chown(item, UID, UID)
        return path


def open_transfers(node: Node, one: Path, *, real: bool) -> Transfers:
    """The real one_tm, or the equivalent."""
    return OneTm(node, one) if real else PlainTransfers(node, one)


class OneTm(Transfers):
    """OpenNebula's one_tm, spoken to as oned does: lines on its stdin, lines on its stdout."""

    def __init__(self, node: Node, one: Path) -> None:
        super().__init__(node, one)
        self.waiting: dict[int, queue.Queue[str]] = {}
        self.log: list[str] = []
        self.lock = threading.Lock()
        self.process = node.popen(
            [one / "lib/mads/one_tm", "-t", str(SLOTS), "-d", ",".join(DRIVERS)],
            env={"ONE_MAD_DEBUG": "1"},  # its own stderr goes to var/one_tm.log, not to /dev/null
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.waiting[0] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self._send("INIT")
        try:
            if not self._wait(0, START_WAIT).startswith("INIT SUCCESS"):
                raise LabError("one_tm did not start; see var/one_tm.log in the lab.")
        except LabError:
            self.close()
            raise

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise LabError("one_tm has ended; see var/one_tm.log in the lab.") from None

    def _wait(self, key: int, timeout: float) -> str:
        try:
            return self.waiting[key].get(timeout=timeout)
        except queue.Empty:
            raise LabError(f"one_tm did not answer within {timeout:g} s.") from None

    def _read(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            words = line.split(" ", 3)
            if words[0] == "LOG" and len(words) == 4:
                with self.lock:
                    self.log.append(f"{SEVERITIES.get(words[1], words[1])}: {words[3]}")
            elif words[0] == "INIT":
                self.waiting[0].put(line)
            elif words[0] == "TRANSFER" and len(words) > 2 and words[2].isdigit():
                with self.lock:
                    target = self.waiting.get(int(words[2]))
                if target is not None:
                    target.put(line)
        for target in list(self.waiting.values()):
            target.put("one_tm ended")

    def run(self, script_lines: list[str], vm_id: int, timeout: float = 120.0) -> TmResult:
        """See Transfers. Of scripts that run at once, `log` has all lines: one_tm does not tell them apart."""
        path = self.write_script(script_lines, vm_id)
        with self.lock:
            self.waiting[vm_id] = queue.Queue()
            seen = len(self.log)
            began = time.monotonic()
            self._send(f"TRANSFER {vm_id} {path}")
        words = self._wait(vm_id, timeout).split(" ", 3)
        seconds = time.monotonic() - began
        if words[0] != "TRANSFER":
            raise LabError("one_tm ended in the middle of a transfer; see var/one_tm.log in the lab.")
        with self.lock:
            del self.waiting[vm_id]
            return TmResult(words[1] == "SUCCESS", " ".join(words[3:]) or "-", self.log[seen:], seconds)

    def close(self) -> None:
        """End one_tm; scripts that still run go on, as under oned."""
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(STOP_WAIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
            self.reader.join(STOP_WAIT)


class PlainTransfers(Transfers):
    """The same without Ruby: for labs without an OpenNebula checkout."""

    def run(self, script_lines: list[str], vm_id: int, timeout: float = 120.0) -> TmResult:
        """See Transfers."""
        path = self.write_script(script_lines, vm_id)
        began = time.monotonic()
        log: list[str] = []
        for words in commands(path.read_text()):
            success, info, lines = self._line(words, timeout - (time.monotonic() - began))
            log += lines
            if not success:
                return TmResult(False, info, log, time.monotonic() - began)
        return TmResult(True, "-", log, time.monotonic() - began)

    def _line(self, words: list[str], timeout: float) -> tuple[bool, str, list[str]]:
        action, driver, *arguments = words
        if driver not in DRIVERS:
            return False, f"Transfer Driver '{driver}' not available", []
        directory = self.one / "var/remotes/tm" / driver
        script = script_of(directory, action.lower())
        if script is None:
            return False, f"Driver path '{directory / action.lower()}' does not exists", []
        # Niced, with tmrc in the environment and from var: as one_tm runs them.
        tmrc, var = str(self.one / "etc/tmrc"), str(self.one / "var")
        started = ["/bin/sh", "-c", 'set -a; . "$0"; set +a; exec nice -n 19 "$@"', tmrc]
        try:
            done = self.node.run([*started, str(script), *arguments], cwd=var, timeout=max(timeout, 0.1))
        except subprocess.TimeoutExpired:
            raise LabError(f"{script} {' '.join(arguments)} did not end in time.") from None
        error, log = split_stderr(done.stderr.decode("utf-8", "replace"))
        return done.returncode == 0, error or "-", log


def commands(script: str) -> Iterator[list[str]]:
    """The commands of a transfer script: words, without comments and empty lines."""
    for line in script.splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            yield words


def script_of(directory: Path, action: str) -> Optional[Path]:
    """The file of an action: `clone.ssh` is also served by `clone`. None if there is neither."""
    for name in (action, action.rpartition(".")[0]):
        if name and (directory / name).exists():
            return directory / name
    return None


def split_stderr(text: str) -> tuple[str, list[str]]:
    """(error text, log lines) of a driver's stderr."""
    error, log = "", []
    for line in map(str.strip, text.splitlines()):
        match = LOG_LINE.fullmatch(line)
        if match:
            log.append(f"{match[1]}: {match[2].strip()}")
        else:
            error += line
    return error.strip(), log
