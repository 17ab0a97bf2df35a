"""Connections: how hosts are reached, agents for conversations and lanes for bulk."""

from __future__ import annotations

from typing import Optional

from .agents import AgentPool
from .bundle import Bundles
from .channel import Channel
from .limits import Limits
from .link import Dialer


class Connections:
    """Dials *control* for conversations and *bulk* for lanes.  With *keep*, agents stay for the next conversation."""

    def __init__(
        self, control: Dialer, bulk: Dialer, bundles: Bundles, keep: bool = False, limits: Optional[Limits] = None
    ) -> None:
        self._control, self._bulk, self._bundles, self.limits = control, bulk, bundles, limits or Limits()
        self.agents = AgentPool(control, bundles, keep)

    async def lane(self, host: str) -> Channel:
        """Dial one more stream to *host*."""
        return await Channel.open(self._bulk, self._bundles, host, "lane")

    async def close(self) -> None:
        """End everything."""
        await self.agents.dismiss()
        await self._control.close()
        await self._bulk.close()
