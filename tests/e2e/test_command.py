"""The command `fastcopy` on the front-end of the lab: as an administrator types it, and what a program reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import processes
from bench.testbed.node import Node
from tests.e2e import look
from tests.e2e.cloud import HOSTS, Cloud, clone_arguments, rate, traffic, wait_for_bytes
from tests.e2e.test_bad_hosts import filled, other_programs
from tm_fastcopy.setup import onedconf

pytestmark = pytest.mark.root

# A python3 whose clock is an hour ahead.
WRONG_CLOCK = """#!/bin/sh
for code; do :; done
exec {real}/python3 -I -S -c '
import sys, time
right = time.time_ns
time.time_ns = lambda: right() + 3600 * 10**9
exec(sys.argv[1])' "$code"
"""


class Said:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def well(self) -> Any:
        """What a command that went well printed as JSON, or its text."""
        assert self.code == 0, self.out + self.err
        return json.loads(self.out) if self.out.startswith("{") else self.out

    def badly(self, *words: str) -> None:
        """Assert that it failed with one sentence that has these words."""
        assert self.code == 1, self.out + self.err
        (line,) = self.err.splitlines()
        for word in ("fastcopy ", *words):
            assert word in line, line


def fastcopy(cloud: Cloud, *words: object, user: str = "oneadmin") -> Said:
    """Run the command."""
    argv = [str(cloud.lab.one_location / "bin/fastcopy"), *map(str, words)]
    done = cloud.lab.fe.run(argv, user=user, timeout=120)
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_an_image_is_pushed_and_looked_after_in_the_cache(cloud: Cloud) -> None:
    host = HOSTS["ext4"]  # where disk and cache are written in one go
    image = cloud.known("random")
    file = image.file
    place = f"{host}:{cloud.system}/999999/disk.0"
    disk = cloud.lab.hosts[host].path(f"{cloud.system}/999999/disk.0")
    pushed = fastcopy(cloud, "push", "--json", image.path, place).well()
    assert (pushed["size"], pushed["disk"]) == (file.stat().st_size, f"{cloud.system}/999999/disk.0")
    assert look.same_content(disk, file)
    look.is_disk(disk, 0o640)
    assert look.leftovers(disk.parent) == []
    fastcopy(cloud, "push", image.path, place).badly("there is a file at", "--replace")
    disk.write_bytes(b"something else")
    cloud.wait_for_quiet(host)
    assert "cache" in fastcopy(cloud, "push", "--replace", image.path, place, user="root").well()
    assert look.same_content(disk, file)
    look.is_disk(disk, 0o640)  # root works as oneadmin

    listed = fastcopy(cloud, "cache", "ls", host, "--json").well()
    (cache,) = listed["caches"]
    (row,) = cache["images"]
    name = row["manifest"]
    assert (name, row["size"], row["pinned"], row["bad"]) == (pushed["manifest"], pushed["size"], False, False)
    assert cache["reflink"] is False
    table = fastcopy(cloud, "cache", "ls", f"{host}:0").well()
    assert name[:12] in table and "24.0 MiB" in table and f"{image.id} (image-{image.id})" in table
    fastcopy(cloud, "cache", "pin", host, name[:8]).well()
    fastcopy(cloud, "cache", "rm", host, name[:8]).badly("pinned")
    fastcopy(cloud, "cache", "unpin", host, name).well()
    assert "is sound" in fastcopy(cloud, "cache", "verify", host, name[:8]).well()
    assert "all sound" in fastcopy(cloud, "cache", "scrub", host, "--rate", "100M").well()

    entry = cloud.cache(host) / f"{name}.img"
    status = entry.stat()
    with entry.open("r+b") as content:
        content.seek(5 * 1024 * 1024)
        content.write(b"rot")
    os.utime(entry, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = fastcopy(cloud, "cache", "verify", host, name[:8])
    assert found.code == 1 and "damaged" in found.out
    assert "damaged" in fastcopy(cloud, "cache", "ls", host).well()
    fastcopy(cloud, "cache", "rm", host, name[:8]).well()
    assert fastcopy(cloud, "cache", "ls", f"{host}:{cloud.system}", "--json").well()["caches"][0]["images"] == []
    fastcopy(cloud, "cache", "ls", f"{host}:77").badly("not the number of a system datastore")


def test_what_runs_is_seen_and_ended_and_goes_on_where_it_was(cloud: Cloud) -> None:
    cloud.end_daemons()
    assert "Nothing is being transferred" in fastcopy(cloud, "status").well()
    image = cloud.known("random")
    size = image.file.stat().st_size
    vm = cloud.vm(image)
    node = cloud.node(vm)
    with rate(cloud.lab, "host1", "20mbit"):  # ten seconds
        running = cloud.start_clone(image, vm)
        wait_for_bytes(node, size // 6)
        (row,) = fastcopy(cloud, "status", "--json").well()["transfers"]
        seen = {name: row[name] for name in ("vm", "disk", "host", "action", "phase", "directory")}
        assert seen == {
            "vm": vm.id, "disk": "disk.0", "host": "host1", "action": "clone", "phase": "transfer",
            "directory": vm.directory,
        }  # fmt: skip
        assert 0 < row["done"] < row["total"] <= 1.1 * size
        assert 0 < row["rate"] < 20e6 / 8 * 1.5 and row["left"] > 0 and row["age"] > 0
        table = fastcopy(cloud, "status", user="root").well().splitlines()
        assert len(table) == 2 and re.search(rf"^ *{vm.id} +disk.0 +host1 +clone +transfer .*MiB/s", table[1]), table
        fastcopy(cloud, "cancel", vm.id + 1).badly("nothing runs")
        said = fastcopy(cloud, "cancel", vm.id, 0, "--keep").well()
        assert "clone of disk.0" in said and "left: what has arrived" in said and f"--retry {vm.id}" in said
        running.outcome().failed("ended by `fastcopy cancel`")
        cloud.wait_for_quiet("host1")
    assert not os.path.lexists(vm.path / "disk.0")
    assert {path.name for path in vm.path.iterdir()} <= {".disk.0.fastcopy.part"}
    fastcopy(cloud, "cancel", vm.id).badly("nothing runs")
    with traffic(node) as again:
        cloud.clone(image, vm).succeeded()
    assert again.rx < 0.9 * size  # what had arrived was used
    assert look.same_content(vm.path / "disk.0", image.file)
    assert look.leftovers(vm.path) == []


def test_the_vms_log_says_how_far_a_slow_transfer_is(cloud: Cloud) -> None:
    """In the daemon and in processes of their own."""
    image = cloud.known("random")
    vms = {daemon: cloud.vm(image, host) for daemon, host in (("yes", "host1"), ("no", "host2"))}
    with rate(cloud.lab, "host1", "15mbit"), rate(cloud.lab, "host2", "15mbit"):  # 13 seconds: a line after ten of them
        running = {
            vm: cloud.start("clone", clone_arguments(image, vm), FASTCOPY_DAEMON=daemon) for daemon, vm in vms.items()
        }
        for vm, one in running.items():
            said = one.outcome().succeeded().log
            line = next(line for line in said if "after 1" in line)
            bytes_and_rate = r"\d+ % of 24.0 MiB, [\d.]+ [KM]?i?B/s(, .* left)?"
            assert re.fullmatch(rf"INFO: {vm.id} clone: after 1\d s: transfer, {bytes_and_rate}", line), line
            assert all(line.startswith(f"INFO: {vm.id} clone: ") for line in said)


# -- doctor ------------------------------------------------------------------------------------------------------


def doctor(cloud: Cloud, *words: str, well: bool = False) -> list[dict[str, str]]:
    """All checks of a run, which must have ended as they say."""
    said = fastcopy(cloud, "doctor", "--json", *words)
    found = json.loads(said.out)
    assert found["well"] == well == (said.code == 0), said.out
    checks: list[dict[str, str]] = found["checks"]
    return checks


def failed(checks: list[dict[str, str]]) -> dict[tuple[str, str], str]:
    """What failed, by place and name: the sentence and what to do."""
    return {(c["where"], c["name"]): f"{c['sentence']} -> {c['advice']}" for c in checks if c["state"] == "failed"}


def test_doctor_finds_a_healthy_cloud_well(cloud: Cloud) -> None:
    checks = doctor(cloud, "--all-pairs", well=True)
    names = {(check["where"], check["name"]) for check in checks if check["state"] == "ok"}
    for host in HOSTS.values():
        assert {(host, name) for name in ("ssh", "python", "remotes", "clock", "space", "ssh to hosts")} <= names
    assert {("front-end", name) for name in ("oned.conf", "vmm_execrc", "oned", "datastores", "entry points")} <= names
    assert (HOSTS["xfs"], "reflink") in names and (HOSTS["ext4"], "reflink") not in names
    assert len([check for check in checks if check["name"] == "ssh to hosts"]) == 6
    text = fastcopy(cloud, "doctor", "host1", user="root")
    assert text.code == 0 and "All is well" in text.out and "host2" not in text.out, text.out
    fastcopy(cloud, "doctor", "host9").badly("no host host9")


@contextmanager
def changed(file: Path, text: str) -> Iterator[None]:
    """A file that says something else in a block."""
    before = file.read_text()
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(before)


@contextmanager
def down(node: Node) -> Iterator[None]:
    """A host whose sshd does not run."""
    node.stop_sshd()
    try:
        yield
    finally:
        node.start_sshd()


def test_doctor_says_what_is_wrong_and_what_to_do(cloud: Cloud) -> None:
    """Eight things are broken at once, on the front-end and on three hosts."""
    one, hosts = cloud.lab.one_location, cloud.lab.hosts
    conf = (one / "etc/oned.conf").read_text()
    stale = hosts["host1"].path("/var/tmp/one/tm/fastcopy/clone")
    state = cloud.lab.oned.state()["datastores"]["0"]
    lacking = {**state["TEMPLATE"], "SHARED": "", "FASTCOPY_LANES": "many"}
    with ExitStack() as broken:
        broken.enter_context(changed(one / "etc/oned.conf", conf.replace(f",{onedconf.NAME}", "")))
        broken.enter_context(changed(stale, "#!/bin/sh\n# of an older version\n"))
        broken.enter_context(other_programs(hosts["host1"], WRONG_CLOCK))
        broken.enter_context(other_programs(hosts["host2"], ""))
        broken.enter_context(down(hosts["host3"]))
        cloud.lab.oned.add_datastore(0, "system", type="SYSTEM", template=lacking)
        broken.callback(cloud.lab.oned.add_datastore, 0, "system", type="SYSTEM")
        found = failed(doctor(cloud, "--all-pairs"))
        text = fastcopy(cloud, "doctor")
    for key, words in {
        ("front-end", "oned.conf"): ["ds-system, tm-driver", "install.sh", "--enable", "restart oned"],
        ("front-end", "datastores"): ["0 (system) lacks SHARED", "onedatastore update 0"],
        ("front-end", "settings"): ["FASTCOPY_LANES is 'many' in datastore 0", "onedatastore update 0"],
        ("host1", "remotes"): ["not those of the front-end", "onehost sync --force"],
        ("host1", "clock"): ["s ahead of ours", "chrony"],
        ("host1", "ssh to hosts"): ["cannot log into host3", "refused"],
        ("host2", "agent"): ["no python3", "install it"],
        ("host3", "ssh"): ["host3 cannot be reached", "refused", "sudo -u oneadmin ssh host3 true"],
    }.items():
        assert key in found, found
        for word in words:
            assert word in found[key], found[key]
    assert len(found) == 8, found
    assert text.code == 1
    for words in ("FAILED clock", "-> onehost sync --force", "failed;"):
        assert words in text.out
    assert doctor(cloud, well=True)


def test_doctor_finds_a_full_host_and_an_oned_that_is_down(cloud: Cloud) -> None:
    node = cloud.lab.hosts[HOSTS["ext4"]]
    with filled(node.path(cloud.lab.datastores), 10 * 1024 * 1024):
        found = failed(doctor(cloud, HOSTS["ext4"]))
    assert list(found) == [(HOSTS["ext4"], "space")]
    assert "no VM fits" in found[HOSTS["ext4"], "space"] and "make room" in found[HOSTS["ext4"], "space"]
    cloud.lab.oned.stop()
    try:
        found = failed(doctor(cloud))
    finally:
        cloud.lab.oned.start()
    assert list(found) == [("front-end", "oned")]
    assert "does not answer" in found["front-end", "oned"]
    processes.wait_for(lambda: cloud.lab.oned.condition() == "answers", 20, "oned's stand-in to answer")
