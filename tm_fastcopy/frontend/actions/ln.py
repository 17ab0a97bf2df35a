"""ln: brings a persistent image to the host of its VM.  `mvds` brings it back.

    ln FE:SOURCE HOST:<system datastore>/<VM>/disk.<N>  VM  DATASTORE

LN_TARGET is SYSTEM, so the disk is a copy of its own, made exactly as `clone` makes one: what a host kept of the disk
when `mvds` brought it back is a seed as any other.
"""

from __future__ import annotations

from .clone import run

__all__ = ["run"]
