"""The bootstrap's text: it must run on whatever python3 a host has, far enough to say what that is."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Dict, Tuple

import pytest

TEXT = (Path(__file__).resolve().parents[3] / "tm_fastcopy" / "agent" / "bootstrap.py").read_text()
AGENT = "def main(mode, read_fd, write_fd, digest):\n    import os\n    os.write(write_fd, ('RUN ' + mode).encode())\n"
MEMBERS = {"tm_fastcopy/__init__.py": "", "tm_fastcopy/agent/__init__.py": "", "tm_fastcopy/agent/main.py": AGENT}


def test_it_parses_on_an_old_python() -> None:
    ast.parse(TEXT, feature_version=(3, 6))
    assert "from __future__" not in TEXT


def test_before_the_banner_it_needs_nothing_that_an_old_python_lacks() -> None:
    """Imports that are not in every Python 3 would fail before the version has been told."""
    names = {alias.name for node in ast.walk(ast.parse(TEXT)) if isinstance(node, ast.Import) for alias in node.names}
    assert names == {"sys", "os", "pwd", "hashlib", "shutil", "tarfile", "tempfile"}


def bundle(members: Dict[str, str]) -> Tuple[str, bytes]:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return hashlib.sha256(raw.getvalue()).hexdigest(), raw.getvalue()


class Home:
    """A user's home directory, and the bootstrap run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache = path / ".cache" / "fastcopy"

    def boot(self, *pieces: bytes) -> subprocess.CompletedProcess[bytes]:
        """Run the bootstrap on some input.  It looks its home up in the user database, which is replaced here."""
        fake = f"import pwd, types; pwd.getpwuid = lambda uid: types.SimpleNamespace(pw_dir={str(self.path)!r})\n"
        argv = [sys.executable, "-I", "-S", "-c", fake + TEXT]
        return subprocess.run(argv, input=b"".join(pieces), capture_output=True, check=False, timeout=60)

    def words(self, done: subprocess.CompletedProcess[bytes]) -> str:
        """The first word of each line that came."""
        return " ".join(line.split()[0].decode() for line in done.stdout.splitlines() if line.strip())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def call(digest: str, content: bytes, mode: str = "control") -> bytes:
    return f"BUNDLE {digest} {len(content)} {mode}\n".encode()


def test_it_tells_which_python_this_is(home: Home) -> None:
    done = home.boot()
    version = "{}.{}".format(*sys.version_info[:2])
    words = ["FASTCOPY-BOOT", "1", version, sys.implementation.name, os.uname().machine]
    assert done.stdout.decode().split() == words
    assert done.returncode == 0


def test_it_takes_the_bundle_once(home: Home) -> None:
    digest, content = bundle(MEMBERS)
    assert home.words(home.boot(call(digest, content), content)) == "FASTCOPY-BOOT NEED GOT RUN"
    assert home.words(home.boot(call(digest, content, "lane"))) == "FASTCOPY-BOOT HAVE RUN"
    assert os.listdir(home.cache) == [digest]


@pytest.mark.parametrize("damage", ["a file is gone", "a file is empty", "a file is rubbish", "the mark is gone"])
def test_a_bundle_that_was_damaged_here_is_taken_again(home: Home, damage: str) -> None:
    digest, content = bundle(MEMBERS)
    home.boot(call(digest, content), content)
    main = home.cache / digest / "tm_fastcopy/agent/main.py"
    if damage == "the mark is gone":
        (home.cache / digest / "complete").unlink()
        main.write_bytes(b"rubbish")
    else:
        main.unlink()
        if damage != "a file is gone":
            main.write_bytes(b"" if damage == "a file is empty" else b"\0rubbish")
        done = home.boot(call(digest, content))
        assert home.words(done) == "FASTCOPY-BOOT HAVE" and done.returncode == 1
        (sentence,) = done.stderr.decode().splitlines()
        assert "were damaged" in sentence and "repeat the action" in sentence
        assert os.listdir(home.cache) == []
    assert home.words(home.boot(call(digest, content), content)) == "FASTCOPY-BOOT NEED GOT RUN"
    assert home.words(home.boot(call(digest, content))) == "FASTCOPY-BOOT HAVE RUN"
    assert os.listdir(home.cache) == [digest]


def test_a_bundle_that_was_cut_off_leaves_nothing(home: Home) -> None:
    digest, content = bundle(MEMBERS)
    assert home.words(home.boot(call(digest, content), content[:-1])) == "FASTCOPY-BOOT NEED"
    assert os.listdir(home.cache) == []


def test_a_bundle_that_was_damaged_is_not_run(home: Home) -> None:
    digest, content = bundle(MEMBERS)
    done = home.boot(call(digest, content), content[:-1] + b"x")
    assert home.words(done) == "FASTCOPY-BOOT NEED"
    assert b"damaged" in done.stderr
    assert os.listdir(home.cache) == []


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x"])
def test_a_bundle_with_a_path_that_leads_out_is_not_unpacked(home: Home, name: str) -> None:
    digest, content = bundle({**MEMBERS, name: "x"})
    done = home.boot(call(digest, content), content)
    assert b"should not" in done.stderr
    assert os.listdir(home.cache) == []


@pytest.mark.parametrize(
    "line", [b"\n", b"x\n", b"BUNDLE x 1 control\n", b"BUNDLE " + b"g" * 64 + b" 1 control\n", b"a" * 1000]
)
def test_nonsense_ends_it(home: Home, line: bytes) -> None:
    done = home.boot(line)
    assert home.words(done) == "FASTCOPY-BOOT"
    assert done.returncode == 1
    assert not home.cache.exists()


@pytest.mark.parametrize("size", [0, 64 * 1024 * 1024 + 1, 1 << 60])
def test_a_bundle_of_an_impossible_size_is_not_read(home: Home, size: int) -> None:
    done = home.boot(b"BUNDLE %s %d control\n" % (b"a" * 64, size))
    assert home.words(done) == "FASTCOPY-BOOT NEED"
    assert done.returncode == 1


def test_a_directory_that_others_can_write_is_not_used(home: Home) -> None:
    home.cache.mkdir(parents=True)
    home.cache.chmod(0o777)
    digest, content = bundle(MEMBERS)
    assert b"writable by nobody else" in home.boot(call(digest, content), content).stderr
    assert os.listdir(home.cache) == []
