"""The work that drivers are given: what is there before, what is asked for, at how many places at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

COLD, WARM, OLD = "cold", "warm", "old version"
"""What a driver knows before: nothing, the image, or the image's first version."""


@dataclass(frozen=True)
class Case:
    """One line of the table, for each driver, file system and link.

    image    which picture (`site.PICTURES`)
    state    COLD: page caches dropped, and the driver has forgotten the image; WARM: it was deployed on the host
             before; OLD: its first version was
    vms      virtual machines on a host, all at once
    also     images of more disks, made one after the other
    hosts    how many, all at once
    change   the disk is written back instead, after a change: `contiguous` or `scattered`
    uplink   rate of the front-end's link, instead of the hosts' own
    once     on the first file system only: the question is another one
    """

    scenario: str
    variant: str = ""
    image: str = "system"
    state: str = COLD
    vms: int = 1
    also: Tuple[str, ...] = ()
    hosts: int = 1
    change: Optional[str] = None
    uplink: Optional[str] = None
    once: bool = False

    @property
    def images(self) -> Tuple[str, ...]:
        """The images of a VM's disks."""
        return self.image, *self.also


@dataclass(frozen=True)
class Scenario:
    """Cases under one name."""

    meaning: str
    cases: List[Case]


def scenarios() -> Dict[str, Scenario]:
    """All of them by name."""
    sizes = (16, 64, 256)
    found = {
        "cold": Scenario("an image that neither front-end nor host has seen", [Case("cold")]),
        "warm": Scenario("the next VM of an image on the same host", [Case("warm", state=WARM)]),
        "tiny": Scenario("10 MB, cold: what a clone costs before there is much to copy", [Case("tiny", image="tiny")]),
        "incompressible": Scenario("random data, cold", [Case("incompressible", image="random")]),
        "update": Scenario("the image's second version, where its first was deployed", [
            Case("update", image="system-v2", state=OLD)]),
        "stampede": Scenario("10 VMs of one image on one host at once, cold", [
            Case("stampede", image="medium", vms=10)]),
        "multidisk": Scenario("one VM with three disks, line by line as one_tm runs them, cold", [
            Case("multidisk", image="medium", also=("medium-2", "medium-3"))]),
        "writeback": Scenario("a persistent disk with 5 % changed comes back", [
            Case("writeback", how, change=how) for how in ("contiguous", "scattered")]),
        "fanout": Scenario("one VM on each of 1, 2, 4, 8 hosts at once, front-end uplink 200 Mbit/s, cold", [
            Case("fanout", f"{count} hosts" if count > 1 else "1 host", image="medium", hosts=count, uplink="200mbit")
            for count in (1, 2, 4, 8)]),
        "growth": Scenario("cold, by size of the image: 16, 64, 256 MiB", [
            Case("growth", f"{size} MiB", image=f"like-{size}", once=True) for size in sizes]),
    }  # fmt: skip
    return found
