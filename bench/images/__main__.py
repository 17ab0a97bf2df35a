"""`make-images`: make the images that tests and bench copy, and list what is there."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import List, Optional

from bench.images import catalogue, tools
from bench.images.extents import summary
from bench.measure import Table, size_text


def main(arguments: Optional[List[str]] = None) -> int:
    """0 when all that was asked for is there, 1 when something could not be made."""
    options = _parse(arguments)
    directory: Path = options.dir
    # An exception unwinds and removes what is half made; the signal's default would not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failures = 0 if options.list else _make(options.names or list(catalogue.RECIPES), directory, options.again)
    print(listing(directory).render(), end="")
    return 1 if failures else 0


def listing(directory: Path) -> Table:
    """What is in the directory, one row for each image that is whole."""
    table = Table("image", "size", "data", "on disk", "data extents", "physical", "what it is", text_columns=(0, 6))
    for name, recipe in catalogue.RECIPES.items():
        path = catalogue.path_of(name, directory)
        if path.exists():
            found = summary(path)
            table.add(
                path.name,
                size_text(found.size),
                size_text(found.data),
                size_text(found.allocated),
                f"{found.extents:,}",
                "?" if found.physical is None else f"{found.physical:,}",
                recipe.meaning,
            )
    return table


def _make(names: List[str], directory: Path, again: bool) -> int:
    """Make the images, saying how long each took; gives the number of those that could not be made."""
    failures = 0
    for name in catalogue.with_needs(names):
        try:
            seconds = catalogue.make(name, directory, again=again and name in names)
        except (tools.Unable, OSError) as error:
            print(f"make-images: {name}: {error}", file=sys.stderr)
            failures += 1
            continue
        print(f"{name}: {f'made in {seconds:.1f} s' if seconds else 'there already'}", flush=True)
    return failures


def _parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make-images", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="IMAGE",
        help=f"which to make, of: {', '.join(catalogue.RECIPES)}; all if none is named",
    )
    parser.add_argument("--dir", type=Path, default=catalogue.DIRECTORY, help="where they are kept (%(default)s)")
    parser.add_argument("--list", action="store_true", help="make nothing, list what is there")
    parser.add_argument("--again", action="store_true", help="make them anew even if they are there")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in catalogue.RECIPES]
    if unknown:
        parser.error(f"no image is called {', '.join(unknown)}")
    options.dir = options.dir.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main())
