"""One message of each kind, with values that are easy to tell apart: for tests of the wire and its golden file."""

from __future__ import annotations

from typing import List

from tm_fastcopy.core import cache_messages, messages, snapshot_messages, tree_messages, wire

CASES: List[wire.Message] = [
    messages.Open("/var/lib/one/datastores/100", 42, "disk.0", 3, 1700000000000001, True, "fastcopy"),
    messages.Opened(True, "/tmp/fastcopy-abc/lanes", "0123456789abcdef0123456789abcdef", "9f1c2b6e-boot"),
    messages.CloneEntry("ab" * 32, 1 << 40, 0o640, False, "raw", 0),
    messages.Missing(),
    messages.Begin("cd" * 16, 1 << 32, 824 << 20, 256 << 10, 5 << 30, 0o660, True, "qcow2", 6 << 30),
    messages.Begun("lead", ""),
    messages.Offer.make(1024, b"\x01" * 32 + bytes(32), [(268435456, 4096), (268439552, 8192)]),
    messages.Wants(b"\x01\x00\x01"),
    messages.Commit("ef" * 32),
    messages.Published('{"path": "/d/42/disk.0"}', "cache, reflink"),
    messages.OpenSource("qcow2"),
    messages.Source(10 << 30, 1 << 30, 0o644),
    messages.Scan(0, 1024, 64 << 10),
    messages.CloseSource(),
    messages.Remove("/var/lib/one/datastores/100", 42, "", 3, 1700000000000001),
    messages.Leave(),
    wire.Ping(),
    wire.Pong(),
    wire.Done(),
    wire.Failure("no-space", "host1: disk.0 needs 824 MiB – und Füße"),
    messages.Join("/tmp/fastcopy-abc/lanes", "0123456789abcdef0123456789abcdef"),
    messages.Put(7, 65536, 1, b"\x28\xb5\x2f\xfd\x00"),
    messages.Stored(7),
    messages.Get(7, 262144, 65536, True),
    messages.CacheOptions(True, 500 << 30, 80, 10 << 30, 5, 900, "reflink", "always"),
    messages.CloneLocal(
        "9f1c2b6e-boot", "/var/lib/one/datastores/1", "ab12", 64768, 131, 1 << 32, 1700000000000000001,
        1700000000000000002, "ab" * 32, 5 << 30, 0o660, True, "raw", 0,
    ),
    cache_messages.OpenCache("/var/lib/one/datastores/100"),
    cache_messages.CacheOpened("/var/lib/one/datastores/.fastcopy/cache", True, 1 << 40, 1 << 39),
    cache_messages.ListEntries(),
    cache_messages.Entries.make(
        [cache_messages.EntryRow("ab" * 32, 1 << 32, 1 << 30, 4096, 17, 1700000000, 1690000000, True, False)]
    ),
    cache_messages.Pin("ab" * 32, True),
    cache_messages.Evict("ab" * 32),
    cache_messages.Scrub("", 20 << 20),
    cache_messages.Scrubbed("ab" * 32, 200 << 20, 1, False),
    snapshot_messages.SnapCreate(3, "qcow2", True),
    snapshot_messages.SnapCreateLive(3, "raw", False, "one-42", "vda", False, "agent"),
    snapshot_messages.SnapRevert(3, "raw", True, False),
    snapshot_messages.SnapDelete(3, "qcow2", True, "one-42", "vda"),
    snapshot_messages.Snapped("2 is frozen"),
    tree_messages.ListTree("qcow2"),
    tree_messages.TreeListed("1", b"0\n1\n2.current"),
    tree_messages.OpenMember("0"),
    tree_messages.BeginTree("raw", b"0\n7"),
    tree_messages.Member("7"),
    tree_messages.PublishTree("1", 6 << 30, True),
]
