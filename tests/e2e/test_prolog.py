"""bench/prolog in a real lab: it measures, and on a cloud it deploys and deletes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.comparison.__main__ import main
from bench.comparison.values import from_json
from bench.images.edge import MIB, random_data
from bench.testbed.lab import CONTENTS
from tests.e2e.cloud import SYSTEM, Cloud
from tests.e2e.conftest import lab_directory

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[2]


def test_drivers_are_measured_and_checked_on_both_file_systems(tmp_path: Path) -> None:
    directory, file = lab_directory(), tmp_path / "report.json"
    words = ["--synthetic", "--drivers", "fastcopy,ssh-pipeline", "--scenarios", "tiny", "--rounds", "1"]
    assert main([*words, "--link", "none", "--dir", str(directory), "--json", str(file)]) == 0
    assert not directory.exists() or not any((directory / name).exists() for name in CONTENTS)
    report = from_json(file.read_text())
    assert [(cell.fs, cell.driver, len(cell.runs)) for cell in report.cells] == [
        ("xfs", "fastcopy", 1), ("xfs", "ssh-pipeline", 1), ("ext4", "fastcopy", 1), ("ext4", "ssh-pipeline", 1),
    ]  # fmt: skip
    for cell in report.cells:
        (run,) = cell.runs
        assert cell.failures == []
        assert 0 < run.prolog <= run.durable
        assert run.wire > (0 if cell.driver == "fastcopy" else cell.data)  # the pipeline packs nothing
        assert run.cpu_front_end > 0 and cell.peak_front_end > MIB and cell.peak_hosts > MIB
        assert run.cpu_hosts > 0 or cell.driver == "fastcopy"  # a kept agent needs less than is counted
        assert bool(run.phases) == (cell.driver == "fastcopy")
        assert sum(run.phases.values()) <= run.prolog
        assert cell.bound is not None and cell.bound.seconds > 0
    assert {"line none", "disk xfs", "disk ext4"} <= set(report.rates)


def on_the_front_end(cloud: Cloud, *words: str) -> Any:
    """Run bench/prolog --cloud where oned is."""
    argv = [sys.executable, "-m", "bench.comparison", "--cloud", *words]
    env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "ONE_AUTH": "/var/lib/one/.one/one_auth"}
    return cloud.lab.fe.run(argv, user="root", env=env, timeout=120)


def test_on_a_cloud_vms_are_deployed_timed_and_deleted(cloud: Cloud, tmp_path: Path) -> None:
    image = cloud.image(lambda path: random_data(path, 4 * MIB))
    hosts = ["--host", "host1", "--host", "host3"]
    words = ["--image", str(image.id), *hosts, "--datastore", str(SYSTEM), "--rounds", "1"]
    file = tmp_path / "report.json"
    done = on_the_front_end(cloud, *words, "--yes", "--json", str(file))
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    report = json.loads(file.read_text())
    assert [(cell["variant"], cell["fs"], len(cell["runs"])) for cell in report["cells"]] == [
        ("first VM", "host1", 1), ("first VM", "host3", 1), ("next VM", "host1", 1), ("next VM", "host3", 1),
    ]  # fmt: skip
    names = [vm for vm in cloud.lab.oned.state()["vms"].values() if vm["NAME"].startswith("fastcopy-bench")]
    assert [vm["STATE"] for vm in names] == [6] * 4
    for host in ("host1", "host3"):
        assert [path.name for path in cloud.lab.hosts[host].path(cloud.system).iterdir() if path.name.isdigit()] == []


def test_on_a_cloud_nothing_is_done_without_an_answer(cloud: Cloud) -> None:
    image = cloud.known("odd")
    before = set(cloud.lab.oned.state()["vms"])
    done = on_the_front_end(cloud, "--image", str(image.id), "--host", "host1", "--datastore", str(SYSTEM))
    assert done.returncode == 1 and b"creates 4 VMs" in done.stderr and b"Nothing was done" in done.stderr
    assert set(cloud.lab.oned.state()["vms"]) == before
