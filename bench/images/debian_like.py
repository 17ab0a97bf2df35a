"""A small image that looks like a file system's, made in a second or two, and second versions of it.

For tests that cannot wait for debootstrap. The image is a row of 1 MiB slots. A slot holds one kind of
content, or is a mixture of small files, as in a real root file system; a `duplicate` slot repeats an
earlier one, so any chunk of up to 1 MiB finds it again.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Callable, Dict, List

from bench.images.edge import BLOCK, KIB, MIB

SLOT = MIB

# In sixteen slots: roughly what a Debian root holds, half of it compressible to a third.
PATTERN = (
    *("text",) * 3,
    *("binary",) * 4,
    *("mixed",) * 4,
    "packed",
    *("hole",) * 2,
    "zeros",
    "duplicate",
)

_WORDS = 4096  # a vocabulary of this size compresses about as English does
_SNIPPETS = 256  # instruction sequences that the "binaries" share


def write(path: Path, size: int = 48 * MIB, seed: int = 1) -> List[str]:
    """Write an image of `size` bytes and give the kind of each slot, from the first to the last.

    From 16 MiB on every kind occurs. The same arguments give the same bytes.
    """
    generator = random.Random(seed)
    kinds = layout(-(-size // SLOT), generator)
    makers = _makers(generator)
    repeatable: List[bytes] = []
    with path.open("wb") as file:
        file.truncate(size)
        for index, kind in enumerate(kinds):
            offset = index * SLOT
            if kind == "hole":
                continue
            if kind == "duplicate":
                content = generator.choice(repeatable)
            elif kind == "mixed":
                content = _mixture(makers, generator)
            else:
                content = makers[kind](SLOT)
            if kind in ("text", "binary", "packed", "mixed"):
                repeatable.append(content)
            file.seek(offset)
            file.write(content[: size - offset])
    return kinds


def layout(slots: int, generator: random.Random) -> List[str]:
    """The kinds of `slots` slots: whole patterns, each shuffled; the first is never a duplicate."""
    kinds: List[str] = []
    while len(kinds) < slots:
        pattern = list(PATTERN)
        generator.shuffle(pattern)
        kinds += pattern
    kinds = ["mixed", *(kind for index, kind in enumerate(kinds) if index != kinds.index("mixed"))]
    return kinds[:slots]


def _makers(generator: random.Random) -> Dict[str, Callable[[int], bytes]]:
    """For each kind of plain content, a function from a length in bytes to that many bytes."""
    letters = "etaoinshrdlucmfw"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 11))) for _ in range(_WORDS)]
    snippets = [generator.randbytes(12) for _ in range(_SNIPPETS)]

    def text(length: int) -> bytes:
        count = length // 3 + 1  # a word has two letters or more, and a blank: always enough
        return " ".join(generator.choices(words, k=count)).encode("ascii")[:length]

    def binary(length: int) -> bytes:
        count = length // 16 + 1
        code = bytearray(16 * count)
        shared = b"".join(generator.choices(snippets, k=count))
        for lane in range(12):
            code[lane::16] = shared[lane::12]
        for lane in range(12, 14):  # operands that no compressor can guess, and two zero bytes
            code[lane::16] = generator.randbytes(count)
        return bytes(code[:length])

    return {"text": text, "binary": binary, "packed": generator.randbytes, "zeros": bytes}


def _mixture(makers: Dict[str, Callable[[int], bytes]], generator: random.Random) -> bytes:
    """A slot of small files: each begins on a block, and ends in zeros up to the next one."""
    slot = bytearray()
    while len(slot) < SLOT:
        kind = generator.choice(("text", "text", "binary", "packed"))
        content = makers[kind](generator.randint(200, 96 * KIB))
        slot += content + bytes(-len(content) % BLOCK)
    return bytes(slot[:SLOT])
