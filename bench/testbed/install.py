"""Puts the checkout's driver into the lab, in the layout of its installer: a release behind links, and the remotes.

The release's venv is a real one that oneadmin can read, filled from the packages that the running interpreter uses, so
that no network is needed. `bench/lab install` makes another release after a change of the code.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.testbed import tree
from bench.testbed.errors import LabError
from tm_fastcopy.setup import release
from tm_fastcopy.setup.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
COMPILE_WAIT = 120.0  # seconds; a few for a hundred modules


def driver(one: Path) -> None:
    """Install or renew `lib/fastcopy` and `var/remotes/tm/fastcopy` below the tree `one`.

    The default configuration goes to `etc/tm/fastcopy`; one that is there already is the administrator's and stays.
    """
    layout = Layout(one)
    made = layout.releases / f"lab-{time.time_ns()}"
    venv = made / "venv"
    packages = make_venv(venv)
    for name in sorted(closure(run_time_requirements(ROOT / "setup.cfg"))):
        copy_distribution(name, packages)
    renew(ROOT / "tm_fastcopy", packages / "tm_fastcopy")
    call([str(venv / "bin/python3"), "-m", "compileall", "-q", str(packages / "tm_fastcopy")])
    (made / "bin").mkdir()
    shutil.copy2(ROOT / "install/fastcopyd", made / "bin/fastcopyd")
    release.switch(layout, made)
    for path in release.superfluous(layout):
        shutil.rmtree(path)
    layout.command.write_text(layout.script)
    layout.command.chmod(0o755)
    remotes = ROOT / "tm_fastcopy/remotes"
    if remotes.is_dir():
        renew(remotes, one / "var/remotes/tm/fastcopy")
    configuration = one / "etc/tm/fastcopy/fastcopy.yaml"
    if not configuration.exists():
        configuration.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "install/fastcopy.yaml", configuration)


def make_venv(venv: Path) -> Path:
    """Make the venv; its site-packages directory."""
    packages = venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    call([str(public_python()), "-m", "venv", "--without-pip", str(venv)])
    return packages


def public_python() -> Path:
    """A Python of the running one's version that oneadmin may run: the system's, or the one below our venv.

    The packages are compiled for this version. LabError if there is none, as with a Python in root's home.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    for python in (Path("/usr/bin") / name, own):
        if python.exists() and all(parent.stat().st_mode & 0o001 for parent in python.resolve().parents):
            return python
    raise LabError(f"oneadmin may not run {own}: install the Debian package {name}.")


def call(argv: list[str]) -> None:
    """Run a program; LabError with its output if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMPILE_WAIT, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)} failed: {(done.stderr or done.stdout).strip()}")


def run_time_requirements(setup: Path) -> list[str]:
    """The names that the project's setup.cfg lists under install_requires."""
    parser = configparser.ConfigParser()
    parser.read(setup)
    return [bare_name(line) for line in parser["options"]["install_requires"].split("\n") if line.strip()]


def bare_name(requirement: str) -> str:
    """`cryptography >= 39.0` -> `cryptography`."""
    match = re.match(r"\s*([A-Za-z0-9._-]+)", requirement)
    if match is None:
        raise LabError(f"{requirement} is no requirement.")
    return match[1]


def closure(names: list[str]) -> set[str]:
    """These distributions and all that they need here. LabError if one of `names` is not installed."""
    found: set[str] = set()
    for name in names:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise LabError(
                f"The Python package {name} is missing: run `{sys.executable} -m pip install -e {ROOT}`."
            ) from None
        found |= set(needed(name, found))
    return found


def needed(name: str, known: set[str]) -> Iterator[str]:
    """A distribution and what it needs, without extras and without what this platform leaves out."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return  # a marker excludes it: nothing that is needed can be missing from a working environment
    if name in known:
        return
    yield name
    for requirement in distribution.requires or []:
        if not re.search(r"\bextra\s*==", requirement):
            yield from needed(bare_name(requirement), known | {name})


def copy_distribution(name: str, packages: Path) -> None:
    """Copy a distribution's files, compiled ones included, unless this version is there already."""
    distribution = importlib.metadata.distribution(name)
    # What lies outside of site-packages are scripts, which nobody calls here.
    files = [file for file in distribution.files or [] if ".." not in file.parts]
    metadata = next((file for file in files if file.name == "METADATA"), None)
    if not files or metadata is None:
        raise LabError(f"The Python package {name} does not list its files: install it with pip.")
    if (packages / metadata).exists():
        return
    for file in sorted(files, key=lambda file: file == metadata):  # last, because it says that all is there
        source, target = Path(str(distribution.locate_file(file))), packages / file
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def renew(source: Path, target: Path) -> None:
    """Replace `target` by a copy of `source`, links kept, compiled files left out."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))


def synchronize(one: Path, node_tmp: Path, uid: int) -> None:
    """What `onehost sync` does: replace a host's /var/tmp/one by the front-end's remotes."""
    target = node_tmp / "one"
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(one / "var/remotes", target, symlinks=True)
    tree.give(target, uid)
