"""Eviction: which images leave a cache, and in which order.  Pure: values in, values out; no file is touched.

There are two reasons to let an image go, and they count differently:

    room    a disk needs the blocks.  Only what the image holds alone is won: a block that a disk shares stays in use.
            Entries may share with one another too (a new version of an image is made of its old one), and FIEMAP does
            not tell who shares: a block that two entries map may come free when both have gone, one that only one entry
            maps is held by a disk and never does.
    limit   the administrator gave the cache a size.  An image counts with all that is allocated to it.

The least recently used go first, an image without which the others suffice stays, and nothing goes for what cannot be
had.  A pinned image never goes; one that was used within `min_age` seconds does not go for the limit.

The caller removes the first of the answer, looks at the file system again, and asks anew.
"""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Sequence, Set, Tuple


class Candidate(NamedTuple):
    """An image: its id, bytes allocated to it and bytes that it holds alone, when it was used last (seconds since the
    epoch), whether it is pinned, and the (physical offset, length) of what it shares.
    """

    id: str
    allocated: int
    exclusive: int
    used: float
    pinned: bool = False
    shared: Tuple[Tuple[int, int], ...] = ()


def for_room(images: Sequence[Candidate], shortfall: int) -> List[Candidate]:
    """What to remove, in this order, to win *shortfall* bytes; [] if that is nothing, or cannot be won."""
    free = [image for image in images if not image.pinned]
    if shortfall <= 0 or winnable(free) < shortfall:
        return []
    alone = [image for image in free if image.exclusive > 0]
    if sum(image.exclusive for image in alone) >= shortfall:
        return _oldest(alone, shortfall, lambda image: image.exclusive)
    # What is missing is shared among entries: the oldest goes, and the map is read again.
    common = _common(free)[1]
    return sorted((image for image in free if image.exclusive > 0 or image.id in common), key=_age)


def for_limit(images: Sequence[Candidate], excess: int, min_age: float, now: float) -> List[Candidate]:
    """What to remove, in this order, to make the cache smaller by *excess* bytes; [] if that is nothing, or cannot be.

    An image from a future that a wrong clock came from is not young.
    """
    free = [image for image in images if not image.pinned and not 0 <= now - image.used < min_age]
    if excess <= 0 or sum(image.allocated for image in free) < excess:
        return []
    return _oldest(free, excess, lambda image: image.allocated)


def winnable(images: Sequence[Candidate]) -> int:
    """Bytes that would come free without all of these, at most: what each holds alone, and what two of them share."""
    return sum(image.exclusive for image in images) + _common(images)[0]


def _age(image: Candidate) -> Tuple[float, str]:
    return image.used, image.id


def _oldest(images: Sequence[Candidate], wanted: int, gain: Callable[[Candidate], int]) -> List[Candidate]:
    """The least recently used that together gain *wanted* bytes, without those that are not needed for it."""
    chosen: List[Candidate] = []
    won = 0
    for image in sorted(images, key=_age):
        if won >= wanted:
            break
        chosen.append(image)
        won += gain(image)
    for image in list(chosen):
        if won - gain(image) >= wanted:
            chosen.remove(image)
            won -= gain(image)
    return chosen


def _common(images: Sequence[Candidate]) -> Tuple[int, Set[str]]:
    """Bytes of the disk that at least two of the images map, and which images these are."""
    edges = sorted(
        (place, change, image.id)
        for image in images
        for start, length in image.shared
        for place, change in ((start, 1), (start + length, -1))
    )
    total = at = 0
    here: Dict[str, int] = {}  # how often each image maps the place: within one image, blocks may repeat
    found: Set[str] = set()
    for place, change, name in edges:
        if len(here) >= 2 and place > at:
            total += place - at
            found |= here.keys()
        at = place
        here[name] = here.get(name, 0) + change
        if here[name] == 0:
            del here[name]
    return total, found
