"""The configuration file: its keys, the text of their values, and the lines where they stand.

YAML's events are read as they come, and no object is made of them: there is nothing that a tag could construct or an
alias could multiply, `no` and `010` are the texts that were written, and every value has its line.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterator, List, NamedTuple, Optional

from ..core.errors import Refused, classify

if TYPE_CHECKING:
    import yaml  # 15 ms: only who has a file with something in it pays for it

MAX_FILE = 64 * 1024  # bytes; the default file with all its comments has 4 KiB
_DEEPEST = 2  # `cache: { enable: ... }`: settings have names of two words at most


class Entry(NamedTuple):
    """A value as it is written, and its line, counted from 1."""

    text: str
    line: int


def read(path: Path) -> Dict[str, Entry]:
    """The file's entries by dotted name, none if there is no file; `FastcopyError` if it cannot be used."""
    raw = _content(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Refused(f"{path}, line {line}: this is not UTF-8 text") from error
    return entries(text, str(path))


def _content(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not stop us
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise classify(error, f"the configuration {path} cannot be read") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused(f"the configuration {path} is not a file")
        with open(fd, "rb", closefd=False) as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise classify(error, f"the configuration {path} cannot be read") from error
    finally:
        os.close(fd)
    if len(raw) > MAX_FILE:
        raise Refused(f"the configuration {path} is larger than {MAX_FILE // 1024} KiB: it is something else")
    return raw


def entries(text: str, place: str) -> Dict[str, Entry]:
    """The entries of a YAML text; *place* is its name in errors.  `Refused` names the line."""
    if all(line.lstrip()[:1] in ("", "#") for line in text.splitlines()):
        return {}  # comments only, as it is installed: not worth the import
    import yaml

    try:
        return _entries(yaml.parse(text, Loader=yaml.SafeLoader), place)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise Refused(f"{place}{line}: this is not YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:  # a character that YAML does not allow, found before any line is read
        raise Refused(f"{place}, line {text.count(chr(10), 0, error.position) + 1}: this is not YAML: "
                      f"there is a control character") from error  # fmt: skip


def _entries(events: Iterator[yaml.Event], place: str) -> Dict[str, Entry]:
    import yaml

    found: Dict[str, Entry] = {}
    inside: List[str] = []  # what goes before the keys of the mappings that are open
    key: Optional[str] = None
    documents = 0
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else 0
        where = f"{place}, line {line}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise Refused(f"{where}: anchors (&), aliases (*) and tags (!) are not used here; put the text in quotes")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise Refused(f"{where}: a second document begins here; there must be one")
        elif isinstance(event, yaml.SequenceStartEvent):
            raise Refused(f"{where}: a list begins here; no setting has one")
        elif isinstance(event, yaml.MappingStartEvent):
            if len(inside) == _DEEPEST or (inside and key is None):
                raise Refused(f"{where}: no setting is nested like this")
            inside.append(f"{inside[-1]}{key}." if inside else "")
            key = None
        elif isinstance(event, yaml.MappingEndEvent):
            inside.pop()
        elif isinstance(event, yaml.ScalarEvent):
            if not inside:
                if event.value:
                    raise Refused(f"{where}: {event.value[:80]!r} is not of the form NAME: VALUE")
            elif key is None:
                key = event.value
            else:
                name, key = f"{inside[-1]}{key}", None
                if name in found:
                    raise Refused(f"{where}: {name[:80]!r} stands on line {found[name].line} already")
                found[name] = Entry(event.value, line)
    return found
