"""Settings through the entry point: what is refused, in one sentence, and that what is set takes effect."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed import processes
from bench.testbed.install import ROOT
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, SYSTEM, Cloud, Image, Vm, rate

pytestmark = pytest.mark.root

DEFAULT_FILE = ROOT / "install/fastcopy.yaml"
LANES = "it must be a number from 1 to 16"


@contextmanager
def attributes(cloud: Cloud, system: Mapping[str, str] = {}, image: Mapping[str, str] = {}) -> Iterator[None]:
    """The datastores with these attributes, in a block."""
    oned = cloud.lab.oned
    oned.add_datastore(SYSTEM, "system", type="SYSTEM", template=system)
    oned.add_datastore(DEFAULT, "default", template=image)
    cloud.end_daemons()  # one remembers datastores for some seconds
    try:
        yield
    finally:
        oned.add_datastore(SYSTEM, "system", type="SYSTEM")
        oned.add_datastore(DEFAULT, "default")
        cloud.end_daemons()


def file_of(cloud: Cloud) -> Path:
    """The lab's fastcopy.yaml."""
    return cloud.lab.one_location / "etc/tm/fastcopy/fastcopy.yaml"


@contextmanager
def configuration(cloud: Cloud, text: str) -> Iterator[None]:
    """The configuration file with another content, in a block."""
    file = file_of(cloud)
    before = file.read_text()
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(before)


def small(cloud: Cloud) -> tuple[Image, Vm]:
    """An image that is copied in no time, and a VM for it."""
    image = cloud.image(lambda path: random_data(path, MIB + 100))
    return image, cloud.vm(image)


def assert_good(cloud: Cloud, image: Image, vm: Vm) -> None:
    """Assert that clone and mvds work now."""
    cloud.clone(image, vm).succeeded()
    assert look.same_content(vm.path / "disk.0", image.file)
    cloud.mvds(vm, image).succeeded()


def test_the_lab_has_the_default_file(cloud: Cloud) -> None:
    assert file_of(cloud).read_text() == DEFAULT_FILE.read_text()
    assert_good(cloud, *small(cloud))


def test_a_wrong_attribute_names_the_datastore_the_attribute_and_the_range(cloud: Cloud) -> None:
    image, vm = small(cloud)
    with attributes(cloud, system={"FASTCOPY_LANES": "99"}):
        sentence = f"FASTCOPY_LANES is '99' in datastore {SYSTEM}; {LANES}"
        assert cloud.clone(image, vm).failed().errors == [sentence]
        assert cloud.mvds(vm, image).failed().errors == [sentence]
    with attributes(cloud, image={"FASTCOPY_LANES": "99"}):
        sentence = f"FASTCOPY_LANES is '99' in datastore {DEFAULT}; {LANES}"
        assert cloud.clone(image, vm).failed().errors == [sentence]
        assert cloud.mvds(vm, image).failed().errors == [sentence]
    with attributes(cloud, system={"FASTCOPY_CACHE": [{"MAX_SIZE": "50%"}]}):  # type: ignore[dict-item]
        cloud.clone(image, vm).failed("'FASTCOPY_CACHE' in datastore 0 is no setting", "nearest is FASTCOPY_CACHE_")
    assert not vm.path.exists()
    assert_good(cloud, image, vm)


def test_a_mistake_in_another_datastore_stops_nobody(cloud: Cloud) -> None:
    image, vm = small(cloud)
    cloud.lab.oned.add_datastore(100, "system_ssh", type="SYSTEM", template={"FASTCOPY_LANES": "99"})
    try:
        assert_good(cloud, image, vm)
    finally:
        cloud.lab.oned.add_datastore(100, "system_ssh", type="SYSTEM", tm_mad="ssh")


def test_a_mistake_in_the_file_names_the_file_and_the_line(cloud: Cloud) -> None:
    image, vm = small(cloud)
    where = f"{file_of(cloud)}, line 2"
    for text, sentence in (
        ("# ours\nlane: 4\n", f"'lane' in {where} is no setting of fastcopy; the nearest is lanes"),
        ("# ours\nlanes: 99\n", f"lanes is '99' in {where}; {LANES}"),
        ("# ours\nlanes: [4\n", f"{where}: a list begins here; no setting has one"),
        ("lanes: 4\n\tclone: copy\n", f"{where}: this is not YAML: found character '\\t' that cannot start any token"),
    ):
        with configuration(cloud, text):
            assert cloud.clone(image, vm).failed().errors == [sentence]
            assert cloud.mvds(vm, image).failed().errors == [sentence]
    assert not vm.path.exists()
    assert_good(cloud, image, vm)


def test_a_file_that_oneadmin_cannot_read_is_an_error_and_none_is_not(cloud: Cloud) -> None:
    image, vm = small(cloud)
    file = file_of(cloud)
    try:
        file.chmod(0)
        cloud.clone(image, vm).failed(f"the configuration {file} cannot be read: Permission denied")
        file.unlink()
        assert_good(cloud, image, vm)
    finally:
        shutil.copyfile(DEFAULT_FILE, file)


def test_an_attribute_outranks_the_file(cloud: Cloud) -> None:
    image = cloud.image(lambda path: random_data(path, 96 * MIB))
    vm = cloud.vm(image)
    attribute = {"FASTCOPY_LANES": "2"}
    with configuration(cloud, "lanes: 1\n"), attributes(cloud, attribute), rate(cloud.lab, "host1", "200mbit"):
        running = cloud.start_clone(image, vm)
        processes.wait_for(lambda: len(cloud.agents("host1")) == 3, 60, "control and two lanes")
        running.outcome().succeeded()
    assert look.same_content(vm.path / "disk.0", image.file)
