"""The contract of `Link` and `Dialer`: every way to a host passes the same tests.

The "host" is this machine.  Its `python3` is a script of the test's, so that it can be one that is missing, too old, or
dies; otherwise it is this Python with a home directory of its own.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Awaitable, Callable, Coroutine, Iterator, List

import pytest

from bench.loopback import HOST, Sshd
from tests.support import CHUNK, content, make_file, manifest_of
from tm_fastcopy.core import messages, wire
from tm_fastcopy.core.codec import decode, encode
from tm_fastcopy.core.errors import FastcopyError, LinkLost
from tm_fastcopy.core.paths import DiskPath
from tm_fastcopy.frontend.asyncssh_link import AsyncsshDialer, HostOptions, NotSpoken, WithFallback
from tm_fastcopy.frontend.bundle import Bundles
from tm_fastcopy.frontend.channel import Channel
from tm_fastcopy.frontend.connections import Connections
from tm_fastcopy.frontend.host import Host
from tm_fastcopy.frontend.link import Dialer, Link
from tm_fastcopy.frontend.process_link import LocalDialer, SshDialer

# Runs a command as a login shell would, after what the test put into `profile`.
_SHELL = """\
#!/bin/sh
home={home}
PATH=$home/bin:/usr/bin:/bin
export PATH
if [ -e "$home/profile" ]; then . "$home/profile"; fi
if [ -n "$SSH_ORIGINAL_COMMAND" ]; then eval "$SSH_ORIGINAL_COMMAND"; else exec "$@"; fi
"""

# This Python, for which the user's home is the test's.
_PYTHON = """\
#!/bin/sh
exec {python} -I -S -c "import pwd, types
pwd.getpwuid = lambda uid: types.SimpleNamespace(pw_dir='{home}')
$4"
"""


def script(path: Path, text: str) -> None:
    """Write a program, also while the one before it is just being started by what an earlier test has cut off."""
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(text)
    scratch.chmod(0o755)
    scratch.rename(path)


class Machine:
    """The host, and a way to it."""

    def __init__(self, home: Path, dialer: Dialer) -> None:
        self.home, self.dialer = home, dialer
        self.bundles = Bundles(home / "wheels")

    def python(self, text: str) -> None:
        """Make its `python3` a shell script."""
        script(self.home / "bin" / "python3", "#!/bin/sh\n" + text)

    def profile(self, text: str) -> None:
        """Have the login shell run this first."""
        (self.home / "profile").write_text(text)

    def converse(self, work: Callable[[Channel], Awaitable[Any]], mode: str = "control") -> Any:
        """Start the agent and talk to it."""

        async def run() -> Any:
            channel = await Channel.open(self.dialer, self.bundles, HOST, mode)
            try:
                return await work(channel)
            finally:
                await channel.close(wait=30.0)

        return asyncio.run(run())

    def stream(self, work: Callable[[Link], Awaitable[Any]], bulk: bool = False) -> Any:
        """Talk to whatever `python3` is, without our protocol."""

        async def run() -> Any:
            link = await self.dialer.dial(HOST, bulk)
            try:
                return await work(link)
            finally:
                await link.close()

        return asyncio.run(run())


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("host")
    script(made / "shell", _SHELL.format(home=shlex.quote(str(made))))
    (made / "bin").mkdir()
    return made


@pytest.fixture(scope="session")
def sshd(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    made = Sshd(tmp_path_factory.mktemp("sshd"), home / "shell")
    yield made
    made.close()


@pytest.fixture(params=["local", "ssh", "asyncssh"])
def machine(request: pytest.FixtureRequest, home: Path) -> Machine:
    """A machine as it should be, reached in each of the ways."""
    script(home / "bin" / "python3", _PYTHON.format(python=shlex.quote(sys.executable), home=home))
    (home / "profile").unlink(missing_ok=True)
    if request.param == "local":
        dialer: Dialer = LocalDialer(prefix=[str(home / "shell")])
    else:
        options = ["-F", str(request.getfixturevalue("sshd").config)]
        dialer = SshDialer(options) if request.param == "ssh" else AsyncsshDialer(options)
    return Machine(home, dialer)


# --- the stream --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1000, 100_000, 5_000_000])
@pytest.mark.parametrize("bulk", [False, True])
def test_what_is_sent_comes_back(machine: Machine, size: int, bulk: bool) -> None:
    machine.python("exec cat")
    data = (content("ABC") * (size // (3 * CHUNK) + 1))[:size]

    async def echo(link: Link) -> bytes:
        sending = asyncio.ensure_future(link.write(data))
        received = await link.read_exactly(size)
        await sending
        return received

    assert machine.stream(echo, bulk) == data


def test_lines(machine: Machine) -> None:
    machine.python("printf 'one\\n\\nthree is longer\\nrest'")

    async def lines(link: Link) -> List[bytes]:
        return [await link.read_line(8) for _ in range(7)]

    assert machine.stream(lines) == [b"one\n", b"\n", b"three is", b" longer\n", b"rest", b"", b""]


def test_all_bytes_are_the_same_on_the_other_side(machine: Machine) -> None:
    machine.python("exec cat")
    data = bytes(range(256)) * 4

    async def echo(link: Link) -> bytes:
        await link.write(data)
        return await link.read_exactly(len(data))

    assert machine.stream(echo) == data


def test_the_end_of_the_stream(machine: Machine) -> None:
    machine.python("printf abc")

    async def beyond(link: Link) -> None:
        with pytest.raises(asyncio.IncompleteReadError):
            await link.read_exactly(10)

    machine.stream(beyond)


@pytest.mark.parametrize("status", [0, 1, 3, 127])
def test_the_epitaph_has_status_and_last_words(machine: Machine, status: int) -> None:
    machine.python(f"echo first >&2; echo 'last words' >&2; exit {status}")

    async def epitaph(link: Link) -> Any:
        assert await link.read_line(10) == b""
        return await link.epitaph()

    assert machine.stream(epitaph) == (status, "first\nlast words")


def test_no_more_of_standard_error_is_kept_than_needed(machine: Machine) -> None:
    machine.python("head -c 1000000 /dev/zero | tr '\\0' x >&2; echo end >&2")

    async def epitaph(link: Link) -> Any:
        await link.read_line(10)
        return await link.epitaph()

    _, text = machine.stream(epitaph)
    assert len(text) <= 4096 and text.endswith("end")


def test_writing_to_what_has_ended_is_a_lost_link(machine: Machine) -> None:
    machine.python("exit 0")

    async def write(link: Link) -> None:
        await link.read_line(10)
        with pytest.raises(LinkLost):
            for _ in range(1000):
                await link.write(content("A"))

    machine.stream(write)


def test_close_with_wait_lets_the_program_end(machine: Machine, tmp_path: Path) -> None:
    machine.python(f"cat >/dev/null; touch {tmp_path}/ended; printf x")

    async def run() -> None:
        link = await machine.dialer.dial(HOST, False)
        await link.close(wait=30.0)

    asyncio.run(run())
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize("after", ["at once", "a write", "the end"])
def test_close_can_come_at_any_time(machine: Machine, after: str) -> None:
    machine.python("exec cat" if after != "the end" else "exit 1")

    async def run() -> None:
        link = await machine.dialer.dial(HOST, False)
        if after == "a write":
            await link.write(content("A"))
        elif after == "the end":
            await link.read_line(10)
        await link.close()

    asyncio.run(run())


# --- the greeting ------------------------------------------------------------------------------------------------


def test_the_agent_starts_and_the_bundle_goes_over_once(machine: Machine) -> None:
    async def ping(channel: Channel) -> None:
        await channel.send(wire.Ping())

    machine.converse(ping)
    first = sorted(os.listdir(machine.home / ".cache" / "fastcopy"))
    machine.converse(ping)
    assert sorted(os.listdir(machine.home / ".cache" / "fastcopy")) == first
    assert len(first) == 1


@pytest.mark.parametrize(
    "noise",
    [
        "echo 'Welcome to host1'",
        "printf 'no newline'",
        "printf 'FASTCOPY-BOO'",
        "head -c 5000 /dev/zero | tr '\\0' x",
        "head -c 3072 /dev/urandom",
        "i=0; while [ $i -lt 1000 ]; do echo 'a message of the day'; i=$((i+1)); done",
    ],
)
def test_noise_before_the_banner_is_skipped(machine: Machine, noise: str) -> None:
    machine.profile(noise)

    async def nonsense(channel: Channel) -> Any:
        return await channel.ask(messages.CloseSource(), wire.Done)

    with pytest.raises(FastcopyError, match="makes no sense here"):
        machine.converse(nonsense)


def test_too_much_noise_is_refused(machine: Machine) -> None:
    machine.profile("yes 'noise without an end' | head -c 10000000")
    with pytest.raises(FastcopyError, match="login shell on host1 prints more than 65536 bytes"):
        machine.converse(_nothing)


async def _nothing(_: Channel) -> None:
    """What follows a greeting that must fail."""


def test_no_python(machine: Machine) -> None:
    (machine.home / "bin" / "python3").unlink()
    machine.profile("PATH=$home/bin\n")
    with pytest.raises(FastcopyError, match="host1 has no python3, which the agent needs") as caught:
        machine.converse(_nothing)
    assert type(caught.value) is FastcopyError


@pytest.mark.parametrize(
    ("banner", "text"),
    [
        ("1 3.6 cpython x86_64", r"host1 cannot run the agent: its python3 is cpython 3\.6, and the agent needs"),
        ("1 3.11 pypy x86_64", r"host1 cannot run the agent: its python3 is pypy 3\.11"),
        ("1 3.9 cpython riscv128", r"there are no wheels for its Python 3\.9 on riscv128"),
        ("1 2.7 cpython x86_64", r"host1 has no usable python3 \(it is 2\.7\)"),
        ("2 3.11 cpython x86_64", "host1 has no usable python3"),
        ("1", "host1 has no usable python3"),
    ],
)
def test_a_python_that_will_not_do(machine: Machine, banner: str, text: str) -> None:
    machine.python(f"echo 'FASTCOPY-BOOT {banner}'; cat >/dev/null")
    with pytest.raises(FastcopyError, match=text):
        machine.converse(_nothing)


def test_a_bootstrap_that_dies_says_why(machine: Machine) -> None:
    machine.python("echo 'FASTCOPY-BOOT 1 3'; echo 'no memory' >&2; exit 3")
    with pytest.raises(FastcopyError):
        machine.converse(_nothing)
    machine.python("echo 'no memory' >&2; exit 3")
    with pytest.raises(FastcopyError, match="the agent cannot be started on host1: no memory"):
        machine.converse(_nothing)


def test_another_agent_is_not_talked_to(machine: Machine) -> None:
    machine.python("echo 'FASTCOPY-BOOT 1 3.11 cpython x86_64'; read x; echo HAVE; echo FASTCOPY-AGENT 99 x y; cat")
    here = "{}.{}".format(*sys.version_info[:2])
    machine.python(
        f"echo 'FASTCOPY-BOOT 1 {here} cpython {os.uname().machine}'; read x; echo HAVE; "
        "echo FASTCOPY-AGENT 99 x y; cat >/dev/null"
    )
    with pytest.raises(FastcopyError, match=r"the agent on host1 speaks another protocol \(99 x y\)"):
        machine.converse(_nothing)


def test_an_agent_that_dies_in_the_middle_is_a_lost_link(machine: Machine) -> None:
    pid = machine.home / "pid"
    script(
        machine.home / "bin" / "python3",
        _PYTHON.format(python=shlex.quote(sys.executable), home=machine.home).replace("exec", f"echo $$ >{pid}\nexec"),
    )

    async def killed(channel: Channel) -> None:
        await channel.ask(wire.Ping(), wire.Pong)
        os.kill(int(pid.read_text()), 9)
        with pytest.raises(LinkLost, match=r"the connection to host1 broke.*repeat the action"):
            await channel.ask(messages.OpenSource("raw"), messages.Source)

    machine.converse(killed)


# --- through a real agent ----------------------------------------------------------------------------------------


def transfer(machine: Machine, disk: Path, create: bool, work: Callable[[Host], Coroutine[Any, Any, Any]]) -> Any:
    """One conversation about a disk."""

    async def run() -> Any:
        connections = Connections(machine.dialer, machine.dialer, machine.bundles)
        try:
            async with Host(connections, HOST) as host:
                await host.open(DiskPath(str(disk.parent.parent), 42, disk.name), 0, 1, create)
                return await work(host)
        finally:
            await connections.close()

    return asyncio.run(run())


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "datastores" / "100" / "42").mkdir(parents=True)
    return tmp_path / "datastores" / "100" / "42" / "disk.0"


def test_a_disk_is_read(machine: Machine, disk: Path) -> None:
    make_file(disk, "AB-C" * 8)

    async def read(host: Host) -> bytes:
        source = await host.ask(messages.OpenSource("raw"), messages.Source)
        page = await host.ask(messages.Scan(0, 32, CHUNK), messages.Offer)
        assert (source.size, page.digests) == (32 * CHUNK, manifest_of("AB-C" * 8).digests)
        lane = await host.lane()
        pieces = []
        for index in range(32):
            put = await lane.ask(messages.Get(index, CHUNK, CHUNK, True), messages.Put)
            pieces.append(decode(put.codec, put.blob, CHUNK))
        await host.release(lane, usable=True)
        await host.ask(messages.CloseSource(), wire.Done)
        return b"".join(pieces)

    assert transfer(machine, disk, False, read) == content("AB-C" * 8)


def test_a_disk_is_written(machine: Machine, disk: Path) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ-"
    manifest = manifest_of(letters)

    async def write(host: Host) -> str:
        begin = messages.Begin("", manifest.size, manifest.size, CHUNK, manifest.size, 0o600, True, "raw", 0)
        await host.ask(begin, messages.Begun)
        wants = await host.ask(messages.Offer.make(0, manifest.digests, [(0, manifest.size)]), messages.Wants)
        lane = await host.lane()
        for index, wanted in enumerate(wants.blob):
            if wanted:
                codec, payload = encode(content(letters[index]))
                put = messages.Put(index, CHUNK, codec, payload)
                assert await lane.ask(put, messages.Stored) == messages.Stored(index)
        published = await host.ask(messages.Commit(manifest.id), messages.Published)
        assert host.wire_bytes > manifest.size - CHUNK
        await host.release(lane, usable=False)
        assert host.wire_bytes > manifest.size - CHUNK
        return str(published.how)

    assert transfer(machine, disk, True, write).startswith("lanes")
    assert disk.read_bytes() == content(letters)


def test_a_large_message_each_way(machine: Machine, disk: Path) -> None:
    make_file(disk, "ABCDEFGH" * 8)
    size = 64 * CHUNK

    async def read(host: Host) -> int:
        await host.ask(messages.OpenSource("raw"), messages.Source)
        lane = await host.lane()
        put = await lane.ask(messages.Get(0, wire.MAX_CHUNK, wire.MAX_CHUNK, True), messages.Put)
        assert decode(put.codec, put.blob, wire.MAX_CHUNK) == disk.read_bytes()[:size]
        with pytest.raises(FastcopyError, match="cannot serve"):
            await lane.ask(put, messages.Stored)
        await host.release(lane, usable=False)
        await host.ask(messages.CloseSource(), wire.Done)
        return int(put.length)

    assert transfer(machine, disk, False, read) == size == wire.MAX_CHUNK


def test_a_lane_serves_one_conversation_after_another(machine: Machine, disk: Path) -> None:
    """Each has files of its own; what was moved counts for the conversation that moved it."""
    letters = "AB-C" * 8
    make_file(disk, letters)
    manifest = manifest_of(letters)
    copy = disk.with_name("disk.1")

    async def run() -> None:
        connections = Connections(machine.dialer, machine.dialer, machine.bundles, keep=True)
        assert connections.spare
        try:
            async with Host(connections, HOST) as host:
                await host.open(DiskPath(str(disk.parent.parent), 42, disk.name), 0, 1, False)
                await host.ask(messages.OpenSource("raw"), messages.Source)
                first = await host.lane()
                put = await first.ask(messages.Get(1, CHUNK, CHUNK, True), messages.Put)
                assert decode(put.codec, put.blob, CHUNK) == content("B")
                await host.release(first, usable=True)
                await host.ask(messages.CloseSource(), wire.Done)
            await connections.agents.settle()
            async with Host(connections, HOST) as host:
                await host.open(DiskPath(str(disk.parent.parent), 42, copy.name), 0, 2, True)
                begin = messages.Begin("", manifest.size, manifest.size, CHUNK, manifest.size, 0o600, True, "raw", 0)
                await host.ask(begin, messages.Begun)
                offer = messages.Offer.make(0, manifest.digests, [(0, manifest.size)])
                wants = await host.ask(offer, messages.Wants)
                control = host.wire_bytes
                lane = await host.lane()
                assert lane is first
                assert host.wire_bytes - control < lane.sent + lane.received
                before = host.wire_bytes
                for index in (index for index, wanted in enumerate(wants.blob) if wanted):
                    await lane.ask(messages.Put(index, CHUNK, *encode(content(letters[index]))), messages.Stored)
                moved = host.wire_bytes - before
                assert sum(wants.blob) * 100 < moved < lane.sent + lane.received  # the earlier ones' are not ours
                await host.release(lane, usable=True)
                assert host.wire_bytes - before >= moved
                await lane.close()
                again = await host.lane()
                assert again is not first  # that one broke while nobody used it
                await host.release(again, usable=True)
                await host.ask(messages.Commit(manifest.id), messages.Published)
        finally:
            await connections.close()

    asyncio.run(run())
    assert copy.read_bytes() == content(letters)


# --- ssh alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["ssh", "asyncssh"], indirect=True)
def test_a_refused_connection(machine: Machine) -> None:
    async def run() -> None:
        await Channel.open(machine.dialer, machine.bundles, "refused", "control")

    with pytest.raises(LinkLost, match=r"refused cannot be reached with ssh: .*refused"):
        asyncio.run(run())


@pytest.mark.parametrize("machine", ["ssh", "asyncssh"], indirect=True)
def test_an_unknown_host_key_is_learned(machine: Machine, sshd: Sshd) -> None:
    sshd.forget_host_key()
    machine.python("printf hello")

    async def hello(link: Link) -> bytes:
        return await link.read_exactly(5)

    assert machine.stream(hello) == b"hello"
    assert (sshd.home / "known_hosts").read_text().count("\n") == 1
    assert machine.stream(hello) == b"hello"


@pytest.mark.parametrize("machine", ["ssh", "asyncssh"], indirect=True)
def test_a_host_key_that_has_changed_is_refused(machine: Machine, sshd: Sshd) -> None:
    other = (sshd.home / "key.pub").read_text().split()
    (sshd.home / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {other[0]} {other[1]}\n")
    try:
        with pytest.raises(LinkLost, match="host1 cannot be reached with ssh: "):
            machine.converse(_nothing)
    finally:
        sshd.forget_host_key()


def test_options_of_a_host_are_read(tmp_path: Path) -> None:
    for name in ("key", "known"):
        (tmp_path / name).write_text("")
    text = (
        f"host host1\nuser oneadmin\nhostname 10.0.0.1\nport 2222\nhostkeyalias cloud\nidentityfile {tmp_path}/none\n"
        f"identityfile {tmp_path}/key\nuserknownhostsfile {tmp_path}/known {tmp_path}/known2\n"
        "globalknownhostsfile /none\nciphers chacha20-poly1305@openssh.com,aes128-cbc,aes128-gcm@openssh.com\n"
    )
    found = HostOptions.parse(text)
    assert (found.hostname, found.port, found.user, found.alias) == ("10.0.0.1", 2222, "oneadmin", "cloud")
    assert (found.keys, found.known_hosts) == ([f"{tmp_path}/key"], [f"{tmp_path}/known"])
    assert found.ciphers == ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"]


def test_a_proxy_is_noticed() -> None:
    assert not HostOptions.parse("hostname h\nproxycommand none\n").program_only
    assert HostOptions.parse("hostname h\nproxyjump bastion\n").program_only
    assert HostOptions.parse("hostname h\nproxycommand nc %h %p\n").program_only


@pytest.mark.parametrize("machine", ["asyncssh"], indirect=True)
def test_where_asyncssh_cannot_log_in_the_ssh_program_does(machine: Machine) -> None:
    class Refusing:
        """What asyncssh says where it has no way in."""

        dials = 0

        async def dial(self, host: str, bulk: bool) -> Link:
            self.dials += 1
            raise NotSpoken("Permission denied")

        async def close(self) -> None:
            """Nothing is kept."""

    first = Refusing()
    dialer = WithFallback(first, machine.dialer)

    async def run() -> None:
        for _ in range(2):
            channel = await Channel.open(dialer, machine.bundles, HOST, "control")
            assert await channel.ask(wire.Ping(), wire.Pong) == wire.Pong()
            await channel.close(wait=30.0)

    asyncio.run(run())
    assert first.dials == 1


@pytest.mark.parametrize("machine", ["asyncssh"], indirect=True)
def test_a_login_that_is_refused_is_for_the_ssh_program_to_explain(machine: Machine, sshd: Sshd) -> None:
    key = sshd.home / "key.pub"  # the server's list of those who may log in
    before = key.read_text()
    key.write_text((sshd.home / "host_key.pub").read_text())
    try:
        with pytest.raises(NotSpoken):
            machine.converse(_nothing)
    finally:
        key.write_text(before)


def test_a_host_that_does_not_answer_is_said_to_do_so_to_all_who_wait_for_it() -> None:
    class Silent(AsyncsshDialer):
        """What asyncssh says of a host that lets packets get lost."""

        dials = 0

        async def _connect(self, host: str) -> Any:
            self.dials += 1
            await asyncio.sleep(0.01)
            raise asyncio.TimeoutError()

    dialer = Silent(shared=True)

    async def run() -> List[Any]:
        return await asyncio.gather(*(dialer.dial("host1", bulk=False) for _ in range(3)), return_exceptions=True)

    found = asyncio.run(run())
    assert [str(error) for error in found] == ["host1 cannot be reached with ssh: it did not answer within 10 s"] * 3
    assert all(isinstance(error, LinkLost) for error in found) and dialer.dials == 1
