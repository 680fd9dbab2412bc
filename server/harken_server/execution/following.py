"""The folder of models is looked into at an interval, and whenever somebody asks."""

import asyncio
from typing import Final

import structlog

from harken_server.execution.control import Control

log = structlog.get_logger()


class Following:
    """Belongs to the event loop's thread."""

    def __init__(self, control: Control, interval_s: float) -> None:
        """`interval_s`: 0 looks only when asked."""
        self._control: Final = control
        self._interval_s: Final = interval_s
        self._asked: Final = asyncio.Event()
        self._stopped = False

    def ask(self) -> None:
        """Look as soon as the look before is done."""
        self._asked.set()

    def stop(self) -> None:
        """Look no more; a look that has begun goes on."""
        self._stopped = True

    async def run(self) -> None:
        """Look again and again."""
        while not self._stopped:
            try:
                async with asyncio.timeout(self._interval_s or None):
                    await self._asked.wait()
            except TimeoutError:
                pass
            asked = self._asked.is_set()
            self._asked.clear()
            try:
                if not self._stopped:
                    await self._control.refresh(anew=asked)
            except Exception:
                # A bug, or a disk that fails in a new way: what is served is served, and the next look may go well.
                log.exception("models not followed")
