"""Calls of every kind at their own times, each with its own fate, and how each of them ended."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import grpc
import httpx2
from harken_client import HarkenError
from harken_client.load.pacer import OpenLoop
from soak import other_calls as other
from soak import own_calls as own
from soak.edges import Edges
from soak.inputs import Pool, Wrong

Fate = Literal["none", "leaves", "deadline"]

TIMEOUT_S = 300.0
"""No call takes so long, nor is predicted to, however slow the machine."""
LOST_S = 1.2 * TIMEOUT_S
"""A call that has not ended by then has no answer."""
UNDER_WAY = 64
"""Most calls at a time. One more has to wait, so that a slow machine has a slower load, not a longer backlog."""

_BAD = frozenset({"INVALID_ARGUMENT", "NOT_FOUND"})


@dataclass(frozen=True)
class Kind:
    """A kind of call.

    weight     how often it is drawn, beside the others
    ends       how a call may end with which nothing happens
    deadlines  whether it may get a deadline that passes
    leaves     whether its caller may leave before the answer
    """

    name: str
    weight: float
    call: Callable[[Edges, Pool, Random, float], Awaitable[str]]
    ends: frozenset[str] = frozenset({"OK"})
    deadlines: bool = True
    leaves: bool = True


KINDS = (
    Kind("Encode, sentences", 8, own.encode),
    Kind("Encode, tokens", 2, own.encode_tokens),
    Kind("Encode, chunks of a long text", 0.5, own.encode_chunks),
    Kind("Encode, a version by number", 1, own.a_version, frozenset({"OK", "NOT_FOUND"})),
    Kind("Encode, a new connection", 1, own.new_connection),
    Kind("Encode, bad input", 1, own.bad_encode, _BAD, deadlines=False, leaves=False),
    Kind("Similarity", 1, own.similarity),
    Kind("EncodeStream, to its end", 2, own.stream, deadlines=False),
    Kind("EncodeStream, broken off", 1, own.broken_stream, frozenset({"left"}), deadlines=False, leaves=False),
    Kind("ExplainBatches", 0.5, own.explain, deadlines=False, leaves=False),
    Kind("ModelInfer", 3, other.infer),
    Kind("ModelStreamInfer", 1, other.infer_stream, deadlines=False),
    Kind("ModelInfer, bad input", 0.5, other.bad_infer, _BAD, deadlines=False, leaves=False),
    Kind("HTTP, OpenAI", 4, other.embeddings, deadlines=False),
    Kind("HTTP, TEI", 2, other.embed, deadlines=False),
    Kind("HTTP, Open Inference", 2, other.web_infer),
    Kind("HTTP, bad input", 1, other.bad_post, _BAD, deadlines=False, leaves=False),
    Kind("HTTP, half a request", 0.5, other.half_a_post, frozenset({"left"}), deadlines=False, leaves=False),
)
FATES: tuple[Fate, ...] = ("none", "none", "none", "none", "none", "none", "none", "none", "leaves", "deadline")
_ENDS: dict[Fate, frozenset[str]] = {
    "none": frozenset(),
    "leaves": frozenset({"left"}),
    # It may be refused at the door, as one that cannot be met.
    "deadline": frozenset({"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}),
}


@dataclass
class Tally:
    """What the callers saw of their calls."""

    begun: int = 0
    late: int = 0
    """Calls that waited since UNDER_WAY others were under way."""
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    """By kind."""
    fates: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    typical_s: float = 0.1
    """How long a call takes that nothing happens to, smoothed."""

    @property
    def ended(self) -> int:
        """How many calls."""
        return sum(ends.total() for ends in self.ends.values())


class Traffic:
    """Belongs to its event loop."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self._pool = pool
        self._seed = seed
        self.tally = Tally()

    async def capacity_per_s(self, edges: Edges, seconds: float, callers: int = 8) -> float:
        """How many calls a second are answered when so many callers ask again and again."""
        before, ends_s = self.tally.ended, time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < ends_s:
                await self._call(edges, *self._drawn())

        started_s = time.monotonic()
        await asyncio.gather(*[caller() for _ in range(callers)])
        return (self.tally.ended - before) / (time.monotonic() - started_s)

    async def each_kind_once(self, edges: Edges) -> None:
        """One call of each, undisturbed, one after the other."""
        for kind in KINDS:
            await self._call(edges, kind, "none", self._random())

    async def run(self, edges: Edges, rate_per_s: float, done: asyncio.Event) -> None:
        """Send until `done`, then wait for what is under way."""
        places = asyncio.Semaphore(UNDER_WAY)
        started_s = time.monotonic()

        async def call() -> None:
            try:
                await self._call(edges, *self._drawn())
            finally:
                places.release()

        async with asyncio.TaskGroup() as calls:
            for send_s in OpenLoop(rate_per_s, self._seed + self.tally.begun).sends_s(float("inf")):
                pause_s = started_s + send_s - time.monotonic()
                try:
                    async with asyncio.timeout(max(0.0, pause_s)):
                        await done.wait()
                except TimeoutError:
                    pass
                if done.is_set():
                    return
                self.tally.late += places.locked()
                await places.acquire()
                calls.create_task(call())

    def _random(self) -> Random:
        return Random(f"{self._seed} {self.tally.begun}")  # noqa: S311 - a load that can be repeated, no secret

    def _drawn(self) -> tuple[Kind, Fate, Random]:
        random = self._random()
        (kind,) = random.choices(KINDS, [kind.weight for kind in KINDS])
        fate = random.choice(FATES)
        if (fate == "deadline" and not kind.deadlines) or (fate == "leaves" and not kind.leaves):
            fate = "none"
        return kind, fate, random

    async def _call(self, edges: Edges, kind: Kind, fate: Fate, random: Random) -> None:
        tally = self.tally
        tally.begun += 1
        # Measured by what a call takes here, so that callers leave in the middle on a slow machine too.
        soon_s = random.uniform(0.05, 1.5) * tally.typical_s
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(soon_s if fate == "leaves" else LOST_S):
                end = await kind.call(edges, self._pool, random, soon_s if fate == "deadline" else TIMEOUT_S)
        except HarkenError as error:
            end = error.code.name
        except grpc.aio.AioRpcError as error:
            end = error.code().name
        except httpx2.HTTPError as error:
            end = type(error).__name__
        except Wrong as wrong:
            end = "wrong"
            tally.wrong.append(f"{kind.name}: {wrong}")
        except TimeoutError:
            end = "left" if fate == "leaves" else "lost"
            tally.lost += end == "lost"
        if end == "OK" and fate == "none":
            tally.typical_s += 0.05 * (time.monotonic() - started_s - tally.typical_s)
        tally.fates[fate] += 1
        tally.ends.setdefault(kind.name, Counter())[end] += 1
        if end not in kind.ends | _ENDS[fate] | {"wrong", "lost"}:
            tally.wrong.append(f"{kind.name}, {fate}: ended with {end}")
