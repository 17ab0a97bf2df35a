"""Buffer: bytes that are read and not kept, so that they can be a view of something that is used again."""

from __future__ import annotations

from typing import Union

Buffer = Union[bytes, bytearray, memoryview]
