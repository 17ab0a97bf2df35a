"""The lab's network: a bridge in the front-end's namespace and one virtual cable per host.

Nothing of it is visible in the machine's own network namespace, and no route leads out. Neighbour entries are
permanent, so a silenced host is silent as one behind a router is: no ARP error tells on it.
"""

from __future__ import annotations

import json
import subprocess
from typing import Optional

from bench.testbed.errors import LabError, program

BRIDGE = "lab0"
INTERFACE = "eth0"
SUBNET = "10.123.0"
MTU = 1500
SMALLEST_BURST = 128 << 10  # bytes; the bucket must hold a whole 64 KiB offloaded packet
QUEUE = "50ms"  # how long a packet may wait for tokens before it is dropped

UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}


def address(index: int) -> str:
    """Address of node `index`: 0 is the front-end, 1 and up are the hosts."""
    return f"{SUBNET}.{1 if index == 0 else 10 + index}"


def hardware(index: int) -> str:
    """A locally administered MAC address for node `index`."""
    return f"02:fc:00:00:{index >> 8:02x}:{index & 255:02x}"


def bits(rate: str) -> int:
    """`1gbit`, `200mbit` as bits per second. LabError for anything else."""
    for unit, factor in UNITS.items():
        number = rate[: -len(unit)]
        if rate.endswith(unit) and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return int(float(number) * factor)
    raise LabError(f"A link rate looks like 1gbit or 200mbit, not {rate}.")


def call(holder: int, *argv: str) -> str:
    """Run a network program in a node's network namespace; its output. LabError if it fails."""
    vector = [program("nsenter"), f"--net=/proc/{holder}/ns/net", "--", program(argv[0]), *argv[1:]]
    done = subprocess.run(vector, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)} failed: {done.stderr.strip()}")
    return done.stdout


def port(name: str) -> str:
    """The bridge's end of a host's cable."""
    return f"p-{name}"


def front(holder: int, hosts: int) -> None:
    """Make the bridge in the front-end's namespace."""
    call(holder, "ip", "link", "set", "lo", "up")
    call(holder, "ip", "link", "add", BRIDGE, "address", hardware(0), "type", "bridge", "stp_state", "0")
    call(holder, "ip", "link", "set", BRIDGE, "up")
    call(holder, "ip", "address", "add", f"{address(0)}/24", "dev", BRIDGE)
    neighbours(holder, BRIDGE, 0, hosts)


def attach(front_holder: int, holder: int, name: str, index: int, hosts: int) -> None:
    """Run a cable from the bridge to a host."""
    call(front_holder, "ip", "link", "add", port(name), "mtu", str(MTU), "type", "veth", "peer",
         "name", INTERFACE, "netns", str(holder), "mtu", str(MTU), "address", hardware(index))  # fmt: skip
    call(front_holder, "ip", "link", "set", port(name), "master", BRIDGE, "up")
    call(holder, "ip", "link", "set", "lo", "up")
    call(holder, "ip", "link", "set", INTERFACE, "up")
    call(holder, "ip", "address", "add", f"{address(index)}/24", "dev", INTERFACE)
    neighbours(holder, INTERFACE, index, hosts)


def neighbours(holder: int, device: str, own: int, hosts: int) -> None:
    """Write every other node's hardware address down for good."""
    for index in range(hosts + 1):
        if index != own:
            call(holder, "ip", "neighbour", "replace", address(index), "lladdr", hardware(index),
                 "dev", device, "nud", "permanent")  # fmt: skip


def shape(front_holder: int, holder: int, name: str, rate: Optional[str]) -> None:
    """Limit a host's link to `rate` (`1gbit`) in both directions, or lift the limit with None."""
    for where, device in ((front_holder, port(name)), (holder, INTERFACE)):
        limit(where, device, rate)


def limit(holder: int, device: str, rate: Optional[str]) -> None:
    """Limit what a node sends through a device, or lift the limit with None."""
    if rate is None:
        if " tbf " in f" {call(holder, 'tc', 'qdisc', 'show', 'dev', device, 'root')}":
            call(holder, "tc", "qdisc", "del", "dev", device, "root")
        return
    per_second = bits(rate)
    burst = max(SMALLEST_BURST, per_second // 8 // 1000)  # bytes; one millisecond's worth
    call(holder, "tc", "qdisc", "replace", "dev", device, "root", "tbf",
         "rate", f"{per_second}bit", "burst", str(burst), "latency", QUEUE)  # fmt: skip


def cable(front_holder: int, name: str, up: bool) -> None:
    """Plug a host's cable in or pull it."""
    call(front_holder, "ip", "link", "set", port(name), "up" if up else "down")


def silence(front_holder: int, name: str, silent: bool) -> None:
    """Let the bridge drop every packet of a host's port, or forward again (states 0 and 3 of a port)."""
    state = "0" if silent else "3"  # `ip link set ... type bridge_slave state` is undone at once, this is not
    call(front_holder, "bridge", "link", "set", "dev", port(name), "state", state)


def forget_connections(holder: int) -> None:
    """Drop the namespace's connections; with a silent link no peer hears of it, as in a power cut."""
    call(holder, "ss", "--kill", "--tcp", "state", "all")


def counters(holder: int) -> tuple[int, int]:
    """(received, sent) bytes of a host's interface, link headers included."""
    found = json.loads(call(holder, "ip", "-s", "-j", "link", "show"))
    stats = next((entry["stats64"] for entry in found if entry["ifname"] in (INTERFACE, BRIDGE)), None)
    if stats is None:
        raise LabError("The node has no network interface.")
    return int(stats["rx"]["bytes"]), int(stats["tx"]["bytes"])
