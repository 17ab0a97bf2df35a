"""README's section Install, followed literally by somebody new, on clean Debians, beside the hosts of a lab.

Needs a checkout of OpenNebula (FASTCOPY_OPENNEBULA), whose installer makes the front-end, and a network: debootstrap's,
apt's and pip's.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from bench.images import edge
from bench.testbed import Lab, LabConfig
from bench.testbed.node import UID
from tests.e2e import look
from tests.e2e.clean_debian import ROOT, CleanDebian, literal_commands
from tests.e2e.cloud import give
from tests.e2e.conftest import CHECKOUT, lab_directory

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not CHECKOUT, reason="needs FASTCOPY_OPENNEBULA (a source checkout of OpenNebula)"),
]

FAST = 101
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts, and an oned that has no datastore of this driver."""
    with Lab.up(LabConfig(hosts=2, fs=("xfs", "ext4"), dir=lab_directory(), disk_size="1G")) as lab:
        for id, type in ((0, "SYSTEM"), (1, "IMAGE")):
            lab.oned.add_datastore(id, type.lower(), type=type, tm_mad="ssh")
        yield lab


@pytest.fixture
def debian(request: pytest.FixtureRequest, lab: Lab) -> Iterator[CleanDebian]:
    with tempfile.TemporaryDirectory(prefix="fastcopy-debian-") as root:
        Path(root).chmod(0o755)
        assert CHECKOUT
        yield CleanDebian(Path(root), request.param, CHECKOUT, lab)


def created(lab: Lab, debian: CleanDebian) -> None:
    """What oned makes of the file that `onedatastore create` was given."""
    found = dict(re.findall(r"^(\w+)\s*=\s*(\S+)$", (debian.root / "root/created").read_text(), re.MULTILINE))
    assert found["TYPE"] == "SYSTEM_DS"
    lab.oned.add_datastore(FAST, found["NAME"], type="SYSTEM", tm_mad=found["TM_MAD"])
    for node in lab.hosts.values():  # it is made nowhere
        shutil.rmtree(node.path(lab.datastores / str(FAST)))


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("debian", ["bookworm", "trixie"], indirect=True)
def test_the_readme_is_followed(lab: Lab, debian: CleanDebian, attempt: int) -> None:
    before = debian.state()
    commands = literal_commands(README, "Install")
    assert commands[0].startswith("apt-get") and commands[-1] == "fastcopy doctor"
    for command in commands:
        said = debian.run(command, beside_hosts=not command.startswith(("apt-get", "install/"))).check()
        if "onedatastore create" in command:
            created(lab, debian)
    assert "0 failed" in said.text or "well" in said.text, said.text

    try:
        deploys(lab, debian, 4000 + attempt)
        for spoil, words in BROKEN.items():
            with spoil(lab, debian):
                found = debian.run("fastcopy doctor", beside_hosts=True)
                assert found.code == 1, found.text
                for word in words:
                    assert word in " ".join(found.text.split()), found.text
        debian.run("fastcopy doctor", beside_hosts=True).check()

        uninstall = "/usr/lib/one/fastcopy/install/uninstall.sh"
        refused = debian.run(uninstall, beside_hosts=True)
        assert refused.code == 1 and f"{FAST} (fast)" in refused.text
    finally:
        lab.oned.remove_datastore(FAST)
    debian.run(uninstall, beside_hosts=True).check()
    after = debian.state()
    assert debian.run("python3 --version").code == 0  # what apt has brought stays
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    ours = ("etc/one", "usr/lib/one", "usr/bin/fastcopy", "var/lib/one/remotes", "etc/systemd", "etc/logrotate.d")
    assert {name for name in changed if name.startswith(ours)} == set()
    assert {name for name in after if "fastcopy" in name} == set()


