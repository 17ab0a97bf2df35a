"""A remembered manifest that is not the image's: the image rotted, or its file system gives times that lie."""

from __future__ import annotations

from tm_fastcopy.core.hashing import digest
from tm_fastcopy.core.manifest import Manifest
from tm_fastcopy.frontend.image import Image

from .invariants import left_over
from .scenarios import CLONE_COLD, MVDS, SAME_SIZE, VM
from .site import CHUNK, Site, content, sha, sha_of
from .walk import Harness, Walk


def remember(site: Site, layout: str) -> None:
    """Have the front-end take its image for one of another layout."""
    data = content(layout)
    digests = b"".join(digest(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))
    image = Image.open(str(site.image), [str(site.images)])
    try:
        assert image.size == len(data)
        site.memory.mkdir(parents=True, exist_ok=True)
        (site.memory / image.identity.key("")).write_bytes(Manifest(len(data), CHUNK, digests).encode())
    finally:
        image.close()


def test_a_clone_fails_once_and_the_repeat_reads_the_image(harness: Harness, plain: Site) -> None:
    """Defect C3 of the stock drivers."""
    walk = Walk(harness, plain, CLONE_COLD)
    plain.restore(None)
    remember(plain, "ABXaC0AbD")
    outcome = harness.run(walk.spec)
    assert outcome.code == 1 and not plain.disk(VM).exists()
    assert "is not what it was when it was last read" in outcome.errors, outcome
    again = harness.run(walk.spec)
    assert again.code == 0, again
    assert sha_of(plain.disk(VM)) == sha(CLONE_COLD.result)
    assert left_over(plain) == []


def test_mvds_takes_no_chunk_from_an_image_that_is_not_what_it_was(harness: Harness, plain: Site) -> None:
    """Where blocks cannot be shared, what is taken from the image is read anyway, and fetched if it is not right."""
    walk = Walk(harness, plain, MVDS)
    plain.restore(MVDS.image)
    remember(plain, SAME_SIZE)  # of which nothing would have to be fetched
    outcome = harness.run(walk.spec)
    assert outcome.code == 0, outcome
    assert sha_of(plain.image) == sha(MVDS.result)
    assert left_over(plain) == []
