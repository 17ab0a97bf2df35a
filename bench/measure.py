"""What a copy had to do, counted from the files themselves, and the table it is shown in.

Everything here reads only what is data in a file, so that 4 GiB with 0.8 GB in them take a second or two.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Iterator, List, Sequence, Tuple

from bench.images.extents import data_runs

BLOCK = 4096
_READ = 4 * 1024 * 1024  # at once; a multiple of every chunk size up to this


def sha256(path: Path) -> str:
    """The SHA-256 of the file's content as hexadecimal digits; holes are not read but fed as zeros."""
    digest = hashlib.sha256()
    zeros = bytes(_READ)
    with path.open("rb", buffering=0) as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        position = 0
        for start, length in [*data_runs(fd, size), (size, 0)]:
            for offset in range(position, start, _READ):
                digest.update(memoryview(zeros)[: start - offset])
            for offset in range(start, start + length, _READ):
                digest.update(_read(fd, offset, min(_READ, start + length - offset)))
            position = start + length
    return digest.hexdigest()


def changed_chunks(old: Path, new: Path, chunk_size: int, *, count_zeros: bool = True) -> Tuple[int, int]:
    """How many chunks of `new` differ from `old` at the same offset, and their bytes.

    Beyond its end `old` counts as zeros; the last chunk of `new` may be short. With `count_zeros` False,
    chunks that became all zero are left out: a copy of them needs no bytes on the wire, so this is the
    stricter yardstick. Raises ValueError for a chunk size that is not positive.
    """
    if chunk_size < 1:
        raise ValueError(f"a chunk of {chunk_size} bytes")
    chunks = 0
    total = 0
    with old.open("rb", buffering=0) as before, new.open("rb", buffering=0) as after:
        size = os.fstat(after.fileno()).st_size
        for start, end in _to_compare(before.fileno(), after.fileno(), size, chunk_size):
            for content in _differing(before.fileno(), after.fileno(), start, end, chunk_size):
                if count_zeros or content.count(0) != len(content):
                    chunks += 1
                    total += len(content)
    return chunks, total


def changed_blocks(old: Path, new: Path, block: int = BLOCK, *, count_zeros: bool = True) -> int:
    """The bytes of all blocks of `new` that differ from `old`: the least that a delta must carry."""
    return changed_chunks(old, new, block, count_zeros=count_zeros)[1]


def _to_compare(old: int, new: int, size: int, unit: int) -> Iterator[Tuple[int, int]]:
    """The (start, end) ranges, in whole units, in which one of the two has data: elsewhere both are zero."""
    runs = sorted([*data_runs(old, min(size, os.fstat(old).st_size)), *data_runs(new, size)])
    current_start, current_end = 0, 0
    for offset, length in runs:
        start = offset // unit * unit
        end = min(-(-(offset + length) // unit) * unit, size)
        if start > current_end:
            if current_end > current_start:
                yield current_start, current_end
            current_start = start
        current_end = max(current_end, end)
    if current_end > current_start:
        yield current_start, current_end


def _differing(old: int, new: int, start: int, end: int, unit: int) -> Iterator[bytes]:
    """The content of each unit of `new` between `start` and `end` that differs from `old`."""
    step = max(unit, _READ // unit * unit)
    for offset in range(start, end, step):
        length = min(step, end - offset)
        was, now = _read(old, offset, length), _read(new, offset, length)
        if was == now:  # the common case, and one memcmp
            continue
        for at in range(0, length, unit):
            if was[at : at + unit] != now[at : at + unit]:
                yield now[at : at + unit]


def _read(fd: int, offset: int, length: int) -> bytes:
    """Exactly `length` bytes, with zeros for what lies beyond the end of the file."""
    pieces: List[bytes] = []
    missing = length
    while missing:
        piece = os.pread(fd, missing, offset)
        if not piece:
            pieces.append(bytes(missing))
            break
        pieces.append(piece)
        offset += len(piece)
        missing -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def size_text(count: int) -> str:
    """A number of bytes as people read it, in powers of 1024."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1023.95 or unit == "GiB":
            break
    return f"{value:.1f} {unit}"


class Table:
    """Rows under headings, rendered as plain text by `rich`. Numbers stand to the right."""

    def __init__(self, *headings: str, title: str = "", text_columns: Sequence[int] = (0,)) -> None:
        self.headings = headings
        self.title = title
        self.text_columns = tuple(text_columns)
        self.rows: List[Tuple[str, ...]] = []

    def add(self, *cells: object) -> None:
        """Add a row. Raises ValueError where it has not one cell for each heading."""
        if len(cells) != len(self.headings):
            raise ValueError(f"{len(cells)} cells under {len(self.headings)} headings")
        self.rows.append(tuple(str(cell) for cell in cells))

    def render(self) -> str:
        """The table as lines of text, as wide as its cells need, whatever the terminal is."""
        import rich.box
        import rich.console
        import rich.table
        from rich.text import Text

        table = rich.table.Table(box=rich.box.MARKDOWN)
        for index, heading in enumerate(self.headings):
            table.add_column(Text(heading), justify="left" if index in self.text_columns else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))  # Text, as "[...]" would be taken for markup
        console = rich.console.Console(file=io.StringIO(), width=10_000, color_system=None)
        with console.capture() as captured:
            console.print(table)
        # The box has an empty line where others have their upper edge.
        lines = [line.rstrip() for line in captured.get().splitlines() if line.strip()]
        # Not rich's own title, which is broken to the table's width.
        return "".join(f"{line}\n" for line in ([self.title, *lines] if self.title else lines))
