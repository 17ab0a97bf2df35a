"""wheels.sh: collects what an installation needs from the Python package index, for machines that do not reach it.

    install/wheels.sh DIRECTORY            on a machine that reaches the index
    install/install.sh --wheelhouse DIRECTORY

`DIRECTORY/*.whl` are for the front-end; `DIRECTORY/hosts/cp311-x86_64/*.whl` for hosts with that Python: these go to a
host in its bundle (`frontend/bundle.py`).  pip takes the newest of each that fits.
"""

from __future__ import annotations

import argparse
import configparser
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Sequence

from ..core.errors import FastcopyError, Refused
from ..frontend.bundle import WHEELS

PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
_GLIBC = ("2_5", "2_12", *(f"2_{minor}" for minor in range(17, 29)))  # RHEL 8 has 2.28, Debian 11 has 2.31
_WAIT = 600  # seconds for one pip; the largest wheel has 5 MB
_AT_ONCE = 3


def tag(python: str, machine: str) -> str:
    """The directory of a host's wheels, as `HostPython.tag` has it."""
    return f"cp{python.replace('.', '')}-{machine}"


def requirements(setup_cfg: Path, needed_only: Sequence[str] = ()) -> List[str]:
    """What setup.cfg lists under install_requires, or those of *needed_only* in it."""
    parser = configparser.ConfigParser()
    parser.read(setup_cfg)
    lines = [line.strip() for line in parser["options"]["install_requires"].splitlines() if line.strip()]
    return [line for line in lines if not needed_only or re.split(r"[^A-Za-z0-9_.-]", line)[0] in needed_only]


