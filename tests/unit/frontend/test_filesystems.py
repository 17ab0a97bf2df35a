"""File systems of volatile disks, as OpenNebula's datastore.conf has them; and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tm_fastcopy.core.errors import FastcopyError, Refused
from tm_fastcopy.frontend.filesystems import options
from tm_fastcopy.frontend.sizes import mib

STOCK = """\
# Options for formatting DATABLOCKS
# - FS_OPTS_<FS>: (e.g FS_OPTS_ext4="-b 16384")
SUPPORTED_FS="ext2,ext3,ext4,xfs"

#BACKUP_BASE_PATH="/path/in/the/hosts"
"""


def conf(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "datastore.conf"
    path.write_text(text)
    return path


@pytest.mark.parametrize("fs", ["ext2", "ext3", "ext4", "xfs"])
def test_what_opennebula_has(tmp_path: Path, fs: str) -> None:
    assert options(fs, conf(tmp_path, STOCK)) == []
    assert options(fs, conf(tmp_path, "")) == []
    assert options(fs, tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('FS_OPTS_ext4="-b 4096 -L my"', ["-b", "4096", "-L", "my"]),
        ("  FS_OPTS_ext4='-b 4096'   # as always", ["-b", "4096"]),
        ("export FS_OPTS_ext4=-q", ["-q"]),
        ("FS_OPTS_ext4=\"-O '^metadata_csum,64bit'\"", ["-O", "^metadata_csum,64bit"]),
        ("FS_OPTS_ext4='-b 1024'\nFS_OPTS_ext4='-b 2048'", ["-b", "2048"]),
        ("FS_OPTS_ext4=", []),
        ("FS_OPTS_xfs='-K'", []),
        ("#FS_OPTS_ext4='-b 4096'", []),
    ],
)
def test_options(tmp_path: Path, line: str, words: list[str]) -> None:
    assert options("ext4", conf(tmp_path, STOCK + line)) == words


def test_what_is_not_supported(tmp_path: Path) -> None:
    path = conf(tmp_path, 'SUPPORTED_FS="ext4,btrfs"')
    assert options("btrfs", path) == []
    for fs in ("xfs", "ext4,btrfs", "", "../sh", "EXT4"):
        with pytest.raises(Refused, match=r"SUPPORTED_FS in .*datastore\.conf has ext4, btrfs"):
            options(fs, path)


@pytest.mark.parametrize(
    "line", ['FS_OPTS_ext4="$OTHER"', "FS_OPTS_ext4=`date`", 'FS_OPTS_ext4="-b', "FS_OPTS_ext4=$(id)"]
)
def test_what_only_a_shell_would_know(tmp_path: Path, line: str) -> None:
    with pytest.raises(Refused, match="FS_OPTS_ext4 in"):
        options("ext4", conf(tmp_path, line))
    assert options("xfs", conf(tmp_path, line)) == []


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FastcopyError, match="make it readable"):
        options("ext4", tmp_path)


def test_sizes() -> None:
    assert mib("1") == 1 << 20
    assert mib("999999999") == 999999999 << 20
    for text in ("", "0", "-1", "1.5", "1G", "1000000000", "٣", " 1"):
        with pytest.raises(Refused, match="number of MiB"):
            mib(text)
