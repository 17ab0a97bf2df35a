"""One message of each kind, with values that are easy to tell apart: for tests of the wire and its golden file."""

from __future__ import annotations

from typing import List

from tm_fastcopy.core import wire

CASES: List[wire.Message] = [
    wire.Open("/var/lib/one/datastores/100", 42, "disk.0", 3, 1700000000000001, True, "fastcopy"),
    wire.Opened(True, "/tmp/fastcopy-abc/lanes", "0123456789abcdef0123456789abcdef", "9f1c2b6e-boot"),
    wire.CloneEntry("ab" * 32, 1 << 40, 0o640, False, "raw", 0),
    wire.Missing(),
    wire.Begin("cd" * 16, 1 << 32, 824 << 20, 256 << 10, 5 << 30, 0o660, True, "qcow2", 6 << 30),
    wire.Begun("lead", ""),
    wire.Offer.make(1024, b"\x01" * 32 + bytes(32), [(268435456, 4096), (268439552, 8192)]),
    wire.Wants(b"\x01\x00\x01"),
    wire.Commit("ef" * 32),
    wire.Published('{"path": "/d/42/disk.0"}', "cache, reflink"),
    wire.OpenSource("qcow2"),
    wire.Source(10 << 30, 1 << 30, 0o644),
    wire.Scan(0, 1024, 64 << 10),
    wire.CloseSource(),
    wire.Remove("/var/lib/one/datastores/100", 42, "", 3, 1700000000000001),
    wire.Leave(),
    wire.Ping(),
    wire.Pong(),
    wire.Done(),
    wire.Failure("no-space", "host1: disk.0 needs 824 MiB – und Füße"),
    wire.Join("/tmp/fastcopy-abc/lanes", "0123456789abcdef0123456789abcdef"),
    wire.Put(7, 65536, 1, b"\x28\xb5\x2f\xfd\x00"),
    wire.Stored(7),
    wire.Get(7, 262144, 65536, True),
    wire.CacheOptions(True, 500 << 30, 80, 10 << 30, 5, 900, "reflink", "always"),
    wire.CloneLocal(
        "9f1c2b6e-boot", "/var/lib/one/datastores/1", "ab12", 64768, 131, 1 << 32, 1700000000000000001,
        1700000000000000002, "ab" * 32, 5 << 30, 0o660, True, "raw", 0,
    ),
    wire.OpenCache("/var/lib/one/datastores/100"),
    wire.CacheOpened("/var/lib/one/datastores/.fastcopy/cache", True, 1 << 40, 1 << 39),
    wire.ListEntries(),
    wire.Entries.make([wire.EntryRow("ab" * 32, 1 << 32, 1 << 30, 4096, 17, 1700000000, 1690000000, True, False)]),
    wire.Pin("ab" * 32, True),
    wire.Evict("ab" * 32),
    wire.Scrub("", 20 << 20),
    wire.Scrubbed("ab" * 32, 200 << 20, 1, False),
]
