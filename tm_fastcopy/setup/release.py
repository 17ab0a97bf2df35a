"""A release: one directory with all code of one installation, made beside the one in use and never changed afterwards.

Its `release.json` is written last: a directory without one is what an interrupted installation left.  It becomes the
current one by the renaming of a link, so a call that comes in between runs the old code or the new, whole.  What runs
from a release goes on with it (nobody starts anything through the link without following it first); the one before
stays until the next upgrade, and longer if something still runs from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import pwd
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from .. import __version__
from ..core.errors import FastcopyError
from ..frontend.bundle import WHEELS
from . import wheels
from .layout import LINKS, Layout
from .ledger import link, own, settle

STAMP = "release.json"
_CHECK = "import asyncssh, yaml, rich, blake3, xxhash, zstandard, tm_fastcopy.frontend.daemon"
_READ = """
import os, sys

def fail(error):
    raise error

for base, _, files in os.walk(sys.argv[1], onerror=fail):
    for name in files:
        open(os.path.join(base, name), "rb").close()
"""
_CHECK_WAIT = 60.0  # seconds; it takes one
_DOCUMENTS = ("README.md", "CHANGELOG.md", "LICENSE", "setup.cfg")


@dataclass(frozen=True)
class Wanted:
    """What a release is made of.  *wheelhouse* None: from the network; *tags*: hosts that get wheels; *renew*: no
    wheels of the release before."""

    python: str
    user: str
    wheelhouse: Optional[Path]
    tags: Tuple[str, ...]
    renew: bool = False

    @property
    def stamp(self) -> Dict[str, Any]:
        """What a release of this says of itself."""
        return {
            "format": 1,
            "version": __version__,
            "python": f"{self.python} {'.'.join(platform.python_version_tuple()[:2])}",
            "code": _digest(_sources()),
            "wheels": _digest(_listed(self.wheelhouse)) if self.wheelhouse else "",
            "host_requirements": wheels.requirements(wheels.sources() / "setup.cfg", WHEELS),
        }


def up_to_date(layout: Layout, wanted: Wanted) -> bool:
    """Whether the current release is what is wanted, and runs.  Without a wheelhouse, any wheels will do."""
    found, stamp = read_stamp(layout.current), wanted.stamp
    if found is None or {**stamp, "wheels": stamp["wheels"] or found["wheels"]} != found:
        return False
    return not _problem(layout.current, wanted.user)


def read_stamp(release: Path) -> Optional[Dict[str, Any]]:
    """What a release says of itself; None if it is none, or not complete."""
    try:
        found = json.loads((release / STAMP).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == 1 and "wheels" in found else None


def build(layout: Layout, wanted: Wanted, say: Callable[[str], None]) -> Path:
    """Make a release; `FastcopyError` if it cannot be had, and then nothing is left of it."""
    release = _new(layout)
    try:
        venv = release / "venv"
        wheels.make_venv(wanted.python, venv)
        python = str(venv / "bin" / "python3")
        source = ["--no-index", f"--find-links={wanted.wheelhouse}"] if wanted.wheelhouse else []
        try:
            wheels.pip(python, "install", "--quiet", "--only-binary=:all:", *source,
                       *wheels.requirements(wheels.sources() / "setup.cfg"))  # fmt: skip
        except FastcopyError as error:
            raise FastcopyError(f"the Python packages cannot be had: {error}{_advice(wanted)}") from error
        _copy_code(layout, wanted, release, python)
        _host_wheels(layout, wanted, release, python, say)
        open_to_all(release)
        problem = _problem(release, wanted.user)
        if problem:
            raise FastcopyError(problem)
        _give(release, layout.library)
        subprocess.run(["sync", "-f", str(release)], check=False, timeout=600)
        (release / STAMP).write_text(json.dumps(wanted.stamp, indent=1, sort_keys=True) + "\n")
        own(release / STAMP, layout.library)
        settle(release)
        return release
    except BaseException:
        shutil.rmtree(release, ignore_errors=True)
        raise


def switch(layout: Layout, release: Path) -> None:
    """Make *release* the current one, in one step."""
    target = f"releases/{release.name}"
    before = _target(layout.current)
    if before != target:
        if before:
            link(layout.library / "previous", before)
        link(layout.current, target)
    for name in LINKS:
        path = layout.library / name
        if path.is_dir() and not path.is_symlink():
            raise FastcopyError(f"{path} was not made by this installer: move it away, and install again")
        if _target(path) != f"current/{name}":
            link(path, f"current/{name}")


def links_missing(layout: Layout) -> bool:
    """Whether one of the fixed links is not as it should be."""
    return any(_target(layout.library / name) != f"current/{name}" for name in LINKS)


def superfluous(layout: Layout) -> List[Path]:
    """Releases that can go: neither the current nor the one before, and nothing runs from them."""
    kept = {_target(layout.current), _target(layout.library / "previous")}
    found = [path for path in sorted(layout.releases.glob("*")) if f"releases/{path.name}" not in kept]
    used = _mapped(str(layout.releases.resolve())) if found else ""
    return [path for path in found if f"{path.resolve()}/" not in used]


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _mapped(below: str) -> str:
    """The files below a directory that processes have mapped, compiled modules among them."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines += [line for line in (process / "maps").read_text(errors="replace").splitlines() if below in line]
        except OSError:
            continue  # it has ended, or is another user's: those do not run us
    return "\n".join(lines)


