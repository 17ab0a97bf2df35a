"""Connections: how hosts are reached, agents for conversations and lanes for bulk."""

from __future__ import annotations

from typing import Dict, Optional

from .agents import AgentPool
from .bundle import Bundles
from .channel import Channel
from .hops import Hops
from .limits import Limits
from .link import Dialer
from .spare_lanes import SpareLanes


class Connections:
    """Dials *control* for conversations, *bulk* for lanes, and *onward* for those that dial another host from there.

    With *keep*, agents stay for the next conversation, and lanes for the next transfer (*spare*).
    """

    def __init__(
        self,
        control: Dialer,
        bulk: Dialer,
        bundles: Bundles,
        keep: bool = False,
        limits: Optional[Limits] = None,
        onward: Optional[Dialer] = None,
    ) -> None:
        self._control, self._bulk, self._bundles, self.limits = control, bulk, bundles, limits or Limits()
        self._onward = onward or bulk
        self.agents = AgentPool(control, bundles, keep)
        self.spare = SpareLanes() if keep else None
        self.hops = Hops()
        self.packs: Dict[str, bool] = {}
        """Whether chunks travel faster packed, by host."""

    async def lane(self, host: str, onward: bool = False) -> Channel:
        """Dial one more stream to *host*, which shall dial another one from there if *onward* says so."""
        return await Channel.open(self._onward if onward else self._bulk, self._bundles, host, "lane")

    async def close(self) -> None:
        """End everything."""
        await self.agents.dismiss()
        if self.spare:
            await self.spare.close()
        await self._control.close()
        await self._bulk.close()
        await self._onward.close()
