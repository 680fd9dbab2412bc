"""Everybody who takes part, started when first asked for, and idle (asleep) until his turn comes."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from bench import null_bundle
from bench.contestants import Limit, Lines, Server, lines
from bench.machine import cores, cpu_times, foreign_share
from bench.workloads import MODEL
from support.bundles import export_bundle
from support.server import running_server

T = TypeVar("T")

BUILD = Path("build/bench")
"""Where bundles of the bench's own are kept, and reports written; git ignores it."""


class Hall(ExitStack):
    """Leaving it ends them all.

    models   the folder with the fp32 bundle MODEL/1
    """

    def __init__(self, models: Path) -> None:
        super().__init__()
        self._bundle = models / MODEL / "1"
        self._models = models

    @cached_property
    def harken(self) -> Server:
        """The server under test, fp32."""
        return self._harken(self._models)

    @cached_property
    def harken_int8(self) -> Server:
        """The same with the int8 bundle."""
        return self._harken(self._int8)

    @cached_property
    def harken_null(self) -> Server:
        """The same with an engine that answers at once."""
        models = BUILD / "null"
        null_bundle.write(self._bundle, models)
        return self._harken(models)

    @cached_property
    def bulk(self) -> Lines:
        """The client of a bulk stream to the server under test."""
        return self.enter_context(lines("bench.bulk", self.harken.target))

    @cached_property
    def limit(self) -> Limit:
        """The engine alone, fp32."""
        return Limit(self.enter_context(lines("bench.limit", str(self._bundle / "model.onnx"))))

    @cached_property
    def limit_int8(self) -> Limit:
        """The engine alone, int8."""
        return Limit(self.enter_context(lines("bench.limit", str(self._int8 / MODEL / "1" / "model.onnx"))))

    @cached_property
    def single(self) -> Server:
        """The baseline that runs one by one."""
        return self._baseline("single")[0]

    @property
    def fixed(self) -> Server:
        """The baseline with fixed batches."""
        return self._fixed[0]

    def fixed_tokens(self) -> tuple[int, int]:
        """Real tokens and computed ones of the baseline with fixed batches, since this was last asked."""
        counts = self._fixed[1].ask("")
        return counts["real_tokens"], counts["computed_tokens"]

    def watched(self, run: Callable[[], T]) -> tuple[T, float]:
        """What came of it, and the share of the machine that others took meanwhile. Starts nobody: start him before."""
        before = cpu_times()
        result = run()
        return result, foreign_share(before, cpu_times(), cores())

    @cached_property
    def _int8(self) -> Path:
        models = BUILD / "int8"
        export_bundle("minilm", "--models", str(models), "--name", MODEL, "--precision", "int8", "--if-missing")
        return models

    @cached_property
    def _fixed(self) -> tuple[Server, Lines]:
        return self._baseline("fixed")

    def _harken(self, models: Path) -> Server:
        running = self.enter_context(running_server(models))
        return Server(running.target, running.process.pid)

    def _baseline(self, name: str) -> tuple[Server, Lines]:
        process = self.enter_context(lines(f"bench.baselines.{name}", str(self._bundle / "model.onnx")))
        return Server(f"127.0.0.1:{process.read()['port']}", process.pid), process
