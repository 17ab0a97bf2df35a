"""uninstall.sh: takes the driver away again, and leaves everything else as it is.

Not while a datastore or a VM still uses it: oned is asked.  What an administrator has changed since it was installed
stays, and is named.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

from ..core.errors import FastcopyError, Refused
from ..frontend.oned import NoAnswer, Oned
from ..frontend.places import Places
from . import configuration, usage
from .edits import Hand
from .install import add_one_location, report, show_by_hand, tell_systemd
from .layout import Layout
from .ledger import LEDGER, Ledger
from .lock import alone

_MANY = 20  # names in one sentence; the rest is counted
_ENDING = 30.0  # seconds for the daemon to end: nobody uses the driver, so it has no transfers
_PEER = struct.Struct("3i")  # struct ucred
_MOUNT = "a mount: unmount it, and remove it by hand"
_UNIT = "fastcopyd.service"


class Uninstaller:
    """One removal.  Made and run while we are `alone`."""

    def __init__(self, layout: Layout, words: argparse.Namespace) -> None:
        self.layout, self.words = layout, words
        path = layout.library / LEDGER
        ledger = Ledger.read(path)
        if ledger is None:
            raise Refused(f"fastcopy is not installed in {layout.library}: {path} is missing (see --one-location)")
        self.ledger = ledger
        self.kept: List[str] = []

    # -- who still uses it -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """`Refused` while somebody uses the driver, or oned cannot be asked; unless it is down, and that was said."""
        try:
            found = usage.ask(self._oned())
        except FastcopyError as error:
            if not (self.words.oned_is_down and isinstance(error, NoAnswer)):
                advice = "Start it, or say --oned-is-down to go on unchecked" if isinstance(error, NoAnswer) else ""
                end = "" if str(error).endswith("?") else "."
                raise Refused(
                    f"{error}{end} Nothing was removed: without oned nobody knows whether datastores or VMs still use "
                    f"fastcopy. {advice}".strip()
                ) from error
            print("NOT CHECKED: whether datastores or VMs still use fastcopy; oned does not answer. Those that do will")
            print("fail with their next action, until the driver is installed again. Their disks are not touched.")
            return
        users = []
        if found.datastores:
            users.append(f"datastores {_some(found.datastores)} (onedatastore update: TM_MAD)")
        if found.vms:
            users.append(f"VMs {_some(found.vms)} (a VM keeps the driver that it was created with)")
        if users:
            by = " and by ".join(users)
            raise Refused(f"fastcopy is still used by {by}. Nothing was removed; see docs/OPERATIONS.md")
        print("no datastore and no VM uses fastcopy")
        if found.allowing:
            print(f"datastores {_some(found.allowing)} still name it in TM_MAD_SYSTEM: when oned was restarted, save")
            print("them once with onedatastore update")

    def _oned(self) -> Oned:
        user = self.ledger.user or "oneadmin"
        home = pwd.getpwnam(user).pw_dir if os.geteuid() == 0 else os.environ.get("HOME", "/")
        environ = {**os.environ, **self.layout.environ, "HOME": home}
        return Oned.of(environ, Places.of(environ).auth)

    # -- taking away -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Check, and remove; or show it."""
        self.check()
        undone = configuration.unedited(self.layout, self.ledger)
        if self.words.dry_run:
            self._show(undone)
            return 0
        for edited, by_hand in undone:
            if edited.diff:
                print(f"edit {edited.path}:")
                print(edited.diff, end="")
            self.kept += [f"{path} (a backup)" for path in configuration.unedit(edited, self.ledger)]
            show_by_hand(edited.path, by_hand)
        self._end_daemon()
        for path in self._put():
            if self.ledger.is_ours(path):
                path.unlink()
            elif os.path.lexists(path):
                self.kept.append(f"{path} (changed since)")
        for name in reversed(self.ledger.directories):
            self._remove_directory(Path(name))
        for path in self._logs():
            print(f"remove {path}")
            remove(path)
        state = self.layout.places.state
        if os.path.lexists(state):
            print(f"remove {state}")
            left = clear(state, self._uid())
            self.kept += [left] if left else []
        print(f"remove {self.layout.library}")
        ledger = self.layout.library / LEDGER
        for path in self.layout.library.iterdir():
            if path != ledger:
                remove(path)
        remove(ledger)  # last: as long as it is there, this can be repeated
        self.layout.library.rmdir()
        self._tell(any(edited.diff for edited, _ in undone))
        return 0

    def _logs(self) -> List[Path]:
        """The driver's log, and what logrotate has made of it."""
        log = self.layout.places.log
        return sorted(log.parent.glob(f"{log.name}*"))

    def _uid(self) -> int:
        """Of the user that oned, and the driver, run as; our own if there is no such user any more."""
        try:
            return pwd.getpwnam(self.ledger.user or "oneadmin").pw_uid
        except KeyError:
            return os.geteuid()

    def _show(self, undone: Sequence[Tuple[configuration.Edited, List[Hand]]]) -> None:
        for edited, by_hand in undone:
            if edited.diff:
                print(f"would edit {edited.path}:")
                print(edited.diff, end="")
            show_by_hand(edited.path, by_hand)
        for path in self._put():
            if os.path.lexists(path):
                changed = not self.ledger.is_ours(path)
                print(f"would {'keep' if changed else 'remove'} {path}{', which was changed' if changed else ''}")
        state = self.layout.places.state
        if os.path.lexists(state):
            print(f"would {'empty' if state.is_mount() else 'remove'} {state}")
        for path in [*self._logs(), self.layout.library]:
            print(f"would remove {path}")

    def _put(self) -> List[Path]:
        """All links and files that we put there.  After an interrupted upgrade one may be in both tables."""
        return [Path(name) for name in dict.fromkeys([*self.ledger.links, *self.ledger.files])]

    def _remove_directory(self, path: Path) -> None:
        try:
            path.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            if not any(name.startswith(f"{path}/") for name in self.kept):
                self.kept.append(f"{path} (there are other files in it)")

    def _end_daemon(self) -> None:
        if self.layout.system_files and Path("/run/systemd/system").is_dir():
            subprocess.run(["systemctl", "disable", "--now", _UNIT], check=False, stderr=subprocess.DEVNULL)
        pid = daemon(self.layout.places.state / f"daemon-{os.uname().nodename}.sock")
        if pid is None:
            return
        print(f"end the daemon, process {pid}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + _ENDING
        while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
            time.sleep(0.05)

    def _tell(self, edited: bool) -> None:
        if self.layout.system_files:
            tell_systemd()
        print("\nfastcopy is removed from this front-end.")
        for name in self.kept:
            print(f"  kept: {name}")
        if edited:
            print("  oned still has the old configuration: restart it (systemctl restart opennebula)")
        print("  onehost sync --force takes the probe from the hosts. They keep cached images in .fastcopy beside")
        print("  their datastores, and the agent in ~oneadmin/.cache/fastcopy: both can be deleted.")


def remove(path: Path) -> None:
    """Remove a file, a link or a tree."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def clear(path: Path, owner: int) -> str:
    """Remove a directory of the driver's with all that is in it; what is then left to an administrator, and why.

    An administrator may have made it a mount, or a link to a directory elsewhere: then the contents go.  Through a link
    they go only if that directory belongs to *owner* (a number): the link lies where the user that oned runs as may
    write, and root would empty any directory for it.
    """
    linked, target = path.is_symlink(), Path(os.path.realpath(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        path.unlink()
        return ""
    try:
        if linked and os.fstat(fd).st_uid != owner:
            path.unlink()
            return f"{target} (not emptied, for it belongs to another user: {path} was a link to it)"
        # Through the descriptor: what was looked at, whatever the name leads to by now.
        mounts = [name for name in os.listdir(fd) if _busy(remove, Path(f"/proc/self/fd/{fd}", name))]
    finally:
        os.close(fd)
    if mounts:
        return f"{target / mounts[0]} ({_MOUNT})"
    if linked:
        path.unlink()
        return f"{target} (empty: {path} was a link to it)"
    return f"{target} ({_MOUNT})" if _busy(os.rmdir, path) else ""


def _busy(removing: Callable[[Path], None], path: Path) -> bool:
    """Remove *path*; whether it, or something in it, cannot go because it is a mount."""
    try:
        removing(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


def daemon(path: Path) -> Optional[int]:
    """The process that serves the socket at *path*, if it is our daemon."""
    with socket.socket(socket.AF_UNIX) as connection:
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.chdir(path.parent)  # sun_path holds 108 bytes
            connection.settimeout(5)
            connection.connect(path.name)
            pid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return None
        finally:
            os.fchdir(here)
            os.close(here)
    return pid if b"tm_fastcopy.frontend.daemon" in words else None


def _some(names: List[str]) -> str:
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="uninstall.sh",
        description="Removes the TM driver fastcopy from an OpenNebula front-end, if nothing uses it any more.",
        epilog="Disks and images are not touched.  docs/OPERATIONS.md says how to switch datastores to another driver.",
    )
    add_one_location(parser)
    parser.add_argument("--dry-run", action="store_true", help="change nothing; show what would be done")
    text = "go on if oned does not answer: whether anything still uses the driver is then not checked"
    parser.add_argument("--oned-is-down", action="store_true", help=text)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Remove; return the exit code."""
    words = arguments(argv)
    layout = Layout.of(words.one_location)
    if not os.access(layout.library.parent, os.W_OK) and not words.dry_run:
        raise Refused(f"you may not write to {layout.library.parent}: run this as root")
    with alone(layout.library):
        return Uninstaller(layout, words).run()


if __name__ == "__main__":
    sys.exit(report("uninstall.sh", lambda: main(sys.argv[1:])))