def deploys(lab: Lab, debian: CleanDebian, number: int) -> None:
    """A VM gets its disk through what was installed."""
    store = lab.datastores / "1"
    image = debian.root / str(store).lstrip("/") / "image"
    image.parent.mkdir(parents=True, exist_ok=True)
    edge.random_data(image, 5 * edge.MIB, seed=number)
    give(image, 0o640)
    lab.oned.add_image(number, 1, f"{store}/image", 5)
    lab.oned.add_vm(number, host="host1", ds_id=FAST, disks=[{"IMAGE_ID": number, "TM_MAD": "fastcopy"}])
    disk = f"{lab.datastores}/{FAST}/{number}/disk.0"
    entry = "sudo -u oneadmin /var/lib/one/remotes/tm/fastcopy"
    debian.run(f"{entry}/clone fe:{store}/image host1:{disk} {number} 1", beside_hosts=True).check()
    made = lab.hosts["host1"].path(disk)
    assert look.same_content(made, image) and made.stat().st_uid == UID
    debian.run(f"{entry}/delete host1:{Path(disk).parent} {number} {FAST}", beside_hosts=True).check()
    assert not made.parent.exists()
    lab.oned.remove_vm(number)


# -- what somebody may break -------------------------------------------------------------------------------------

@contextmanager
def other_text(path: Path, old: str, new: str) -> Iterator[None]:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        yield
    finally:
        path.write_text(text)


@contextmanager
def away(path: Path) -> Iterator[None]:
    kept = path.with_name(f"{path.name}.away")
    path.rename(kept)
    try:
        yield
    finally:
        kept.rename(path)


@contextmanager
def without_the_driver_in_oned_conf(_: Lab, debian: CleanDebian) -> Iterator[None]:
    with other_text(debian.root / "etc/one/oned.conf", ",fastcopy", ""):
        yield


@contextmanager
def with_a_misspelt_setting(_: Lab, debian: CleanDebian) -> Iterator[None]:
    path = debian.root / "etc/one/tm/fastcopy/fastcopy.yaml"
    text = path.read_text()
    path.write_text(f"{text}\nmax_transfer: 3\n")
    try:
        yield
    finally:
        path.write_text(text)


@contextmanager
def without_an_entry_point(_: Lab, debian: CleanDebian) -> Iterator[None]:
    with away(debian.root / "var/lib/one/remotes/tm/fastcopy/mvds"):
        yield


@contextmanager
def without_credentials(_: Lab, debian: CleanDebian) -> Iterator[None]:
    with away(debian.root / "var/lib/one/.one/one_auth"):
        yield


@contextmanager
def with_a_host_that_is_down(lab: Lab, _: CleanDebian) -> Iterator[None]:
    lab.hosts["host2"].stop_sshd()
    try:
        yield
    finally:
        lab.hosts["host2"].start_sshd()


@contextmanager
def with_a_host_that_was_not_synced(lab: Lab, _: CleanDebian) -> Iterator[None]:
    with away(lab.hosts["host1"].path("/var/tmp/one/tm/fastcopy")):
        yield


@contextmanager
def with_a_datastore_of_root(lab: Lab, _: CleanDebian) -> Iterator[None]:
    path = lab.hosts["host1"].path(lab.datastores / str(FAST))
    os.chown(path, 0, 0)
    try:
        yield
    finally:
        os.chown(path, UID, UID)


BROKEN: dict[Callable[[Lab, CleanDebian], AbstractContextManager[None]], list[str]] = {
    without_the_driver_in_oned_conf: ["FAILED oned.conf", "install/install.sh --dry-run"],
    with_a_misspelt_setting: ["FAILED settings", "max_transfers", "mend the line"],
    without_an_entry_point: ["FAILED entry points", "mvds", "run install/install.sh again"],
    without_credentials: ["FAILED oned", "one_auth", "ONE_AUTH"],
    with_a_host_that_is_down: ["FAILED ssh", "host2 cannot be reached", "sudo -u oneadmin ssh host2 true"],
    with_a_host_that_was_not_synced: ["FAILED remotes", "onehost sync --force"],
    with_a_datastore_of_root: ["FAILED datastore", "cannot be written", "see its owner"],
}
