"""monitor_ds on a host, as `onehost sync` brings it there, with disks that the driver made.

By OpenNebula's own probe where FASTCOPY_OPENNEBULA names a checkout, by what it does otherwise: it reads `.monitor` in
every datastore, runs the driver's program with a shell, and passes on what that prints.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed.node import Node
from tests.e2e import look
from tests.e2e.cloud import Cloud
from tests.e2e.conftest import CHECKOUT
from tests.support import qemu_img

pytestmark = pytest.mark.root

PROBE = "src/im_mad/remotes/node-probes.d/monitor_ds_vm.rb"
# What the probe does with the one datastore here that has a `.monitor`.
EQUIVALENT = """cd "$0" && for ds in [0-9]*; do
    [ ! -f "$ds/.monitor" ] || sh -c "/var/tmp/one/tm/$(cat "$ds/.monitor")/monitor_ds $0/$ds"
done"""


def probe(cloud: Cloud, host: Node) -> dict[int, list[str]]:
    """What the probe prints on a host, by VM."""
    datastores = str(cloud.lab.datastores)
    if not CHECKOUT:
        done = host.run(["sh", "-c", EQUIVALENT, datastores])
    else:
        directory = host.files / "tmp/probe"
        directory.mkdir(exist_ok=True)
        shutil.copy(Path(CHECKOUT, PROBE), directory)
        (directory / "load_opennebula_paths.rb").touch()  # OpenNebula's packages put something else in its place
        given = f"<MONITOR><DATASTORE_LOCATION>{datastores}</DATASTORE_LOCATION></MONITOR>".encode()
        words = ["ruby", f"/var/tmp/probe/{Path(PROBE).name}"]
        done = host.run(words, input=given, env={"RUBYLIB": "/var/tmp/probe"})
    assert (done.returncode, done.stderr) == (0, b"")
    found = re.findall(r'^VM = \[ ID = ([0-9]+), MONITOR = "([^"]+)" \]$', done.stdout.decode(), re.MULTILINE)
    assert len(found) == len(done.stdout.splitlines())
    return {int(vm): base64.b64decode(text).decode().splitlines() for vm, text in found}


def mib(path: Path) -> int:
    """What a file holds, in MiB, rounded up."""
    return -(-look.allocated(path) // MIB)


def test_the_probe_reports_what_the_disks_hold(cloud: Cloud) -> None:
    """Defect A9 of the stock drivers."""
    host = cloud.lab.hosts["host1"]
    raw = cloud.image(lambda path: random_data(path, 3 * MIB))
    os.truncate(raw.file, 64 * MIB)
    qcow2 = cloud.image(lambda path: qemu_img("create", "-q", "-f", "qcow2", path, "1G"), format="qcow2")
    first, second, cut_off = cloud.vm(raw), cloud.vm(qcow2), cloud.vm(raw)
    cloud.clone(raw, first).succeeded()
    cloud.clone(qcow2, second).succeeded()
    cut_off.path.mkdir()
    random_data(cut_off.path / ".disk.0.fastcopy.part", MIB)
    size = mib(second.path / "disk.0.snap/0")
    expected = {
        first.id: [f"DISK_SIZE = [ ID=0, SIZE={mib(first.path / 'disk.0')} ]"],
        second.id: [f"DISK_SIZE = [ ID=0, SIZE={size} ]", f"SNAPSHOT_SIZE = [ ID=0, DISK_ID=0, SIZE={size} ]"],
    }
    assert expected[first.id] == ["DISK_SIZE = [ ID=0, SIZE=3 ]"] and expected[second.id][0].endswith("SIZE=1 ]")
    assert probe(cloud, host) == expected
    (first.path / "disk.1").symlink_to("disk.1.snap/0")  # leads nowhere: the others are reported all the same
    assert probe(cloud, host) == expected
