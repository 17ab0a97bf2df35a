"""Channel: messages to and from an agent, after the bootstrap has been brought through."""

from __future__ import annotations

import asyncio
import re
from typing import Any, List, Optional, Sequence, Type

from async_timeout import timeout

from ..core.errors import FastcopyError, LinkLost
from ..core.wire import PREFIX_SIZE, PROTOCOL_VERSION, Message, expect, frame, frame_lengths, parse
from .bundle import Bundles, HostPython
from .link import Dialer, Link

_NOISE = 64 * 1024  # bytes that login scripts may print before us; a motd has a few KiB
_GREETING = 30.0  # seconds from dialling to the agent's banner: a login on a busy host takes a few
_TAKEN = 120.0  # seconds for a batch of chunks to leave: 1 MiB, also over a link of 100 kbit/s
_ANSWER = 600.0  # seconds for any one answer: the longest is an fsync of a large disk on a slow device


class Channel:
    """A conversation with one process of ours on *host*."""

    def __init__(self, host: str, link: Link) -> None:
        self.host, self._link = host, link
        self.sent = self.received = 0
        """Bytes of messages, without what ssh adds."""

    @classmethod
    async def open(cls, dialer: Dialer, bundles: Bundles, host: str, mode: str) -> Channel:
        """Dial *host*, bring the bundle there if it lacks it, and start the agent in *mode*."""
        link = await dialer.dial(host, bulk=mode == "lane")
        channel = cls(host, link)
        try:
            async with timeout(_GREETING):
                await channel._greet(bundles, mode)
            return channel
        except asyncio.TimeoutError:
            await link.close()
            raise LinkLost(f"{host} did not start the agent within {_GREETING:.0f} s") from None
        except (asyncio.IncompleteReadError, LinkLost) as error:
            problem = await channel._explain()
            await link.close()
            raise problem from error
        except BaseException:
            await link.close()
            raise

    async def _greet(self, bundles: Bundles, mode: str) -> None:
        words = await self._banner("FASTCOPY-BOOT")
        if not re.fullmatch(r"1 3\.[0-9]{1,2} \w{1,32} \w{1,32}", " ".join(words)):
            raise FastcopyError(f"{self.host} has no usable python3 (it is {' '.join(words[1:2]) or 'unknown'}); "
                                "the agent needs CPython 3.9 or newer")
        try:
            bundle = bundles.get(HostPython(words[1], words[2], words[3]))
        except FastcopyError as error:
            raise FastcopyError(f"{self.host} cannot run the agent: {error}") from error
        await self._link.write(f"BUNDLE {bundle.digest} {len(bundle.content)} {mode}\n".encode())
        if await self._banner("HAVE", "NEED") == ["NEED"]:
            await self._link.write(bundle.content)
            await self._banner("GOT")
        words = await self._banner("FASTCOPY-AGENT")
        if words != [str(PROTOCOL_VERSION), bundle.digest, mode]:
            raise FastcopyError(f"the agent on {self.host} speaks another protocol ({' '.join(words)})")

    async def _banner(self, *words: str) -> List[str]:
        """Skip noise until a line begins with one of *words*; return the rest of it (or the word, if several do)."""
        seen = 0
        while seen < _NOISE:
            raw = await self._link.read_line(1024)
            if not raw:
                raise asyncio.IncompleteReadError(b"", None)
            seen += len(raw)
            line = raw.decode("utf-8", "replace").split()
            if line and line[0] in words:
                return line if len(words) > 1 else line[1:]
        raise FastcopyError(
            f"the login shell on {self.host} prints more than {_NOISE} bytes before it runs a command; make it quiet"
        )

    async def _explain(self) -> FastcopyError:
        """Why there was no greeting.  ssh exits with 255 for its own errors and with the command's status otherwise."""
        status, errors = await self._link.epitaph()
        last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "")
        if status == 127:
            return FastcopyError(f"{self.host} has no python3, which the agent needs (3.9 or newer): install it there")
        if status == 255:
            return LinkLost(f"{self.host} cannot be reached with ssh: {last or 'the connection was closed'}")
        said = last or f"python3 or the login shell ended at once (status {status}); try `ssh {self.host} python3 -V`"
        return FastcopyError(f"the agent cannot be started on {self.host}: {said}")

    async def send(self, *messages: Message) -> None:
        """Send messages; `LinkLost` if the host is gone."""
        pieces = [piece for message in messages for piece in frame(message) if piece]
        self.sent += sum(map(len, pieces))
        try:
            async with timeout(_TAKEN):
                await self._link.write(*pieces)
        except asyncio.TimeoutError:
            raise LinkLost(f"{self.host} has taken no data for {_TAKEN:.0f} s; repeat the action") from None
        except LinkLost as error:
            raise await self._lost() from error

    async def receive(self, seconds: Optional[float] = _ANSWER) -> Message:
        """The next message; `LinkLost` if the host is gone or says nothing for *seconds*."""
        try:
            async with timeout(seconds):
                return await self._receive()
        except asyncio.TimeoutError:
            raise LinkLost(f"{self.host} has not answered for {seconds:.0f} s") from None
        except asyncio.IncompleteReadError as error:
            raise await self._lost() from error

    async def _receive(self) -> Message:
        header, blob = frame_lengths(await self._link.read_exactly(PREFIX_SIZE))
        raw = await self._link.read_exactly(header + blob)
        self.received += PREFIX_SIZE + header + blob
        return parse(raw[:header], raw[header:])

    async def _lost(self) -> LinkLost:
        _, errors = await self._link.epitaph()
        last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "")
        return LinkLost(f"the connection to {self.host} broke" + (f": {last}" if last else "") + "; repeat the action")

    async def ask(self, message: Message, *answers: Type[Message]) -> Any:
        """Send a message and return its answer, which is one of *answers*; raise what a `Failure` reports."""
        await self.send(message)
        return expect(await self.receive(), *answers)

    async def close(self, wait: float = 0.0) -> None:
        """End the conversation."""
        await self._link.close(wait)


async def first_error(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Wait for all tasks; at the first error cancel the others, wait for them, and raise it."""
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
