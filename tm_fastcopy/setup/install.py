"""install.sh: installs the driver beside OpenNebula's own, or renews it; a second run changes nothing.

Every step is a `Change`: what it would do, as a line, and the doing.  A dry run shows the lines.  Steps that find their
work done make no change, so an installation that was interrupted is completed by the next one.
"""

from __future__ import annotations

import argparse
import functools
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List, MutableMapping, NamedTuple, Sequence

from .. import __version__
from ..core.errors import FastcopyError, Refused
from . import configuration, release, wheels
from .edits import Hand
from .layout import Layout
from .ledger import LEDGER, Ledger, link, own, replace
from .lock import alone

IMAGE_TM = ("shared", "qcow2")
ACTIONS = (
    "clone", "ln", "mvds", "mv", "cpds", "delete", "resize",
    "snap_create", "snap_create_live", "snap_delete", "snap_revert",
)  # fmt: skip
"""What oned asks an image datastore's driver for with a system datastore's name behind it (TransferManager.cc)."""


ADAPTED = ("fastcopyd.service", "fastcopy.logrotate")
"""Files of the system that an administrator may adapt; what he has changed is left."""


class Change(NamedTuple):
    """One thing to be done."""

    text: str
    do: Callable[[], None]


class Installer:
    """One installation: *layout*, and the wishes of the command line.  Made and run while we are `alone`."""

    def __init__(self, layout: Layout, words: argparse.Namespace) -> None:
        self.layout, self.words = layout, words
        self.path = layout.library / LEDGER
        self.ledger = Ledger.read(self.path) or Ledger()
        self.user = words.user or self.ledger.user or "oneadmin"
        try:
            pwd.getpwnam(self.user)
        except KeyError:
            raise Refused(f"there is no user {self.user}: name the one that oned runs as (--user)") from None
        self.left: List[str] = []
        self.replaced: List[Callable[[], object]] = []
        self.image_tm = sorted({*self.ledger.image_tm, *words.image_tm})
        self.wanted = release.Wanted(sys.executable, self.user, words.wheelhouse, tuple(words.hosts), words.renew)
        self.renew = words.renew or not release.up_to_date(layout, self.wanted)

    # -- what there is to do -----------------------------------------------------------------------------------------

    def changes(self) -> Iterator[Change]:
        """Everything but oned's configuration, in the order in which it must be done: first the code, then what calls
        it."""
        if self.renew:
            house = self.words.wheelhouse
            origin = f"with wheels from {house}" if house else "with packages from the network"
            before = release.read_stamp(self.layout.current)
            instead = f", instead of {before['version']}" if before else ""
            yield Change(f"make a release of {__version__} in {self.layout.releases}, {origin}{instead}", self._release)
        elif release.links_missing(self.layout):
            yield Change(f"mend the links in {self.layout.library}", self._links)
        for name, path in self.layout.system_files.items():
            if path.parent.is_dir():
                text = self.layout.render((wheels.sources() / "install" / name).read_text(), self.user)
                changed = str(path) in self.ledger.files and os.path.lexists(path) and not self.ledger.is_ours(path)
                if changed and name in ADAPTED:
                    self.left.append(f"{path} was changed, and is left as it is: {self.layout.library}/share/{name}")
                else:
                    yield from self._file(path, text.encode(), _mode(path) if name in ADAPTED else 0o644)
        yield from self._configuration()
        yield from self._remotes()
        for tm in self.image_tm:
            yield from self._image_actions(tm)
        yield from self._file(self.layout.command, self.layout.script.encode(), 0o755)
        yield from self._gone()
        for path in [] if self.renew else release.superfluous(self.layout):
            yield Change(f"remove the old release {path}", functools.partial(shutil.rmtree, path))

    def _release(self) -> None:
        made = release.build(self.layout, self.wanted, lambda text: print(f"  {text}"))
        release.switch(self.layout, made)
        for path in release.superfluous(self.layout):
            print(f"  removing the old release {path}")
            shutil.rmtree(path)

    def _links(self) -> None:
        release.switch(self.layout, self.layout.current.resolve())

    def _verb(self, path: Path) -> str:
        """What is done to *path*.  `Refused` if what is there is not ours; ours, if it was changed, is replaced, and
        that said.  It may have been a link, and become a file, or the other way."""
        if not os.path.lexists(path):
            return "write"
        if not self.ledger.is_known(path) or (path.is_dir() and not path.is_symlink()):
            raise Refused(f"{path} is there, and was not put there by this installer: move it away")
        return "renew" if self.ledger.is_ours(path) else "replace, though it was changed,"

    def _file(self, path: Path, content: bytes, mode: int) -> Iterator[Change]:
        """Have this file there."""
        verb = self._verb(path)
        self.ledger.add_file(path, content)
        self._not_any_more(self.ledger.links, path)
        there = path.is_file() and not path.is_symlink() and path.read_bytes() == content
        if not there or path.stat().st_mode & 0o777 != mode:
            yield Change(f"{verb} {path}", lambda: replace(path, content, mode))

    def _link(self, path: Path, target: str) -> Iterator[Change]:
        """Have this link there."""
        self._verb(path)
        self.ledger.links[str(path)] = target
        self._not_any_more(self.ledger.files, path)
        if not path.is_symlink() or os.readlink(path) != target:
            yield Change(f"link {path} to {target}", lambda: link(path, target))

    def _not_any_more(self, table: MutableMapping[str, Any], path: Path) -> None:
        """What *table* says of *path* goes from the ledger, but only when all is done: until then it may be there."""
        if str(path) in table:
            self.replaced.append(lambda: table.pop(str(path)))

    def _configuration(self) -> Iterator[Change]:
        """The administrator's file: made if it is missing, renewed as long as it is what we put there."""
        path, content = self.layout.configuration, (wheels.sources() / "install" / "fastcopy.yaml").read_bytes()
        if os.path.lexists(path) and not self.ledger.is_ours(path):
            return
        yield from self._directory(path.parent.parent)
        yield from self._directory(path.parent)
        yield from self._file(path, content, _mode(path))

    def _remotes(self) -> Iterator[Change]:
        """Entry points, one by one and each in one step: at no time is one missing.  What they mean to each other (the
        words of client.py) does not change between versions."""
        target = self.layout.remotes / "tm" / "fastcopy"
        yield from self._directory(target)
        source = Path(__file__).resolve().parent.parent / "remotes"
        for path in sorted(source.iterdir(), key=lambda path: (path.is_symlink(), path.name)):
            if path.is_symlink():
                yield from self._link(target / path.name, os.readlink(path))
            elif path.is_file():
                yield from self._file(target / path.name, path.read_bytes(), path.stat().st_mode & 0o755 | 0o644)

    def _image_actions(self, tm: str) -> Iterator[Change]:
        directory = self.layout.remotes / "tm" / tm
        if not directory.is_dir():
            raise Refused(f"--image-tm {tm}: there is no {directory}")
        content = (wheels.sources() / "install" / "fastcopy-action").read_bytes()
        changes = [change for name in ACTIONS for change in self._file(directory / f"{name}.fastcopy", content, 0o755)]
        if changes:
            yield Change(f"write {len(changes)} actions (*.fastcopy) in {directory}", lambda: do_all(changes))

    def _directory(self, path: Path) -> Iterator[Change]:
        if not path.is_dir():
            if str(path) not in self.ledger.directories:
                self.ledger.directories.append(str(path))
            yield Change(f"make {path}", lambda: make_directory(path))

    def _gone(self) -> Iterator[Change]:
        """What an older version had in remotes and this one has not."""
        target = self.layout.remotes / "tm" / "fastcopy"
        source = Path(__file__).resolve().parent.parent / "remotes"
        for name in [*self.ledger.files, *self.ledger.links]:
            path = Path(name)
            if path.parent == target and not os.path.lexists(source / path.name) and os.path.lexists(path):
                yield Change(f"remove {path}, which {__version__} does not have", path.unlink)

    # -- doing it ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Do it, or show it."""
        edited = configuration.planned(self.layout, self.image_tm, self.words.threads)
        changes = list(self.changes())
        if self.words.dry_run:
            for change in changes:
                print(f"would {change.text}")
        elif changes or (self.words.enable and any(item.diff for item in edited)):
            self._do(changes)
        for what in self.left:
            print(f"{what} is this version's")
        if not changes:
            print(f"fastcopy {__version__} is installed in {self.layout.library}: nothing to change there")
        edits = self._configure(edited)
        if not self.words.dry_run:
            self._lacking()
            self._next(bool(changes), edits)
        return 0

    def _do(self, changes: List[Change]) -> None:
        self.ledger.version, self.ledger.user, self.ledger.image_tm = __version__, self.user, self.image_tm
        for path in (self.layout.library, self.layout.releases):
            if not path.is_dir():
                make_directory(path)
        self.ledger.write(self.path)
        for change in changes:
            print(change.text)
            change.do()
        if self.replaced:
            for forget in self.replaced:
                forget()
            self.ledger.write(self.path)
        if changes and self.layout.system_files:
            tell_systemd()

    def _lacking(self) -> None:
        """The kinds of hosts that cannot be served."""
        names = release.lacking(self.layout, self.wanted)
        if names:
            print(f"\nThere are no wheels for hosts with {', '.join(names)}: install.sh --renew fetches them,")
            print("or takes them from a --wheelhouse that has them. --hosts names the kinds of hosts that you have.")

    def _next(self, changed: bool, edited: bool) -> None:
        """What an administrator does now."""
        if changed or edited:
            print(f"\nfastcopy {__version__} is installed in {self.layout.library}. Next:")
        if edited:
            print("  systemctl restart opennebula    oned reads its configuration when it starts")
        if changed:
            print(f"  onehost sync --force            as {self.user}: brings the driver's probe to the hosts")
            if self.layout.one:
                print(f"  {self.layout.library}/share has a unit for systemd and rules for logrotate, if you want them")
            else:
                print("  systemctl enable --now fastcopyd    if the daemon shall always run; calls start it otherwise")
            print(f"  {self.layout.command} doctor    looks whether everything is as it must be")

    def _configure(self, edited: List[configuration.Edited]) -> bool:
        """Make the edits, with --enable; show them in a dry run; say what is left in every case.  Whether any was made.
        """
        pending = [item for item in edited if item.diff]
        changed = False
        forgotten = self.words.enable and not self.words.dry_run and configuration.forget(edited, self.ledger)
        if forgotten:
            self.ledger.write(self.path)
        for item in pending:
            if self.words.dry_run:
                print(f"\nwould edit {item.path}{'' if self.words.enable else ', with --enable'}:")
                print(item.diff, end="")
            elif self.words.enable:
                print(f"edit {item.path}:")
                print(item.diff, end="")
                print(f"the file as it was: {configuration.edit(item, self.ledger, self.path)}")
                changed = True
        if pending and not self.words.enable and not self.words.dry_run:
            names = " and ".join(str(item.path) for item in pending)
            print(f"\n{names} do not name fastcopy yet: --enable --dry-run shows what is to change, --enable does it")
        for item in edited:
            for advice in item.plan.advice:
                print(f"\nAdvice: {advice}")
            show_by_hand(item.path, item.plan.by_hand)
        if not pending and not any(item.plan.by_hand for item in edited):
            print("oned.conf and vmm_execrc name fastcopy: nothing to change there")
        return changed


