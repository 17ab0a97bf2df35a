"""vmm_execrc: the list of drivers whose disks can be snapshotted while their VM runs, and its edit.

The file holds shell assignments; LIVE_DISK_SNAPSHOTS is a list of `<hypervisor>-<TM driver>`, separated by blanks.
"""

from __future__ import annotations

import re
from typing import List, Mapping, Sequence, Tuple

from .edits import Edit, Hand, Plan, take_out

VARIABLE = "LIVE_DISK_SNAPSHOTS"
PAIRS = ("kvm-fastcopy", "qemu-fastcopy", "lxc-fastcopy")
_MENTION = re.compile(rf"^[ \t]*(?:export[ \t]+)?{VARIABLE}=", re.MULTILINE)
_PLAIN = re.compile(r"(?P<quote>[\"'])(?P<list>[A-Za-z0-9_. \t\r\n-]*)(?P=quote)[ \t]*(?:#[^\n]*)?\r?(?:\n|\Z)")


def plan(text: str) -> Plan:
    """What is to be done to *text*."""
    made = Plan()
    found = list(_MENTION.finditer(text))
    line = f'{VARIABLE}="... {" ".join(PAIRS)}"'
    if not found:
        newline = "\r\n" if "\r\n" in text else "\n"
        lead = newline if text and not text.endswith("\n") else ""
        made.edits.append(Edit("live", len(text), f'{lead}{VARIABLE}="{" ".join(PAIRS)}"{newline}'))
        return made
    plain = _PLAIN.match(text, found[-1].end())
    if len(found) > 1 or not plain:
        why = f"sets {VARIABLE} {len(found)} times" if len(found) > 1 else f"sets {VARIABLE} in a way not known here"
        made.by_hand.append(Hand(f"vmm_execrc {why}", line))
        return made
    listed = plain["list"]
    lacking = [pair for pair in PAIRS if pair not in listed.split()]
    if lacking:
        at = plain.start("list") + len(listed.rstrip())
        made.edits.append(Edit("live", at, (" " if listed.strip() else "") + " ".join(lacking)))
    else:
        made.present.append(f"{VARIABLE} names {', '.join(PAIRS)}")
    return made


def undo(text: str, records: Sequence[Mapping[str, str]]) -> Tuple[str, List[Hand]]:
    """*text* without the edits of *records*, and what is left to an administrator."""
    for record in reversed(records):
        inserted = record["inserted"]
        if VARIABLE in inserted:
            if inserted in text:
                at = text.rfind(inserted)
                text = text[:at] + text[at + len(inserted) :]
                continue
            inserted = " ".join(PAIRS)
        for mention in _MENTION.finditer(text):
            plain = _PLAIN.match(text, mention.end())
            if plain:
                text = take_out(text, plain.start("list"), plain.end("list"), inserted, inserted.split(), r"\s+")
                break
    left = [line for line in text.splitlines() if not line.lstrip().startswith("#") and "-fastcopy" in line]
    return text, [Hand("vmm_execrc still names fastcopy: take it out of this line", line) for line in left]
