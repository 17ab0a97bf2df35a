"""What `bench/prolog --cloud` will do: VMs of which images, in which system datastores, on which hosts."""

from __future__ import annotations

import argparse
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence

from bench.comparison.oned_api import Api, CloudError, by_id, parse, text_of

READY = (1, 2)  # IMAGE STATE: ready, used
NAME = "fastcopy-bench"
"""What the names of all VMs begin with."""


@dataclass(frozen=True)
class Place:
    """Where VMs of one image are made: a system datastore and a host. *row*: what it is compared in."""

    row: str
    image: int
    megabytes: int
    driver: str  # the image datastore's: what oned calls for a disk of it
    system_driver: str
    datastore: int
    datastore_name: str
    host: int
    host_name: str


@dataclass(frozen=True)
class Plan:
    """All places, and how many VMs are made at each, one after another."""

    places: List[Place]
    rounds: int

    @property
    def count(self) -> int:
        """How many VMs in all."""
        return len(self.places) * self.rounds

    def words(self) -> str:
        """What an administrator should know before it begins."""
        lines = [
            f"This creates {self.count} VMs named {NAME}-..., one at a time, each with 128 MB of memory and one disk, "
            "waits for its prolog, and deletes it:"
        ]
        lines += [
            f"  {self.rounds} x image {place.image} ({place.megabytes} MB, driver {name_of(place)}) in datastore "
            f"{place.datastore} ({place.datastore_name}) on {place.host_name}"
            for place in self.places
        ]
        return "\n".join(lines)


def make_plan(
    api: Api, rows: Sequence[Mapping[int, str]], hosts: Sequence[str], stores: Sequence[int], rounds: int
) -> Plan:
    """Every image in every system datastore that fits its own, on every host.

    CloudError if something is not there, or cannot be compared.

    rows -- ids of images that are compared with each other, with the driver that each is said to have ("": any)
    stores -- ids of system datastores to use; none: all that fit
    """
    datastores = by_id(api("one.datastorepool.info"), "DATASTORE")
    known = {text_of(item, "NAME"): item for item in by_id(api("one.hostpool.info"), "HOST").values()}
    for name in hosts:
        if name not in known:
            raise CloudError(f"oned has no host {name}; it has {', '.join(sorted(known)) or 'none'}")
        if text_of(known[name], "STATE") != "2":
            raise CloudError(f"the host {name} is not in state MONITORED, so no VM can be deployed there")
    places: List[Place] = []
    for row, number, wanted in [(one, *image) for one in rows for image in one.items()]:
        image = parse(api("one.image.info", number, False))
        if int(text_of(image, "STATE")) not in READY or text_of(image, "PERSISTENT") == "1":
            raise CloudError(f"image {number} is not ready, or is persistent: give one that VMs can be cloned from")
        home = datastores[int(text_of(image, "DATASTORE_ID"))]
        driver = text_of(home, "TM_MAD")
        if wanted and driver != wanted:
            raise CloudError(f"image {number} has the driver {driver}, not {wanted}")
        fitting = [
            item for key, item in sorted(datastores.items())
            if text_of(item, "TYPE") == "1" and (not stores or key in stores) and fits(home, item)
        ]  # fmt: skip
        if not fitting:
            raise CloudError(
                f"image {number} lies in datastore {text_of(home, 'ID')} with the driver {driver}, and no "
                "system datastore that was asked for fits it"
            )
        places += [
            Place(
                _row_of(row), number, int(text_of(image, "SIZE")), driver, text_of(item, "TM_MAD"),
                int(text_of(item, "ID")), text_of(item, "NAME"), int(text_of(known[name], "ID")), name,
            )
            for item in fitting
            for name in hosts
        ]  # fmt: skip
    for row in rows:
        if len({place.driver for place in places if place.image in row}) < len(row):
            raise CloudError(f"two of the {_row_of(row)} have the same driver: each has its own column")
        if len({place.megabytes for place in places if place.image in row}) > 1:
            raise CloudError(f"the {_row_of(row)} are not of the same size, so they are not the same image")
    return Plan(places, rounds)


def _row_of(row: Mapping[int, str]) -> str:
    return f"image{'s' if len(row) > 1 else ''} {', '.join(map(str, row))}"


def fits(image_store: ElementTree.Element, system_store: ElementTree.Element) -> bool:
    """Whether oned would put disks of images from one datastore into the other."""
    driver = text_of(system_store, "TM_MAD")
    listed = _words(text_of(image_store, "TEMPLATE/COMPATIBLE_SYS_DS"))
    if listed and text_of(system_store, "ID") not in listed:
        return False
    return driver == text_of(image_store, "TM_MAD") or driver in _words(text_of(image_store, "TEMPLATE/TM_MAD_SYSTEM"))


def _words(text: str) -> List[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def name_of(place: Place) -> str:
    """What ran, and in which system datastore, as the report's columns name it."""
    other = "" if place.system_driver == place.driver else f" on {place.system_driver}"
    return f"{place.driver}{other} ({place.datastore})"


def images(text: str) -> Dict[int, str]:
    """`5`, or `fastcopy=5,ssh=12`: ids with the drivers that they are said to have."""
    pairs = [word.rpartition("=")[::2] for word in text.split(",")]
    found = {int(number): driver for driver, number in pairs if re.fullmatch(r"[0-9]{1,9}", number)}
    named = all(driver for driver, _ in pairs) if len(pairs) > 1 or "=" in text else True
    if len(found) < len(pairs) or not named:
        raise argparse.ArgumentTypeError(f"{text!r} is neither ID nor DRIVER=ID,DRIVER=ID")
    return found
