"""Versions of the real model come and go under the calls, never more than two at once."""

import asyncio
from pathlib import Path

from harken.oip import inference_pb2
from soak.edges import Edges
from support.releases import look, release, withdraw
from support.web import MODEL

_LOOK_S = 0.2
_SWAP_S = 120.0
"""In which each half of a swap is done, on any machine."""


class Swaps:
    """Releases copies of a bundle into a folder of models."""

    def __init__(self, bundle: Path, models: Path) -> None:
        self._bundle = bundle
        self._models = models
        self.version = 1
        release(bundle, models, 1, MODEL)

    async def swap(self, edges: Edges, both_s: float) -> None:
        """Release the next version; `both_s` after it is the default, retire the one before."""
        self.version += 1
        await asyncio.to_thread(release, self._bundle, self._models, self.version, MODEL)
        await self._follow(edges)
        await self._until_served(edges, {self.version - 1, self.version})
        await asyncio.sleep(both_s)
        await asyncio.to_thread(withdraw, self._models, self.version - 1, MODEL)
        await self._follow(edges)
        await self._until_served(edges, {self.version})

    async def _follow(self, edges: Edges) -> None:
        """By an operator's signal for the odd versions, by a client's call for the even ones."""
        if self.version % 2:
            look(edges.server)
        else:
            request = inference_pb2.RepositoryModelLoadRequest(model_name=MODEL)
            await edges.inference.RepositoryModelLoad(request, timeout=_SWAP_S)

    async def _until_served(self, edges: Edges, versions: set[int]) -> None:
        async with asyncio.timeout(_SWAP_S):
            while {one.version for one in await edges.client.models()} != versions:  # noqa: ASYNC110 - another process
                await asyncio.sleep(_LOOK_S)
