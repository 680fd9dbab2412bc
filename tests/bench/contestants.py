"""Who is measured: servers and the limit, each a process of its own, and the load that this process sends."""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
from bench.batching import WINDOW, Policy
from bench.machine import process_s
from bench.workloads import MODEL, Mix, messages
from harken.v1 import encoder_pb2_grpc
from harken_client.connection import Connection
from harken_client.load import runner
from harken_client.load.pacer import LATE_S, Call, ClosedLoop, OpenLoop
from harken_client.load.sender import EncodeSender
from harken_client.load.summary import of_client

ENOUGH_S = 120.0
"""The deadline of a call where none is asked for: the slowest baseline with the most in flight stays far below it."""

_MESSAGE_BYTES = 16 << 20


@dataclass(frozen=True)
class Server:
    """A running server, whoever's."""

    target: str
    pid: int


@dataclass(frozen=True)
class Load:
    """What one run of load saw.

    calls      those meant to be sent in the measured period
    per_s      sequences answered within it
    cpu_s      CPU seconds of client and server over the whole run
    answered   sequences answered over the whole run
    """

    calls: list[Call]
    per_s: float
    duration_s: float
    cpu_s: float
    answered: int

    def latencies_s(self, tokens: int | None = None) -> list[float]:
        """Of the answered calls, all of them or those of one length; from the moment they were meant to be sent."""
        return [call.latency_s for call in self.calls if call.sequences and tokens in (None, call.tokens)]

    @property
    def failures(self) -> dict[str, int]:
        """How often each error occurred."""
        return dict(Counter(failure for call in self.calls for failure in call.failures))

    @property
    def late_sends(self) -> int:
        """Calls sent noticeably after they were meant to be; they count like all others."""
        return sum(call.late_s >= LATE_S for call in self.calls)

    def goodput_per_s(self, deadline_s: float) -> float:
        """Calls answered within their deadline, which counts from the moment they were meant to be sent."""
        return sum(latency_s <= deadline_s for latency_s in self.latencies_s()) / self.duration_s

    def refusals_s(self) -> list[float]:
        """How long it took to be told that the server has too much to do."""
        refused = [call for call in self.calls if any("RESOURCE_EXHAUSTED" in failure for failure in call.failures)]
        return [call.latency_s for call in refused]


async def _nothing() -> None:
    return None


def send(
    server: Server,
    mix: Mix,
    pacer: ClosedLoop | OpenLoop,
    *,
    offset: int,
    duration_s: float,
    warmup_s: float,
    deadline_s: float = ENOUGH_S,
) -> Load:
    """Load with one sequence a call, starting with the sequence `offset`; blocks until the last call has ended."""
    plan = runner.Plan(pacer, duration_s, warmup_s, deadline_s, inputs_per_call=1, output="sentence")
    outgoing = messages(mix, offset)

    async def run() -> list[Call]:
        connection = Connection(server.target, max_message_bytes=_MESSAGE_BYTES, max_attempts=1, credentials=None)
        try:
            sender = EncodeSender(connection, MODEL, 0, plan.output)
            return (await runner.run(sender, outgoing, plan, _nothing)).calls
        finally:
            await connection.close()

    before_s = time.process_time() + process_s(server.pid)
    calls = asyncio.run(run())
    cpu_s = time.process_time() + process_s(server.pid) - before_s
    measured = [call for call in calls if plan.warmup_s <= call.intended_s < plan.until_s]
    answered = sum(call.sequences for call in calls)
    return Load(measured, of_client(calls, plan).sequences_per_s, duration_s, cpu_s, answered)


def one_at_a_time(server: Server, mix: Mix, offset: int, count: int) -> list[float]:
    """Seconds of each of `count` calls, the next sent when the last is answered. Blocks; a failed call raises."""
    outgoing = messages(mix, offset)[:count]
    with grpc.insecure_channel(server.target) as channel:
        stub = encoder_pb2_grpc.EncoderStub(channel)
        moments_s = [time.perf_counter()]
        for message in outgoing:
            stub.Encode(message)
            moments_s.append(time.perf_counter())
    return [end_s - start_s for start_s, end_s in itertools.pairwise(moments_s)]


class Lines:
    """A module of the bench as a process that answers lines of JSON."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.pid = process.pid
        self._process = process

    def read(self) -> Any:
        """The next line. Raises RuntimeError if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(line)

    def ask(self, question: object) -> Any:
        """Send a line, wait for its answer. Raises RuntimeError if the process has ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and its silence says so
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self.read()


@contextmanager
def lines(module: str, *arguments: str) -> Iterator[Lines]:
    """Run `python -m module`; ended with its standard input."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Lines(process)
        finally:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


class Limit:
    """ONNX Runtime over one graph in a process of its own, see limit.py."""

    def __init__(self, process: Lines) -> None:
        self._process = process

    def per_s(self, mix: Mix, policy: Policy, offset: int, count: int) -> float:
        """Sequences a second over `count` of them, all lanes, nobody else."""
        batching = {"tokens": policy.tokens, "window": policy.window}
        which = {"lengths": mix.lengths, "offset": offset, "count": count}
        seconds: float = self._process.ask({"command": "whole", "policy": batching, **which})
        return count / seconds

    def each_s(self, mix: Mix, offset: int, count: int, threads: int = 1) -> list[float]:
        """Seconds of each sequence alone on `threads` threads, one after the other; nothing else runs."""
        which = {"lengths": mix.lengths, "offset": offset, "count": count}
        seconds: list[float] = self._process.ask({"command": "each", "threads": threads, **which})
        return seconds

    def trials(self, mix: Mix, policies: Sequence[Policy], duration_s: float) -> dict[Policy, float]:
        """Sequences a second of each policy over the same sequences: the better of two tries, forth and back."""
        pilot = 2 * WINDOW
        rate = self.per_s(mix, policies[0], 0, pilot)
        count = max(pilot, WINDOW * round(rate * duration_s / WINDOW))
        tries = [(policy, self.per_s(mix, policy, 0, count)) for policy in (*policies, *reversed(policies))]
        return {policy: max(rate for tried, rate in tries if tried == policy) for policy in policies}
