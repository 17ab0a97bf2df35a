"""Reference: docs/CONFIGURATION.md and the default fastcopy.yaml, written from the table of settings.

`python -m tm_fastcopy.frontend.reference` in a checkout writes both (`make reference`); a test compares them.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Iterator, List

from .settings import FILE, FRONT_END, SYSTEM, TABLE, Setting

DOCUMENT, DEFAULT_FILE = Path("docs", "CONFIGURATION.md"), Path("install", FILE)
_WIDTH = 100  # of the file's comments

_INTRODUCTION = """\
# Configuration

Nothing has to be configured. What can be is in one table, below, which this page, the default file and all checks come
from (`tm_fastcopy/frontend/settings.py`; `make reference` writes this page).

## Where a setting is taken from

The first of these that has it:

1. the **environment** of the call: the attribute's name, as in `FASTCOPY_LANES=4`. It is for one call in hand and for
   tests; what `/etc/one/tmrc` sets is there for every call, and outranks everything below;
2. the **datastore attribute** `FASTCOPY_*` of the VM's system datastore (`onedatastore update`);
3. the same attribute of the image datastore;
4. the **stock attribute** that the `local` driver knows, in the image datastore, where that driver has it;
5. **`fastcopy.yaml`**: `/etc/one/tm/fastcopy/fastcopy.yaml`, or `$ONE_LOCATION/etc/tm/fastcopy/fastcopy.yaml`. A dot in
   a name is a level in the file. Without the file, or with an empty one, the defaults hold;
6. the **default**.

"Where" says who may decide: settings of the *front-end* cannot be datastore attributes. Settings of the *system
datastore* are about hosts, their disks and caches; in an image datastore they are refused, because two image
datastores could contradict each other about one cache. The others may stand in *either* datastore, and the system
datastore's wins.

## What is refused

A name that does not exist, and a value that is not allowed, fail the action with one sentence that says where it was
found. That holds for every place that is looked at, also where another place outranks it, so that a mistake shows when
it is made; and for the two datastores of an action, so that a mistake in one datastore does not stop others. `yes` and
`no` may be written as `true` and `false`, and all words in any case. Bytes have a suffix K, M, G or T (powers of 1024).
In the file, a name may stand once; anchors, aliases, tags and lists are refused, and so is a file over 64 KiB.

## The settings

"""

_STOCK = """
## The stock attributes

They mean what they mean to the stock `local` driver, which reads them in the image datastore:

- `CACHE_ENABLE`: `YES` in any case is yes, and everything else is no. (Without it, the stock driver has no cache, and
  this one has.)
- `CACHE_PATH` is not used: a reflink needs the file system of the disk, so the cache lies there, beside the datastore
  (`.fastcopy/cache`).
- `CACHE_MAX_SIZE`: a number, percent of the file system that the cache lies on.
- `CACHE_MIN_AGE`: seconds since an image was last used.
- `CACHE_UPSTREAMS` is not used.

Two image datastores whose stock attributes differ contradict each other about a host's one cache; each transfer goes by
those of its own. To have one answer, set the attributes of ours in the system datastore.

The stock driver's own defaults (10 percent, 900 seconds) are not taken over: an attribute that is not there, or is
empty, says nothing. A stock attribute is looked at only if no datastore of the action has the attribute of ours.
"""

_HEADER = """\
# Configuration of the TM driver fastcopy, with all defaults.  Datastore attributes outrank what is set here.
# To set something, remove the first '#' of its line, and of the line of its group.  It holds from the next action on.
# Explained at length in docs/CONFIGURATION.md.
"""


def document() -> str:
    """docs/CONFIGURATION.md."""
    rows = [
        "| `fastcopy.yaml` | attribute, environment | stock | where | allowed | default | meaning |",
        "|---|---|---|---|---|---|---|",
        *map(_row, TABLE),
    ]
    return _INTRODUCTION + "\n".join(rows) + "\n" + _STOCK


def _row(setting: Setting) -> str:
    return "| " + " | ".join((
        f"`{setting.name}`",
        f"`{setting.attribute}`",
        f"`{setting.stock.attribute}`" if setting.stock else "",
        "either" if setting.owner not in (FRONT_END, SYSTEM) else setting.owner,
        setting.kind.allowed,
        f"`{setting.default}`",
        setting.meaning,
    )) + " |"  # fmt: skip


def default_file() -> str:
    """install/fastcopy.yaml: everything in comments, so that a later version's defaults are not held back."""
    lines: List[str] = [_HEADER]
    group = ""
    for setting in TABLE:
        first, _, rest = setting.name.partition(".")
        if rest and first != group:
            lines.append(f"#{first}:")
            group = first
        lines += _entry(setting, rest or first, "  " if rest else "")
    return "\n".join(lines) + "\n"


def _entry(setting: Setting, name: str, indent: str) -> Iterator[str]:
    lead = f"#{indent}# " if indent else "# "
    where = "In the environment" if setting.owner == FRONT_END else "As an attribute"
    text = f"{setting.meaning} Allowed: {setting.kind.allowed}. {where}: {setting.attribute}."
    yield from textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False)
    yield f"#{indent}{name}: {setting.default}"
    yield ""


def main() -> None:
    """Write both into the checkout that is the current directory."""
    DOCUMENT.write_text(document())
    DEFAULT_FILE.write_text(default_file())


if __name__ == "__main__":
    main()
