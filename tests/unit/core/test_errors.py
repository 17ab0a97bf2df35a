"""Errors: what each error of the system means for whoever catches it."""

from __future__ import annotations

import errno
from typing import Type

import pytest

from tm_fastcopy.core import errors
from tm_fastcopy.core.errors import FastcopyError, LinkLost, NoSpace, Refused, classify, of_kind

# A subclass elsewhere is for whoever raises it; what travels, and is acted upon, is one of these.
ALL = [FastcopyError, *(cls for cls in FastcopyError.__subclasses__() if cls.__module__ == errors.__name__)]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EFBIG, NoSpace),
        (errno.EPIPE, LinkLost),
        (errno.ECONNRESET, LinkLost),
        (errno.ETIMEDOUT, LinkLost),
        (errno.EHOSTUNREACH, LinkLost),
        (errno.ENETUNREACH, LinkLost),
        (errno.ELOOP, Refused),
        (errno.EIO, FastcopyError),
        (errno.EACCES, FastcopyError),
        (errno.EROFS, FastcopyError),
        (errno.ENOENT, FastcopyError),
    ],
)
def test_by_number(number: int, expected: Type[FastcopyError]) -> None:
    found = classify(OSError(number, "text of the system", "/a/path"), "writing disk.0")
    assert type(found) is expected
    assert str(found).startswith("writing disk.0: ")


def test_a_text_never_decides() -> None:
    assert type(classify(OSError(errno.EIO, "No space left on device"), "x")) is FastcopyError
    assert type(classify(RuntimeError("Broken pipe"), "x")) is FastcopyError


def test_ours_stay_as_they_are() -> None:
    for cls in ALL:
        error = cls("a sentence")
        assert classify(error, "x") is error


def test_anything_else_is_one_line_with_its_type() -> None:
    found = classify(ValueError("two\nlines"), "reading")
    assert str(found) == "reading: ValueError: two lines"


def test_a_link_is_explained() -> None:
    assert "symbolic link" in str(classify(OSError(errno.ELOOP, "Too many levels"), "opening"))


def test_kinds_are_all_different_and_travel() -> None:
    assert len({cls.kind for cls in ALL}) == len(ALL)
    for cls in ALL:
        assert type(of_kind(cls.kind, "text")) is cls
        assert str(of_kind(cls.kind, "text")) == "text"


def test_an_unknown_kind_gives_up() -> None:
    assert type(of_kind("of a later version", "text")) is FastcopyError


def test_the_module_has_no_other_errors() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert set(classes) == set(ALL)
