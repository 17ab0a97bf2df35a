"""The bundle: equal input makes an equal file, and a host that it cannot be made for is told why."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import List

import pytest

from tm_fastcopy.core.errors import FastcopyError
from tm_fastcopy.frontend.bundle import WHEELS, Bundle, Bundles, HostPython, bootstrap_argv, build

OTHER = HostPython("3.9", "cpython", "riscv128")


def names(bundle: Bundle) -> List[str]:
    with tarfile.open(fileobj=io.BytesIO(bundle.content)) as archive:
        return archive.getnames()


def wheels(directory: Path, *packages: str) -> None:
    """Put wheels for OTHER there."""
    place = directory / OTHER.tag
    place.mkdir(parents=True)
    for name in packages:
        with zipfile.ZipFile(place / f"{name}-1.0-cp39-cp39-linux.whl", "w") as archive:
            archive.writestr(f"{name}/__init__.py", f"# {name}")
            archive.mkdir(f"{name}/empty") if hasattr(archive, "mkdir") else None


def test_it_holds_core_agent_and_three_packages_and_no_front_end(tmp_path: Path) -> None:
    found = names(build(HostPython.here(), tmp_path))
    tops = {name.split("/")[0] for name in found}
    assert {"tm_fastcopy", *WHEELS} <= tops
    assert "tm_fastcopy/core/wire.py" in found and "tm_fastcopy/agent/main.py" in found
    assert not [name for name in found if "frontend" in name or "__pycache__" in name or name.endswith(".pyc")]
    assert found == sorted(found)


def test_equal_input_makes_an_equal_file(tmp_path: Path) -> None:
    one = build(HostPython.here(), tmp_path)
    code = (
        "from tm_fastcopy.frontend.bundle import build, HostPython; from pathlib import Path;"
        f"print(build(HostPython.here(), Path({str(tmp_path)!r})).digest)"
    )
    root = Path(__file__).resolve().parents[3]
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == one.digest == hashlib.sha256(one.content).hexdigest()


def test_it_is_small_enough_for_the_bootstrap(tmp_path: Path) -> None:
    assert len(build(HostPython.here(), tmp_path).content) < 64 * 1024 * 1024


@pytest.mark.parametrize(
    ("version", "implementation"), [("3.8", "cpython"), ("3.6", "cpython"), ("2.7", "cpython"), ("3.11", "pypy")]
)
def test_a_python_that_will_not_do_is_named(tmp_path: Path, version: str, implementation: str) -> None:
    with pytest.raises(FastcopyError, match=f"its python3 is {implementation} {version}, and the agent needs CPython"):
        build(HostPython(version, implementation, "x86_64"), tmp_path)


def test_missing_wheels_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FastcopyError, match="--hosts cp39-riscv128"):
        build(OTHER, tmp_path)


def test_some_of_the_wheels_are_not_enough(tmp_path: Path) -> None:
    wheels(tmp_path, "blake3", "xxhash")
    with pytest.raises(FastcopyError, match="there are no wheels"):
        build(OTHER, tmp_path)


def test_wheels_for_another_python_are_unpacked_into_it(tmp_path: Path) -> None:
    wheels(tmp_path, *WHEELS)
    found = names(build(OTHER, tmp_path))
    assert {f"{name}/__init__.py" for name in WHEELS} <= set(found)


def test_a_bundle_is_built_once(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path)
    assert bundles.get(HostPython.here()) is bundles.get(HostPython.here())


def test_tags() -> None:
    assert HostPython("3.11", "cpython", "x86_64").tag == "cp311-x86_64"


def test_the_remote_command_is_safe_in_any_shell() -> None:
    *words, code = bootstrap_argv()
    assert words == ["exec", "python3", "-I", "-S", "-c"]
    assert code[0] == code[-1] == '"'
    assert not set(code[1:-1]) & set("\"\\$`!\n")
    assert len(code) < 4096