def _new(layout: Layout) -> Path:
    name = f"{__version__}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    for attempt in range(100):
        release = layout.releases / (f"{name}-{attempt}" if attempt else name)
        try:
            release.mkdir(mode=0o755)
        except FileExistsError:
            continue
        return release
    raise FastcopyError(f"{layout.releases} is full of releases of this second")


def _copy_code(layout: Layout, wanted: Wanted, release: Path, python: str) -> None:
    (packages,) = (release / "venv" / "lib").glob("python3*/site-packages")
    hide = shutil.ignore_patterns("__pycache__")
    package = Path(__file__).resolve().parent.parent
    shutil.copytree(package, packages / "tm_fastcopy", symlinks=True, ignore=hide)
    done = subprocess.run([python, "-I", "-m", "compileall", "-q", str(packages / "tm_fastcopy")], check=False)
    if done.returncode:
        raise FastcopyError(f"the driver's code could not be compiled with {wanted.python}")
    top = wheels.sources()
    for name in ("install", "docs"):
        shutil.copytree(top / name, release / name, symlinks=True, ignore=hide)
    for name in _DOCUMENTS:
        shutil.copyfile(top / name, release / name)
    for name in ("bin", "share"):
        (release / name).mkdir(mode=0o755)
    shutil.copyfile(top / "install" / "fastcopyd", release / "bin" / "fastcopyd")
    (release / "bin" / "fastcopyd").chmod(0o755)
    for name in ("fastcopyd.service", "fastcopy.logrotate", "fastcopy.bash-completion"):
        text = (top / "install" / name).read_text()
        (release / "share" / name).write_text(layout.render(text, wanted.user))


def _host_wheels(layout: Layout, wanted: Wanted, release: Path, python: str, say: Callable[[str], None]) -> None:
    """Wheels for hosts: from the wheelhouse, the release before, or the network.  What is missing is no failure: a host
    with the front-end's own Python needs none, and another one gets a sentence that says what to do."""
    target = release / "wheels"
    target.mkdir(mode=0o755)
    for directory in _given(layout, wanted):
        shutil.copytree(directory, target / directory.name)
    missing = [name for name in wanted.tags if not (target / name).is_dir()]
    problems = {name: "not in the wheelhouse, or not all of them" for name in missing}
    if missing and not wanted.wheelhouse:
        say(f"fetching wheels for {len(missing)} kinds of hosts")
        problems = wheels.for_hosts(python, wheels.sources() / "setup.cfg", target, missing)
    for name, problem in sorted(problems.items()):
        say(f"hosts with {name} cannot be served: no wheels for them ({problem})")


