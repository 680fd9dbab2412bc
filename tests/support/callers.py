"""Calls without a pause through the harken client, and what became of each."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
from harken_client import AsyncClient, HarkenError

from support.calls import different

CALLERS = 16
"""How many call at a time."""


class Ends:
    """How calls ended."""

    def __init__(self) -> None:
        self.answered = 0
        self.failed: Counter[str] = Counter()
        """By code and message."""
        self.wrong = 0

    async def until(self, what: str, holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Let the callers go on until `holds()`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():  # noqa: ASYNC110 - what it waits for is in other processes
                    await asyncio.sleep(0.01)
        except TimeoutError:
            told = f"{self.answered} answered, {self.failed}"
            raise AssertionError(f"{what} did not come within {timeout_s} s: {told}") from None

    async def more(self, count: int) -> None:
        """Let so many more be answered."""
        enough = self.answered + count
        await self.until(f"{count} more answers", lambda: self.answered >= enough)


@asynccontextmanager
async def calling(target: str, **options: object) -> AsyncIterator[Ends]:
    """Call for ever, and check every answer against the one that each input had first."""
    inputs = different(64, 12)
    ends = Ends()
    stop = False
    async with AsyncClient(target, **options) as client:  # type: ignore[arg-type]  # what the client takes, it takes
        expected = await client.encode(inputs)

        async def call(number: int) -> None:
            while not stop:
                number = (number + CALLERS) % len(inputs)
                try:
                    got = await client.encode([inputs[number]])
                except HarkenError as error:
                    ends.failed[str(error)] += 1
                    await asyncio.sleep(0.01)
                    continue
                ends.answered += 1
                ends.wrong += not np.allclose(got[0], expected[number], atol=1e-5)

        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(call(number))
            try:
                yield ends
            finally:
                stop = True
