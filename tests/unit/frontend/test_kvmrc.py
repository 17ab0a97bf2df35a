"""What is read of OpenNebula's kvmrc, which is a shell script that others source."""

from __future__ import annotations

from pathlib import Path

import pytest

from tm_fastcopy.core.errors import Refused
from tm_fastcopy.frontend.kvmrc import Kvmrc


def read(tmp_path: Path, text: str) -> Kvmrc:
    (tmp_path / "kvmrc").write_text(text)
    return Kvmrc.read(tmp_path / "kvmrc")


def test_without_a_file_and_without_a_word_in_it(tmp_path: Path) -> None:
    assert Kvmrc.read(tmp_path / "none") == read(tmp_path, "") == Kvmrc("qemu:///system", 60)


@pytest.mark.parametrize(
    ("text", "uri", "patience"),
    [
        ("export LIBVIRT_URI=qemu:///session\n", "qemu:///session", 60),
        ("LIBVIRT_URI='qemu+unix:///system?socket=/run/x'  # ours\nexport VIRSH_TIMEOUT=5", None, 5),
        ("#export LIBVIRT_URI=qemu:///session\n  VIRSH_TIMEOUT=\"7\"\n", "qemu:///system", 7),
        ("LIBVIRT_URI=qemu:///a\nLIBVIRT_URI=qemu:///b\nLIBVIRT_MD_URI=http://x\n", "qemu:///b", 60),
        ("LIBVIRT_URI=\nVIRSH_TIMEOUT=\n", "qemu:///system", 60),
    ],
)
def test_assignments(tmp_path: Path, text: str, uri: str, patience: int) -> None:
    assert read(tmp_path, text) == Kvmrc(uri or "qemu+unix:///system?socket=/run/x", patience)


@pytest.mark.parametrize(
    "text",
    [
        "LIBVIRT_URI=--all", "LIBVIRT_URI=$(hostname)", "LIBVIRT_URI=system", "VIRSH_TIMEOUT=0", "VIRSH_TIMEOUT=-1",
        "VIRSH_TIMEOUT=3601", "VIRSH_TIMEOUT=1m", "VIRSH_TIMEOUT=²",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    with pytest.raises(Refused, match=str(tmp_path / "kvmrc")):
        read(tmp_path, text)