def environment() -> Dict[str, str]:
    """Ours for another Python: without what is said to this one."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def pip(python: str, *words: str) -> None:
    """Run pip; `FastcopyError` with the end of what it said."""
    argv = [python, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", *words]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=_WAIT, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise FastcopyError(said[-1].strip() if said else f"pip ended with code {done.returncode}")


def download(python: str, setup_cfg: Path, directory: Path, version: str, machine: str, hosts: bool) -> None:
    """Download wheels for a Python into *directory*, which gets its name when all are there."""
    named = requirements(setup_cfg, WHEELS if hosts else ())
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=directory.parent) as work:
        platforms = [f"--platform=manylinux_{glibc}_{machine}" for glibc in _GLIBC]
        platforms.append(f"--platform=manylinux2014_{machine}")
        target = Path(work, "wheels")
        pip(python, "download", "--quiet", "--only-binary=:all:", "--implementation=cp", f"--python-version={version}",
            *platforms, *(["--no-deps"] if hosts else []), f"--dest={target}", *named)  # fmt: skip
        if not hosts:  # beside what is there for other Pythons
            directory.mkdir(exist_ok=True)
            for wheel in target.iterdir():
                os.replace(wheel, directory / wheel.name)
            return
        if directory.exists():
            shutil.rmtree(directory)
        target.chmod(0o755)
        os.replace(target, directory)


def for_hosts(python: str, setup_cfg: Path, directory: Path, wanted: Sequence[str]) -> Dict[str, str]:
    """Download wheels for each tag of *wanted* into `directory/<tag>`; by tag, why it could not be had."""

    def fetch(name: str) -> str:
        version, machine = split(name)
        try:
            download(python, setup_cfg, directory / name, version, machine, hosts=True)
        except (FastcopyError, OSError, subprocess.TimeoutExpired) as error:
            return str(error) or type(error).__name__
        return ""

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return {name: problem for name, problem in zip(wanted, pool.map(fetch, wanted)) if problem}


def split(name: str) -> List[str]:
    """Python version and machine of a tag; `Refused` if it is none."""
    found = re.fullmatch(r"cp3(\d{1,2})-([a-z0-9_]{1,20})", name)
    if not found:
        raise Refused(f"{name!r} is not of the form cp311-x86_64")
    return [f"3.{found[1]}", found[2]]


def all_tags(pythons: Sequence[str] = PYTHONS, machines: Sequence[str] = MACHINES) -> List[str]:
    """Tags of all combinations."""
    return [tag(python, machine) for machine in machines for python in pythons]


def sources() -> Path:
    """The directory with setup.cfg, `install` and `docs`: a checkout, or a release."""
    package = Path(__file__).resolve().parent.parent
    for top in (package.parent, *list(package.parents)[3:6]):
        if (top / "setup.cfg").is_file() and (top / "install").is_dir():
            return top
    raise FastcopyError(f"setup.cfg is not where it should be, beside {package}: take a complete checkout")


def main(argv: Sequence[str]) -> int:
    """Collect wheels; return the exit code."""
    here = "{}.{}".format(*sys.version_info[:2])
    parser = argparse.ArgumentParser(
        prog="wheels.sh",
        description="Collects the wheels that an installation without a network needs.",
        epilog="examples:\n  install/wheels.sh /media/stick/wheelhouse\n"
        "  install/wheels.sh --front-end 3.9 --python 3.9 --python 3.11 --machine x86_64 wheelhouse",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--front-end", action="append", metavar="VERSION",
                        help=f"Python of the front-end (default: {here}, as on this machine)")  # fmt: skip
    parser.add_argument("--front-end-machine", default=platform.machine(), choices=MACHINES, metavar="MACHINE",
                        help=f"the front-end's architecture, if another: {' or '.join(MACHINES)}")  # fmt: skip
    parser.add_argument("--python", action="append", choices=PYTHONS, metavar="VERSION",
                        help=f"Python of hosts (default: {', '.join(PYTHONS)})")  # fmt: skip
    parser.add_argument("--machine", action="append", choices=MACHINES, metavar="MACHINE",
                        help=f"architecture of hosts (default: {' and '.join(MACHINES)})")  # fmt: skip
    words = parser.parse_args(argv)
    for version in words.front_end or []:
        split(tag(version, words.front_end_machine))
    setup_cfg = sources() / "setup.cfg"
    with tempfile.TemporaryDirectory(prefix="fastcopy-pip-") as work:
        python = with_pip(Path(work, "venv"))
        for version in words.front_end or [here]:
            download(python, setup_cfg, words.directory, version, words.front_end_machine, hosts=False)
        tags = all_tags(words.python or PYTHONS, words.machine or MACHINES)
        problems = for_hosts(python, setup_cfg, words.directory / "hosts", tags)
    for name, problem in problems.items():
        print(f"wheels.sh: nothing for hosts with {name}: {problem}", file=sys.stderr)
    size = sum(path.stat().st_size for path in words.directory.rglob("*.whl")) / 1e6
    print(f"{words.directory}: {len(tags) - len(problems)} of {len(tags)} kinds of hosts, {size:.0f} MB")
    return 1 if problems else 0


def with_pip(venv: Path) -> str:
    """A Python that has pip: this one, or one in a virtual environment made for it."""
    done = subprocess.run([sys.executable, "-I", "-m", "pip", "--version"], capture_output=True, check=False)
    if done.returncode == 0:
        return sys.executable
    make_venv(sys.executable, venv)
    return str(venv / "bin" / "python3")


def make_venv(python: str, venv: Path) -> None:
    """Make a virtual environment; `FastcopyError` says what is missing for it."""
    argv = [python, "-I", "-m", "venv", str(venv)]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=_WAIT, check=False)
    if done.returncode:
        if "ensurepip" in done.stdout + done.stderr:
            raise FastcopyError(
                f"{python} cannot make virtual environments: install its venv module "
                "(Debian and Ubuntu: apt-get install python3-venv)"
            )
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FastcopyError(f"{python} cannot make a virtual environment: {said[-1] if said else 'no reason given'}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (FastcopyError, OSError) as error:
        print(f"wheels.sh: {error}", file=sys.stderr)
        sys.exit(1)
