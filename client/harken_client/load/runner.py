"""Sends a workload at a pace, one attempt for each call, and keeps what came of it."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

from harken_client.errors import HarkenError
from harken_client.load.pacer import Call, ClosedLoop, OpenLoop
from harken_client.load.scrape import Metrics
from harken_client.load.sender import Answer, Message, Sender
from harken_client.load.workload import Workload
from harken_client.retry import Deadline
from harken_client.values import Output

# A worker of the closed loop that was refused at once does not come back at once.
_PAUSE_AFTER_FAILURE_S = 0.01


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run goes: warm-up, then the measured period, then the wait for what is under way."""

    pacer: ClosedLoop | OpenLoop
    duration_s: float
    warmup_s: float
    deadline_s: float
    inputs_per_call: int
    output: Output

    @property
    def until_s(self) -> float:
        return self.warmup_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Run:
    """All calls, those of the warm-up too, and the server's metrics at both ends of the measured period."""

    calls: list[Call]
    before: Metrics | None
    after: Metrics | None


def messages(sender: Sender[Message], workload: Workload, plan: Plan) -> list[Message]:
    """Those of the calls, each with the next inputs."""
    size = plan.inputs_per_call
    return [sender.message(workload.inputs[start : start + size]) for start in range(0, len(workload.inputs), size)]


async def run(
    sender: Sender[Message],
    messages: Sequence[Message],
    plan: Plan,
    scrape: Callable[[], Awaitable[Metrics | None]],
) -> Run:
    """Send the messages in their order, and then again."""
    runner = _Runner(sender, itertools.cycle(messages), plan)
    sending = asyncio.create_task(
        runner.closed(plan.pacer) if isinstance(plan.pacer, ClosedLoop) else runner.open(plan.pacer)
    )
    try:
        await runner.sleep_until(plan.warmup_s)
        before = await scrape()
        await runner.sleep_until(plan.until_s)
        after = await scrape()
        await sending
    finally:
        sending.cancel()
    return Run(runner.calls, before, after)


class _Runner(Generic[Message]):
    def __init__(self, sender: Sender[Message], messages: Iterator[Message], plan: Plan) -> None:
        self.calls: list[Call] = []
        self._sender = sender
        self._messages = messages
        self._plan = plan
        self._start_s = time.monotonic()

    def _now_s(self) -> float:
        return time.monotonic() - self._start_s

    async def sleep_until(self, moment_s: float) -> None:
        await asyncio.sleep(max(0.0, moment_s - self._now_s()))

    async def closed(self, pacer: ClosedLoop) -> None:
        async def worker() -> None:
            while (now_s := self._now_s()) < self._plan.until_s:
                pause_s = await self._call(now_s)
                if pause_s:
                    await asyncio.sleep(pause_s)

        async with asyncio.TaskGroup() as workers:
            for _ in range(pacer.concurrency):
                workers.create_task(worker())

    async def open(self, pacer: OpenLoop) -> None:
        async with asyncio.TaskGroup() as calls:
            for moment_s in pacer.sends_s(self._plan.until_s):
                if moment_s > self._now_s():
                    await self.sleep_until(moment_s)
                calls.create_task(self._call(moment_s))

    async def _call(self, intended_s: float) -> float:
        """Send the next message. Returns the seconds that a polite caller would now wait."""
        message = next(self._messages)
        sent_s = self._now_s()
        deadline = Deadline.after(self._plan.deadline_s, time.monotonic())
        pause_s = 0.0
        try:
            answer = await self._sender.send(message, deadline)
        except HarkenError as error:
            answer = Answer(0, 0, (error,))
            pause_s = max(error.retry_after_s or 0.0, _PAUSE_AFTER_FAILURE_S)
        failures = tuple(_named(error) for error in answer.errors)
        self.calls.append(Call(intended_s, sent_s, self._now_s(), answer.sequences, answer.tokens, failures))
        return pause_s


def _named(error: HarkenError) -> str:
    code = error.code.name
    return code if error.reason in ("", code) else f"{code} {error.reason}"
