"""The words of an ssh command that starts our bootstrap on another machine: the same wherever it is dialled from."""

from __future__ import annotations

import base64
import zlib
from typing import List

PLACES = "/usr/bin:/bin:/usr/local/bin"
"""Where ssh is looked for: OpenNebula's service puts one first in PATH that sends everything through one connection."""

OPTIONS = {
    "BatchMode": "yes",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ForwardX11": "no",
    "Compression": "no",
    "RequestTTY": "no",
    "ClearAllForwardings": "yes",
    "LogLevel": "ERROR",
}


def options() -> List[str]:
    """`OPTIONS` as words."""
    return [word for key, value in OPTIONS.items() for word in ("-o", f"{key}={value}")]


def bootstrap_words(text: str) -> List[str]:
    """The remote command, as words, that starts the bootstrap, whose source is *text*.

    One word has characters that a shell looks at, and these are quoted; nothing in it depends on who calls.
    """
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    code = f"import base64,zlib;exec(zlib.decompress(base64.b64decode(b'{packed}')))"
    return ["exec", "python3", "-I", "-S", "-c", f'"{code}"']
