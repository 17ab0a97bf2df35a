"""One conversation with an agent, as the front-end leads it, with the agent's session in this process.

Lanes are real processes of the agent, because what they are handed must end with them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, List, Optional, Sequence, Type

from tests.support import CHUNK, content, manifest_of
from tm_fastcopy.agent.lanes import LaneDoor
from tm_fastcopy.agent.pipe import Pipe
from tm_fastcopy.agent.session import Session
from tm_fastcopy.core import codec, messages, wire
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.hashing import digest
from tm_fastcopy.core.manifest import Manifest

ROOT = Path(__file__).resolve().parents[3]
_LANE = "from tm_fastcopy.agent.main import main; main('lane', 0, 1, 'test')"
_FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (%d, %d)); "


class Lane:
    """A lane's process, and the messages to and from it.  With a *limit* no file of it may be of more bytes."""

    def __init__(self, socket: str, token: str, limit: int = 0) -> None:
        pipe = subprocess.PIPE
        code = (_FULL % (limit, limit) if limit else "") + _LANE
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, bufsize=0
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self._pipe = Pipe(self.process.stdout.fileno(), self.process.stdin.fileno())
        while not self.process.stdout.readline().startswith(b"FASTCOPY-AGENT"):
            assert self.process.poll() is None
        self.joined = self.ask(messages.Join(socket, token))

    def ask(self, message: wire.Message) -> Optional[wire.Message]:
        """Send a message and return the answer; None if the lane has ended."""
        return self.ask_all([message])[0]

    def ask_all(self, messages: Sequence[wire.Message]) -> List[Optional[wire.Message]]:
        """Send messages at once and return their answers."""
        self._pipe.send(*messages)
        return [self._pipe.receive(idle=60.0) for _ in messages]

    def put(self, letters: str, index: int, size: int = -1) -> Optional[wire.Message]:
        """Send chunk *index* of `content(letters, size)`."""
        data = content(letters, size)[index * CHUNK : (index + 1) * CHUNK]
        return self.ask(messages.Put(index, len(data), *codec.encode(data)))

    def close(self) -> None:
        """End the lane, and wait for it."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self.process.wait()


class Conversation:
    """What the front-end would ask about a disk."""

    def __init__(
        self,
        base: Path,
        vm: int = 42,
        name: str = "disk.0",
        action: int = 1,
        create: bool = True,
        files: Optional[Files] = None,
        format: str = "raw",
        virtual: int = 0,
    ) -> None:
        self.alive = True
        self.format, self.virtual = format, virtual
        self.disk = base / str(vm) / name
        self.door = LaneDoor()
        self.session = Session(files or Files(), lambda: self.alive, self.door)
        self.opened: Any = self.session.handle(messages.Open(str(base), vm, name, 0, action, create, "fastcopy"))

    def ask(self, message: wire.Message, expected: Type[wire.Message] = wire.Message) -> Any:
        """Have one message answered."""
        answer = self.session.handle(message)
        assert isinstance(answer, expected), answer
        return answer

    def refused(self, message: wire.Message) -> wire.Failure:
        """Have a message answered by a Failure."""
        found: wire.Failure = self.ask(message, wire.Failure)
        return found

    def lane(self, limit: int = 0) -> Lane:
        """One more lane; see `Lane`."""
        return Lane(self.opened.socket, self.opened.token, limit)

    def begin(self, letters: str, size: int = -1, key: str = "", final: int = 0, sparse: bool = True) -> Any:
        """Begin to send `content(letters, size)`."""
        bytes_ = len(content(letters, size))
        data = len(letters.replace("-", "")) * CHUNK
        final = final or bytes_
        return self.ask(messages.Begin(key, bytes_, data, CHUNK, final, 0o640, sparse, self.format, self.virtual))

    def offer(self, letters: str, size: int = -1, page: int = 1000) -> List[int]:
        """Offer all pages; return the chunks that are wanted."""
        manifest = manifest_of(letters, size)
        wanted: List[int] = []
        for first in range(0, manifest.count, page):
            digests = manifest.digests[first * 32 : (first + page) * 32]
            answer = self.ask(messages.Offer.make(first, digests, [(0, manifest.size)]), messages.Wants)
            wanted += [first + i for i, flag in enumerate(answer.blob) if flag]
        return wanted

    def push(self, letters: str, size: int = -1, key: str = "", final: int = 0, sparse: bool = True) -> Any:
        """Send a whole image and commit it; *fetched* says which chunks had to be sent."""
        self.begin(letters, size, key, final, sparse)
        wanted = self.offer(letters, size)
        self.fetched = "".join(letters[index] for index in wanted)
        if wanted:
            lane = self.lane()
            for index in wanted:
                assert lane.put(letters, index, size) == messages.Stored(index)
            lane.close()
        return self.ask(messages.Commit(manifest_of(letters, size).id))

    def send(self, image: bytes, key: str = "", sparse: bool = True) -> Any:
        """Send an image that is not made of letters, and commit it."""
        pieces = [image[at : at + CHUNK] for at in range(0, len(image), CHUNK)]
        manifest = Manifest(len(image), CHUNK, b"".join(map(digest, pieces)))
        sizes = len(image), len(image), CHUNK, len(image)
        begin = messages.Begin(key, *sizes, 0o640, sparse, self.format, self.virtual)
        assert self.ask(begin) == messages.Begun("lead", "")
        wants = self.ask(messages.Offer.make(0, manifest.digests, [(0, len(image))]), messages.Wants)
        lane = self.lane()
        for index, piece in enumerate(pieces):
            if wants.blob[index]:
                assert lane.ask(messages.Put(index, len(piece), *codec.encode(piece))) == messages.Stored(index)
        lane.close()
        return self.ask(messages.Commit(manifest.id))

    def clone(self, letters: str, size: int = -1, final: int = 0, sparse: bool = True) -> Any:
        """Ask for the disk from the cache."""
        manifest = manifest_of(letters, size)
        size = final or manifest.size
        return self.ask(messages.CloneEntry(manifest.id, size, 0o640, sparse, self.format, self.virtual))

    def end(self) -> None:
        """The end of the connection."""
        self.session.end()
        self.door.remove()


