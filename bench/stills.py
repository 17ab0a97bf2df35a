"""`bench/stills`: pictures of `fastcopy status`, `cancel` and `push` with transfers under way, for the documents.

All run in a terminal on the front-end of a lab; what they write there becomes SVG.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from rich.console import Console
from rich.text import Text

from bench.images.edge import MIB, random_data
from bench.jobs import settle
from bench.testbed import Lab, LabConfig
from bench.testbed.errors import LabError
from bench.testbed.node import UID, NodeProcess

WIDTH, HEIGHT = 112, 24  # characters of the terminal
SIZE = 240  # MiB of the image, which does not shrink
LINK = "120mbit"  # slow enough for a transfer of 16 seconds
WAIT = 60.0  # seconds for what is to be seen to be there
DOCUMENTS = Path("docs")


def typed(lab: Lab, argv: Sequence[str], stop: Optional[re.Pattern[str]] = None) -> str:
    """What a command writes to a terminal: all of it, or until *stop* has been seen in it (and then it goes on)."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    env = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(WIDTH), "LINES": str(HEIGHT)}
    process = lab.fe.popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen, end = b"", time.monotonic() + WAIT
    try:
        while time.monotonic() < end:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    seen += os.read(ours, 65536)
                except OSError:  # the terminal's other side has been closed
                    break
            if stop and stop.search(seen.decode("utf-8", "replace")):
                break
    finally:
        process.kill()
        process.communicate(timeout=10)
        os.close(ours)
    return seen.decode("utf-8", "replace").replace("\r\n", "\n")


def picture(path: Path, command: str, written: str) -> None:
    """Save what a terminal shows as SVG, with the command above it.  Nothing in it is fetched from elsewhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(f"[bold green]$[/] {command}", highlight=False)
    console.print(Text.from_ansi(written.rstrip("\n")), soft_wrap=True)
    svg = console.export_svg(title="fastcopy", unique_id=path.stem)
    path.write_text(re.sub(r",\s*url\([^)]*\) format\(\"[a-z0-9]+\"\)", "", svg))
    print(f"wrote {path}")


def last_frame(written: str, pattern: re.Pattern[str]) -> str:
    """The last line that was drawn over and over, and has the pattern in it."""
    frames = [frame for frame in re.split(r"[\r\n]", written) if pattern.search(frame)]
    if not frames:
        raise LabError(f"the command drew nothing that could be shown; it wrote: {written[-500:]!r}")
    return frames[-1]


@contextlib.contextmanager
def clones(lab: Lab, path: str, first: int) -> Iterator[list[NodeProcess]]:
    """Three clones of one image: to one host, to the other, and once more to the first."""
    running = []
    for number, host in ((first, "host1"), (first + 1, "host2"), (first + 2, "host1")):
        lab.oned.add_vm(number, host=host, ds_id=0, disks=[{"IMAGE_ID": 1}])
        entry = lab.one_location / "var/remotes/tm/fastcopy/clone"
        target = f"{host}:{lab.datastores}/0/{number}/disk.0"
        running.append(lab.fe.popen([entry, f"fe:{path}", target, str(number), "0"], stderr=subprocess.DEVNULL))
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate(timeout=10)


def nothing_left(lab: Lab, host: str) -> None:
    """Raise LabError if a host has anything of a disk or an image."""
    found = [str(path) for path in lab.hosts[host].path(lab.datastores).rglob("*.part")]
    if found:
        raise LabError(f"cancel left {', '.join(found)}")


def make(directory: Path) -> None:
    """Make the pictures."""
    top = Path(tempfile.mkdtemp(prefix="fastcopy-stills-", dir="/tmp"))
    with Lab.up(LabConfig(hosts=2, dir=top, disk_size="2G", rate=LINK)) as lab:
        path = f"{lab.datastores}/1/debian-12"
        file = lab.fe.path(path)
        random_data(file, SIZE * MIB)
        shutil.chown(file, UID, UID)
        settle([file])  # or nobody waits for anybody's transfer of it
        lab.oned.add_image(1, 1, path, SIZE)
        command = str(lab.one_location / "bin/fastcopy")
        under_way = re.compile(r"([2-9][0-9](\.[0-9])?|1[0-9][0-9]) MiB of")
        half = re.compile(r"1[0-9][0-9] MiB of .* left")
        with clones(lab, path, 4711):
            end = time.monotonic() + WAIT
            written = ""
            while len(under_way.findall(written)) < 2 or "flight" not in written:
                if time.monotonic() > end:
                    raise LabError(f"the transfers did not come under way; status wrote: {written!r}")
                written = typed(lab, [command, "status"])
            ended = typed(lab, [command, "cancel", "4712"])
            nothing_left(lab, "host2")
        picture(directory / "status.svg", "fastcopy status", written)
        picture(directory / "cancel.svg", "fastcopy cancel 4712", ended)
        words = ["push", path, f"host2:{lab.datastores}/0/999999/disk.0"]
        written = typed(lab, ["env", "FASTCOPY_CACHE_ENABLE=no", command, *words], stop=half)
        shown = "fastcopy push debian-12 host2:/var/lib/one/datastores/100/999999/disk.0"
        picture(directory / "push.svg", shown, last_frame(written, half))


def main() -> int:
    """Make the pictures; the exit code."""
    parser = argparse.ArgumentParser(prog="bench/stills", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", nargs="?", type=Path, default=DOCUMENTS, help="where they go (docs)")
    words = parser.parse_args()
    try:
        make(words.directory)
    except LabError as error:
        print(f"bench/stills: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
