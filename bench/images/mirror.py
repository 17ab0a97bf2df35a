"""Which Debian mirror this machine uses, read from apt's sources."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Tuple

DEFAULT = "http://deb.debian.org/debian"
SOURCES = Path("/etc/apt")


def debian_mirror(sources: Path = SOURCES) -> str:
    """The first mirror in apt's sources that carries a Debian main archive; else `DEFAULT`.

    Mirrors of other things are passed over: their path does not end in `debian`, or they have no
    component `main`, or only security updates, which are no base to build on.
    """
    for uri, suite, components in _entries(sources):
        is_debian = uri.startswith(("http://", "https://")) and uri.rstrip("/").endswith("/debian")
        if is_debian and "main" in components and "security" not in suite:
            return uri.rstrip("/")
    return DEFAULT


def _entries(sources: Path) -> Iterator[Tuple[str, str, List[str]]]:
    """Each (URI, suite, components) of the sources, in the order in which apt reads them."""
    parts = sources / "sources.list.d"
    files = [sources / "sources.list", *(sorted(parts.iterdir()) if parts.is_dir() else [])]
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        if file.suffix == ".sources":
            yield from _deb822(text)
        elif file.suffix == ".list":
            yield from _one_line(text)


def _one_line(text: str) -> Iterator[Tuple[str, str, List[str]]]:
    """`deb [option=value ...] URI suite component ...`"""
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if not words or words[0] != "deb":
            continue
        if len(words) > 1 and words[1].startswith("["):
            end = next((index for index, word in enumerate(words) if word.endswith("]")), len(words))
            words = words[:1] + words[end + 1 :]
        if len(words) >= 3:
            yield words[1], words[2], words[3:]


def _deb822(text: str) -> Iterator[Tuple[str, str, List[str]]]:
    """Paragraphs of `Field: value`; comments may stand between the lines of one."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for paragraph in "\n".join(lines).split("\n\n"):
        fields: Dict[str, List[str]] = {}
        field = ""
        for line in paragraph.splitlines():
            if not line[:1].isspace() and ":" in line:
                field, _, line = line.partition(":")
                field = field.strip().lower()
                fields[field] = []
            if field:
                fields[field] += line.split()
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
            for uri in fields.get("uris", []):
                for suite in fields.get("suites", []):
                    yield uri, suite, fields.get("components", [])