def _mode(path: Path) -> int:
    """Of a file that is an administrator's, too: as he has it."""
    return path.stat().st_mode & 0o777 if path.exists() else 0o644


def tell_systemd() -> None:
    """Have systemd read its units anew, where it runs."""
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "daemon-reload"], check=False)


def show_by_hand(path: Path, by_hand: Sequence[Hand]) -> None:
    """Say what is left to an administrator in a file."""
    for hand in by_hand:
        print(f"\nTo be done by hand in {path}: {hand.why}")
        print("".join(f"    {line}\n" for line in hand.lines.splitlines()), end="")


def do_all(changes: List[Change]) -> None:
    """Do them."""
    for change in changes:
        change.do()


def make_directory(path: Path) -> None:
    """Make a directory that belongs to whom its parent belongs to.  Its mode comes from the umask, which
    `install/command` sets: a chmod would follow a link."""
    path.mkdir(mode=0o755)
    own(path, path.parent)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="install.sh",
        description="Installs the TM driver fastcopy on an OpenNebula front-end, or renews it.",
        epilog="examples:\n"
        "  install/install.sh --dry-run                    what would be done, and the diff of oned.conf\n"
        "  install/install.sh --enable                     OpenNebula from packages\n"
        "  install/install.sh --one-location /srv/one      a self-contained OpenNebula\n"
        "  install/install.sh --wheelhouse /media/stick    without a network; see install/wheels.sh --help\n"
        "  install/install.sh --enable --image-tm shared,qcow2 --threads 30\n\n"
        "Without --enable nothing of OpenNebula's own is touched.  docs/OPERATIONS.md has the whole story.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_one_location(parser)
    parser.add_argument("--wheelhouse", type=Path, metavar="DIR", help="take packages from DIR and use no network")
    parser.add_argument("--dry-run", action="store_true", help="change nothing; show what would be done")
    parser.add_argument("--enable", action="store_true", help="edit oned.conf and vmm_execrc, so that oned knows it")
    parser.add_argument("--user", help="the user that oned runs as (default: as said the last time, or oneadmin)")
    text = "image datastores of these drivers may go with system datastores of fastcopy: shared, qcow2"
    parser.add_argument("--image-tm", default="", metavar="LIST", help=text)
    parser.add_argument("--threads", type=int, metavar="N", help="transfers that one_tm runs at once (its -t)")
    text = f"Pythons of hosts, as in cp39-x86_64,cp311-x86_64 (default: {' and '.join(wheels.MACHINES)}, 3.9 to 3.14)"
    parser.add_argument("--hosts", default=",".join(wheels.all_tags()), metavar="LIST", help=text)
    parser.add_argument("--renew", action="store_true", help="make a new release even if nothing changed")
    words = parser.parse_args(argv)
    words.image_tm = [name.strip() for name in words.image_tm.split(",") if name.strip()]
    words.hosts = [name.strip() for name in words.hosts.split(",") if name.strip()]
    for name in words.hosts:
        wheels.split(name)
    for name in words.image_tm:
        if name not in IMAGE_TM:
            raise Refused(f"--image-tm {name}: it knows {' and '.join(IMAGE_TM)}")
    if words.threads is not None and not 1 <= words.threads <= 1000:
        raise Refused("--threads must be a number from 1 to 1000")
    if words.wheelhouse is not None:
        words.wheelhouse = words.wheelhouse.resolve()
        if not any(words.wheelhouse.glob("*.whl")):
            raise Refused(f"--wheelhouse {words.wheelhouse} holds no wheels: install/wheels.sh makes one")
    return words


def add_one_location(parser: argparse.ArgumentParser) -> None:
    """The option that says which OpenNebula."""
    text = "where a self-contained OpenNebula is (default: $ONE_LOCATION; without it: OpenNebula from packages)"
    parser.add_argument("--one-location", default=os.environ.get("ONE_LOCATION", ""), metavar="DIR", help=text)


def main(argv: Sequence[str]) -> int:
    """Install; return the exit code."""
    words = arguments(argv)
    layout = Layout.of(words.one_location)
    parent = layout.library.parent
    if not os.access(parent, os.W_OK) and not words.dry_run:
        raise Refused(f"you may not write to {parent}: run this as root")
    with alone(layout.library):
        return Installer(layout, words).run()


def report(name: str, work: Callable[[], int]) -> int:
    """Run a command; what goes wrong is one sentence."""
    try:
        return work()
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run it again to complete it", file=sys.stderr)
    except (FastcopyError, OSError, subprocess.TimeoutExpired) as error:
        print(f"{name}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(report("install.sh", lambda: main(sys.argv[1:])))
