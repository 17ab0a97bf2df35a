"""The two files of OpenNebula's that are edited, and how: read, diff, backup, replace, and back again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Mapping, Optional, Sequence, Tuple

from ..core.errors import FastcopyError
from . import execrc, onedconf
from .conftext import MAX_FILE
from .edits import Hand, Plan, diff
from .layout import Layout
from .ledger import Ledger, create, digest, replace, settle

Undo = Callable[[str, Sequence[Mapping[str, str]]], Tuple[str, List[Hand]]]


@dataclass(frozen=True)
class Edited:
    """A file as it is and as it is to be, and how edits of its kind are taken back."""

    path: Path
    before: str
    after: str
    plan: Plan
    undo: Undo

    @property
    def diff(self) -> str:
        """What is to change."""
        return diff(str(self.path), self.before, self.after)


def planned(layout: Layout, image_tm: Sequence[str], threads: Optional[int]) -> List[Edited]:
    """What the driver needs in oned.conf and vmm_execrc."""
    found = []
    for path, plan, undo in (
        (layout.oned_conf, lambda text: onedconf.plan(text, image_tm, threads), onedconf.undo),
        (layout.vmm_execrc, execrc.plan, execrc.undo),
    ):
        if path.exists():
            text = _text(_read(path))
            made: Plan = plan(text)
            found.append(Edited(path, text, made.apply(text), made, undo))
        else:
            nothing = Plan(by_hand=[Hand(f"there is no {path}", f'{execrc.VARIABLE}="{" ".join(execrc.PAIRS)}"')])
            found.append(Edited(path, "", "", nothing, undo))
    return found


def edit(edited: Edited, ledger: Ledger, ledger_path: Path) -> Path:
    """Make the edits, and return the backup.  What is written down goes first: an edit that was not made is not found
    when it is to be taken back, and that is all."""
    path = edited.path.resolve()
    content = _read(path)
    if _text(content) != edited.before:
        raise FastcopyError(f"{path} was changed just now by somebody else: run this again")
    records = ledger.edits.setdefault(str(edited.path), [])
    for change in sorted(edited.plan.edits, key=lambda change: change.at):
        if change.record() not in records:
            records.append(change.record())
    backup = _backup(path, content)
    ledger.backups.setdefault(str(edited.path), {})[str(backup)] = digest(content)
    ledger.write(ledger_path)
    replace(path, _bytes(edited.after), 0, like=path)
    return backup


def forget(files: Sequence[Edited], ledger: Ledger) -> bool:
    """Drop the records of what is not in the files any more (an administrator has taken it out, or a package has
    brought another file), so that they are not taken for something else later.  Whether there were any."""
    dropped = False
    for edited in files:
        records = ledger.edits.get(str(edited.path), [])
        nothing: Tuple[str, List[Hand]] = (edited.before, [])
        needed = [record for record in records if edited.undo(edited.before, [record]) != nothing]
        if edited.path.exists() and needed != records:
            ledger.edits[str(edited.path)] = needed
            dropped = True
    return dropped


def unedited(layout: Layout, ledger: Ledger) -> List[Tuple[Edited, List[Hand]]]:
    """The files without our edits, as far as they are there; and where they name the driver even so, for an
    administrator: he has changed what we put in, or written it himself."""
    found = []
    for path, undo, left in ((layout.oned_conf, onedconf.undo, onedconf.left), (layout.vmm_execrc, execrc.undo, None)):
        if path.exists():
            text = _text(_read(path))
            after, by_hand = undo(text, ledger.edits.get(str(path), []))
            named = {_place(hand) for hand in by_hand}
            by_hand += [hand for hand in (left(after) if left else []) if _place(hand) not in named]
            found.append((Edited(path, text, after, Plan(), undo), by_hand))
    return found


def _place(hand: Hand) -> str:
    """What a hand is about, without the line: that has moved with what was taken out."""
    return hand.why.split(" (line")[0]


def unedit(edited: Edited, ledger: Ledger) -> List[Path]:
    """Take the edits back; the backups that stay.  One that says what the file says now is not needed any more."""
    path = edited.path.resolve()
    known = ledger.backups.get(str(edited.path), {})
    after = _bytes(edited.after)
    if edited.after != edited.before:
        if digest(after) not in known.values():
            before = _bytes(edited.before)
            known[str(_backup(path, before))] = digest(before)
        replace(path, after, 0, like=path)
    kept = []
    for name, said in known.items():
        backup = Path(name)
        if said == digest(after) and backup.exists() and digest(backup.read_bytes()) == said:
            backup.unlink()
        elif backup.exists():
            kept.append(backup)
    return kept


def _backup(path: Path, content: bytes) -> Path:
    """Write *content*, which *path* has, beside it under a name that nobody else has."""
    stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    for attempt in range(100):
        backup = path.with_name(f"{path.name}.before-fastcopy-{stamp}" + (f"-{attempt}" if attempt else ""))
        try:
            create(backup, content, 0, like=path)
        except FileExistsError:
            continue
        settle(path.parent)
        return backup
    raise FastcopyError(f"there are too many backups of {path}")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise FastcopyError(f"{path} is larger than {MAX_FILE} bytes: it is something else")
    return content


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")  # any bytes, and the same ones back


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