def _given(layout: Layout, wanted: Wanted) -> List[Path]:
    """Wheels for hosts that are there, by kind: of the wheelhouse; or of the release before, if the same was required
    of them then.  A part of what a host needs is as good as nothing."""
    if wanted.wheelhouse:
        given = wanted.wheelhouse / "hosts"
    else:
        before = read_stamp(layout.current) or {}
        if wanted.renew or before.get("host_requirements") != wanted.stamp["host_requirements"]:
            return []
        given = layout.current / "wheels"
    return sorted(path for path in given.glob("cp3*") if _whole(path))


def _whole(directory: Path) -> bool:
    """Whether these are all the wheels that a host needs, as `frontend/bundle.py` asks."""
    return {path.name.split("-")[0] for path in directory.glob("*.whl")} >= set(WHEELS)


def lacking(layout: Layout, wanted: Wanted) -> List[str]:
    """Kinds of hosts that the current release has no wheels for: the index or the wheelhouse had none, or they were not
    asked for.  It may be so for good, so it is said, and not tried again with every run."""
    return [name for name in wanted.tags if not _whole(layout.current / "wheels" / name)]


def _advice(wanted: Wanted) -> str:
    if wanted.wheelhouse:
        version = ".".join(platform.python_version_tuple()[:2])
        return f" (was {wanted.wheelhouse} made by install/wheels.sh --front-end {version}?)"
    return " (for a machine without a network, see --wheelhouse)"


def _problem(release: Path, user: str) -> str:
    """Why the user could not run what is in a release; nothing if all is well."""
    python = str(release / "venv" / "bin" / "python3")
    switch_user: Dict[str, Any] = {}
    if os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        switch_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    try:
        argv = [python, "-I", "-c", f"{_CHECK}\n{_READ}", str(release / "wheels")]
        done = subprocess.run(argv, env={"PATH": os.defpath}, cwd="/", capture_output=True, text=True,
                              timeout=_CHECK_WAIT, check=False, **switch_user)  # fmt: skip
    except PermissionError:
        return f"{user} may not run {python}: all directories above it, and above {sys.executable}, must be open to it"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python} does not run: {error}"
    last = done.stderr.strip().splitlines()[-1:] or [f"code {done.returncode}"]
    return f"the installed code does not run as {user}: {last[0]}" if done.returncode else ""


def open_to_all(top: Path) -> None:
    """Let everybody read what is below *top*, and run what is run: a checkout or a wheelhouse that was made under
    umask 077 has modes of its own, and they are copied."""
    for base, _, files in os.walk(top):
        for path in (Path(base), *(Path(base, name) for name in files)):
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) | (0o555 if stat.S_ISDIR(mode) or mode & 0o111 else 0o444))


def _give(top: Path, like: Path) -> None:
    if os.geteuid() != 0 or os.stat(like).st_uid == 0:
        return
    own(top, like)
    for base, directories, files in os.walk(top):
        for name in directories + files:
            own(Path(base, name), like)


def _sources() -> Iterator[Tuple[str, bytes]]:
    """What we are made of: names and contents, the same from a checkout and from a release."""
    package, top = Path(__file__).resolve().parent.parent, wheels.sources()
    for base, name in [(package, "tm_fastcopy"), (top / "install", "install"), (top / "docs", "docs")]:
        for path in sorted(base.rglob("*")):
            if path.is_symlink():
                yield f"{name}/{path.relative_to(base)}", os.readlink(path).encode()
            elif path.is_file() and "__pycache__" not in path.parts:
                yield f"{name}/{path.relative_to(base)}", path.read_bytes()
    for name in _DOCUMENTS:
        yield name, (top / name).read_bytes()


def _listed(wheelhouse: Path) -> Iterator[Tuple[str, bytes]]:
    for path in sorted(wheelhouse.rglob("*.whl")):
        yield str(path.relative_to(wheelhouse)), path.read_bytes()


def _digest(parts: Iterator[Tuple[str, bytes]]) -> str:
    whole = hashlib.sha256()
    for name, content in parts:
        whole.update(f"{name}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.hexdigest()
