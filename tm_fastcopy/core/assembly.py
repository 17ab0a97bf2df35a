"""Assembly: carries out a plan for one staging file, page by page.

The file's owner offers pages of digests in any order; what can be had on this machine is put in place at once, and what
cannot is named, to be fetched over lanes and given to `store_chunk`.  `finish` says that every chunk is there.

It is the same for both directions: the agent assembles a disk, the front-end assembles an image.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Protocol, Sequence, Tuple

from . import plan as planning
from .errors import BadChunk, FastcopyError
from .extents import merge_runs
from .files import Files
from .hashing import digest, read_exactly
from .manifest import DIGEST_SIZE, Manifest
from .plan import Place, Step
from .staging import HERE, WANTED, ChunkTable, Staging, copy_sparse, write_sparse

Have = Callable[[int, int], Sequence[Optional[bytes]]]


class SeedFiles(planning.Seeds, Protocol):
    """Seeds that can also be read."""

    def open(self, source: str) -> int:
        """A descriptor of the file that `Place.source` names; it stays open as long as the seeds."""

    def damaged(self, source: str) -> None:
        """That file turned out not to be what it was said to be."""


class NoSeeds:
    """A machine that holds nothing."""

    def find(self, digest: bytes) -> Optional[Place]:
        """Nothing is found."""
        return None

    def open(self, source: str) -> int:
        """Nothing can be opened."""
        raise KeyError(source)

    def damaged(self, source: str) -> None:
        """Nothing can be damaged."""


class Assembly:
    """One file in the making.

    *have* says what lies in the staging file already (default: it is looked at); *check_seeds* has every chunk that is
    taken from this machine read and verified before it is used; *tee* is a fresh second copy that is to get all that
    does not come over a lane (lanes write it themselves), and is given up when that fails; without *share* no block is
    shared with a seed.
    """

    def __init__(
        self,
        files: Files,
        staging: Staging,
        table: ChunkTable,
        seeds: Optional[SeedFiles] = None,
        have: Optional[Have] = None,
        check_seeds: bool = False,
        tee: Optional[Staging] = None,
        share: bool = True,
    ) -> None:
        self._files, self._staging, self._table = files, staging, table
        self._seeds: SeedFiles = seeds or NoSeeds()
        self._have = have or (lambda first, count: staging.have(first, count, table.chunk_size))
        self._check_seeds = check_seeds
        self._tee, self._share = tee, share
        self._earlier: Dict[bytes, int] = {}
        self._copies: List[Tuple[int, int]] = []
        self._mirror_later: List[Tuple[int, int]] = []
        self.reused = 0
        """Bytes of data that did not have to be fetched."""

    def offer(self, first: int, digests: bytes, runs: Sequence[Tuple[int, int]]) -> List[int]:
        """Take in a page; return the indices of the chunks that must be fetched.  *runs* is where data lies in it."""
        table = self._table
        table.offer(first, digests)
        wanted = [digests[i : i + DIGEST_SIZE] for i in range(0, len(digests), DIGEST_SIZE)]
        steps = planning.plan(wanted, self._have(first, len(wanted)), self._seeds, first, self._earlier)
        self._mirror_later.clear()
        missing = [index for step in steps for index in self._carry_out(step)]
        self._mirror()
        for index in range(first, first + len(wanted)):
            table.set_state(index, HERE)
        for index in missing:
            table.set_state(index, WANTED)
        for _, index in self._copies:
            table.set_state(index, WANTED)
        self._allocate(missing, runs)
        return missing

    def _carry_out(self, step: Step) -> List[int]:
        """Do what can be done now; return the chunks that must come over a lane."""
        table, chunk = self._table, self._table.chunk_size
        offset = step.first * chunk
        length = min(step.count * chunk, table.size - offset)
        if step.kind == planning.LANE:
            return list(range(step.first, step.first + step.count))
        if step.kind in (planning.KEEP, planning.CACHE) and self._tee is not None:
            self._mirror_later.append((offset, length))
        if step.kind == planning.HOLE:
            self._files.punch(self._staging.fd, offset, length)
        elif step.kind == planning.CACHE and step.place is not None:
            if not self._take(step, step.place, offset, length):
                return list(range(step.first, step.first + step.count))
            self.reused += length
        elif step.kind == planning.SELF and step.place is not None:
            # Its original may still have to come over a lane: copied by `finish`.
            self._copies += [(step.place.index + i, step.first + i) for i in range(step.count)]
            self.reused += length
        else:
            self.reused += length
        return []

    def _mirror(self) -> None:
        for offset, length in self._mirror_later:
            try:
                if self._tee is not None and self._table.tee_complete:
                    copy_sparse(self._files, self._tee.fd, self._staging.fd, offset, length, offset, fresh=True)
            except OSError:
                self._table.give_up_tee()

    def _take(self, step: Step, place: Place, offset: int, length: int) -> bool:
        """Copy from a seed; False if the seed turns out to be of no use."""
        at = place.index * self._table.chunk_size
        try:
            seed = self._seeds.open(place.source)
            if self._check_seeds and not self._sound(seed, at, step):
                self._seeds.damaged(place.source)
                return False
            target, fresh = self._staging.fd, self._staging.fresh
            if not (self._share and self._files.clone_range(target, seed, at, length, offset)):
                copy_sparse(self._files, target, seed, at, length, offset, fresh, self._share)
        except (OSError, KeyError, FastcopyError):
            return False  # a seed is only ever a help
        return True

    def _sound(self, seed: int, at: int, step: Step) -> bool:
        table = self._table
        try:
            return all(
                digest(read_exactly(seed, at + i * table.chunk_size, table.length(step.first + i)))
                == table.digest(step.first + i)
                for i in range(step.count)
            )
        except (OSError, FastcopyError):  # a bad block, or a file that was cut
            return False

    def _allocate(self, missing: Sequence[int], runs: Sequence[Tuple[int, int]]) -> None:
        """Reserve each run of data that is to come in one piece: lanes write out of order, and fragments cost later."""
        chunk = self._table.chunk_size
        windows = merge_runs([(index * chunk, self._table.length(index)) for index in missing])
        at = 0
        for start, length in windows:
            end = start + length
            while at < len(runs) and runs[at][0] + runs[at][1] <= start:
                at += 1
            i = at
            while i < len(runs) and runs[i][0] < end:
                low, high = max(start, runs[i][0]), min(end, runs[i][0] + runs[i][1])
                if high > low:
                    self._files.allocate(self._staging.fd, low, high - low)
                i += 1

    def finish(self) -> Manifest:
        """Copy what repeats within the file, and return the manifest; `BadChunk` if a chunk never came."""
        table, fd = self._table, self._staging.fd
        for source, index in self._copies:
            if table.state(source) != HERE:
                raise BadChunk(f"chunk {source}, of which chunk {index} is a copy, did not arrive")
            data = read_exactly(fd, source * table.chunk_size, table.length(index))
            if digest(data) != table.digest(index):
                raise BadChunk(f"chunk {source} is not what it was when it was written")
            write_sparse(self._files, fd, index * table.chunk_size, data, self._staging.fresh)
            self._mirror_later[:] = [(index * table.chunk_size, len(data))]
            self._mirror()
            table.set_state(index, HERE)
        self._copies.clear()
        if table.missing():
            raise BadChunk(f"{table.missing()} chunks of the file did not arrive")
        return Manifest(table.size, table.chunk_size, table.digests())
