"""One transfer script with either driver, through one_tm, on a self-contained tree that OpenNebula's installer made and
ours was run on.

Needs a checkout of OpenNebula (FASTCOPY_OPENNEBULA): the tree is its installer's.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed import tree
from bench.testbed.install import public_python
from bench.testbed.node import UID, Node
from bench.testbed.tm import OneTm
from tests.e2e import look
from tests.e2e.cloud import SYSTEM, Cloud, Vm, clone_arguments
from tests.e2e.conftest import CHECKOUT
from tests.e2e.front_end import ROOT, WAIT, make_wheelhouse

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not CHECKOUT, reason="needs FASTCOPY_OPENNEBULA (a source checkout of OpenNebula)"),
]


@pytest.fixture
def installed(cloud: Cloud) -> Iterator[tuple[Node, Path]]:
    """The tree, and the lab's front-end as its programs see it."""
    with tempfile.TemporaryDirectory(prefix="fastcopy-tree-") as top:
        os.chmod(top, 0o755)
        one, fe = Path(top, "one"), cloud.lab.fe
        # What a checkout lacks (programs that are built, downloads) it complains about, and goes on.
        null = subprocess.DEVNULL
        subprocess.run(["./install.sh", "-d", str(one)], cwd=CHECKOUT, stdout=null, stderr=null, timeout=WAIT)
        tree.link_gems(one)
        (one / "var/config").write_text("SCRIPTS_REMOTE_DIR=/var/tmp/one\n")  # oned writes it when it starts
        for command in (cloud.lab.one_location / "bin").glob("one*"):  # of the lab's stand-in for oned
            shutil.copy2(command, one / "bin")
        tree.give(one / "var", UID)
        house = make_wheelhouse(Path(top, "wheelhouse"))
        options = ["--one-location", one, "--wheelhouse", house, "--user", "oneadmin", "--enable"]
        environ = {"PYTHON": str(public_python())}
        fe.run([ROOT / "install/install.sh", *options], user="root", env=environ, timeout=WAIT, check=True)
        paths = {"ONE_LOCATION": str(one), "RUBYLIB": f"{one}/lib/ruby:{one}/lib/ruby/lab"}
        try:
            yield dataclasses.replace(fe, environment={**fe.environment, **paths}), one
        finally:
            cloud.end_daemons()


def listing(vm: Vm) -> dict[str, tuple[object, ...]]:
    """What a driver has left of a VM's disks."""
    found = {}
    for name in ("disk.0", "disk.1"):
        status = (vm.path / name).stat()
        found[name] = (oct(status.st_mode), status.st_uid, status.st_size)
    return {**found, "content": (look.sha256(vm.path / "disk.0"),)}


def test_one_transfer_script_with_either_driver(cloud: Cloud, installed: tuple[Node, Path]) -> None:
    node, one = installed
    assert ",fastcopy" in (one / "etc/oned.conf").read_text()
    image = cloud.image(lambda path: random_data(path, 5 * MIB), mode=0o644)
    left = []
    with OneTm(node, one) as one_tm:
        for driver in ("local", "fastcopy", "ssh"):
            vm = cloud.vm(image)
            cloud.lab.oned.add_vm(vm.id, ds_id=SYSTEM, disks=[{"IMAGE_ID": image.id}, {"TYPE": "swap", "SIZE": 8}])
            source, target, number, store = clone_arguments(image, vm)
            prolog = [
                f"CLONE {driver} {source} {target} {number} {store}",
                f"MKSWAP {driver} 8 {vm.argument('disk.1')} {number} {SYSTEM}",
            ]
            result = one_tm.run(prolog, vm.id)
            assert (result.success, result.info) == (True, "-"), result
            left.append(listing(vm))
            assert look.same_content(vm.path / "disk.0", image.file)
            epilog = [
                f"DELETE {driver} {vm.argument('disk.0')} {number} {store}",
                f"DELETE {driver} {vm.host}:{vm.directory} {number} {SYSTEM}",
            ]
            result = one_tm.run(epilog, vm.id)
            assert (result.success, result.info) == (True, "-"), result
            assert not vm.path.exists()
    assert left[0] == left[1] == left[2]
