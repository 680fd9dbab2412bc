"""Every edge in this process, without sockets, over an engine that answers at once; and how a bug is noticed."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

import grpc
import numpy as np
from harken.v1 import bundle_pb2
from harken_server.attend import Attend
from harken_server.errors import ModelNotFound
from harken_server.execution.attention import AttendBudget, attention_key
from harken_server.execution.control import Entry
from harken_server.execution.engine import SENTENCE, TOKENS
from harken_server.execution.history import History
from harken_server.execution.keys import Keys
from harken_server.execution.pending import Pending
from harken_server.execution.reductions import ATTENTIONS
from harken_server.models.repository import Model, Repository
from harken_server.models.tokenizer import Reading, Tokenizer, Tokens
from harken_server.reader import Reader
from harken_server.rpc.api_keys import ApiKeys
from harken_server.rpc.calls import Calls
from harken_server.rpc.encoder import Encoder
from harken_server.rpc.oip.inference import Inference
from harken_server.rpc.stream import Streams
from harken_server.rpc.tenants import Tenants
from harken_server.rpc.web.exchange import Exchanges
from harken_server.rpc.web.server import Web
from harken_server.scheduling.memory import MemoryModel
from harken_server.service import Service
from harken_server.sources import load
from harken_server.telemetry.metrics import Metrics
from harken_server.telemetry.statistics import Statistics
from harken_server.values import Limits
from structlog.processors import format_exc_info
from structlog.testing import capture_logs

SEEDS: Final = Path(__file__).parent / "seeds"
KEY: Final = "a-key-of-at-least-22-characters"
MOST_BYTES: Final = 1 << 20
_HIDDEN: Final = 8
_LAYERS: Final = 3
_HEADS: Final = 2


class Edges:
    """One model, `tiny`, that takes texts; over gRPC's handlers and HTTP's routes. `keys`: whether calls need KEY."""

    def __init__(self, keys: bool = False) -> None:
        self.loop: Final = asyncio.new_event_loop()
        metrics, repository, batcher = Metrics(), Repository(), _Batcher()
        manifest = bundle_pb2.Bundle(
            name="tiny", version=1, hidden_size=_HIDDEN, max_length=16, vocab_size=1000, pooling="mean",
            normalized=True, layers=_LAYERS, heads=_HEADS, attention=bundle_pb2.Attention(),
        )  # fmt: skip
        tokenizer = Tokenizer((SEEDS / "tokenizer" / "word_piece").read_bytes(), 16, 1000)
        repository.add(Model(manifest, "0" * 64, tokenizer, "cpu"))
        metrics.statistics["tiny", 1] = Statistics()
        limits = Limits(inputs=64, text_bytes=4096, answer_bytes=MOST_BYTES, unsent_bytes=4 * MOST_BYTES)
        tokenizing: Any = _Tokenizing()
        self.service: Final = Service(
            repository,
            batcher,  # type: ignore[arg-type]  # stands in for it
            Reader(batcher, tokenizing, limits, self.loop.time),  # type: ignore[arg-type]  # likewise
            limits,
            Keys(shared=False, kept=False),
            self.loop.time,
        )
        self.service.state = "serving"
        tenants = Tenants(trusted=not keys, weights={})
        self._calls: Final = Calls(metrics, tenants, self.loop.time, 60.0, _keys(self.loop.time) if keys else None)
        streams = Streams(max_unanswered=8, max_request_s=60.0, max_age_s=0.0)
        control: Any = _Control()
        attentions: Any = _Attentions()
        attend = Attend(self.service, batcher, attentions, True, self.loop.time)  # type: ignore[arg-type]  # likewise
        encoder = Encoder(self.service, attend, self._calls, streams, MOST_BYTES)
        inference = Inference(self.service, self._calls, streams, control, MOST_BYTES)
        self.unary: Final[Sequence[tuple[str, Any]]] = (
            ("Encode", encoder.encode), ("Similarity", encoder.similarity), ("ListModels", encoder.list_models),
            ("GetModel", encoder.get_model), ("ModelInfer", inference.model_infer),
            ("ModelReady", inference.model_ready), ("ModelMetadata", inference.model_metadata),
            ("ModelConfig", inference.model_config), ("ModelStatistics", inference.model_statistics),
            ("RepositoryIndex", inference.repository_index), ("RepositoryModelLoad", inference.repository_model_load),
            ("RepositoryModelUnload", inference.repository_model_unload), ("Attend", encoder.attend),
        )  # fmt: skip
        self.encode_stream: Final = encoder.encode_stream
        self.infer_stream: Final = inference.model_stream_infer
        exchanges = Exchanges(self.service, self._calls, MOST_BYTES, 60.0)
        web = Web(exchanges, attend, control, History(4), load(["--models", ".", "--studio"], {}), None)
        self.config: Final = web._server.config
        self.config.load()

    def call(self, handle: Any, raws: Sequence[bytes], metadata: Mapping[str, str] | None = None) -> "Context":
        """Make a gRPC call of one message, or a stream of them. Fails on a bug."""
        context = Context(raws, metadata or {})
        with self.no_bug():
            self.loop.run_until_complete(context.run(handle))
        assert context.code is not grpc.StatusCode.INTERNAL, context.said
        return context

    @contextmanager
    def no_bug(self) -> Iterator[None]:
        """Nothing is logged as an error meanwhile, no call stays open, and no answer is held for ever."""
        with capture_logs(processors=[format_exc_info]) as lines:
            yield
        bugs = [line for line in lines if line["log_level"] in ("error", "critical")]
        assert not bugs, "\n".join(f"{bug['event']}\n{bug.get('exception', '')}" for bug in bugs)
        open_calls, unsent_bytes = self._calls._open, self.service._unsent_bytes
        assert (open_calls, unsent_bytes) == (0, 0), f"{open_calls} calls open, {unsent_bytes} bytes held"


class Context:
    """What gRPC gives a handler, and how the call ended: with `answers`, or with a code."""

    def __init__(self, raws: Sequence[bytes], metadata: Mapping[str, str]) -> None:
        self.answers: Final[list[bytes]] = []
        self.code: grpc.StatusCode | None = None
        self.said = ""
        self._raws: Final = list(raws)
        self._metadata: Final = metadata
        self._done: Final[list[Callable[[object], None]]] = []

    async def run(self, handle: Callable[[Any, "Context"], Coroutine[None, None, bytes | None]]) -> None:
        """Call a handler, and be done."""
        try:
            answer = await handle(self._raws[0] if self._raws else _nothing(), self)
            if answer is not None:
                self.answers.append(answer)
        except _Aborted:
            pass
        finally:
            for act in self._done:
                act(self)

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return tuple(self._metadata.items())

    def time_remaining(self) -> float | None:
        return None

    def set_trailing_metadata(self, _: object) -> None:
        pass

    def add_done_callback(self, act: Callable[[object], None]) -> None:
        self._done.append(act)

    async def abort(self, code: grpc.StatusCode, said: str, _: object) -> None:
        self.code, self.said = code, said
        raise _Aborted

    async def read(self) -> Any:
        return self._raws.pop(0) if self._raws else grpc.aio.EOF

    async def write(self, message: bytes) -> None:
        self.answers.append(message)


class _Aborted(Exception):
    pass


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


class _Residents:
    """They always stay."""

    def using(self, _: object) -> AbstractContextManager[None]:
        return nullcontext()


class _Batcher:
    """Computes at once."""

    works = True
    memory_budget_bytes = 1 << 40
    models = _Residents()

    def check_room(self, _: object, __: int) -> None:
        pass

    def memory_model(self, _: object) -> MemoryModel:
        return MemoryModel(1, 0)

    def submit(self, _: object, pendings: Sequence[Pending]) -> None:
        for pending in pendings:
            length = pending.length
            shapes = {SENTENCE: (_HIDDEN,), TOKENS: (length, _HIDDEN), ATTENTIONS: (_LAYERS, _HEADS, length, length)}
            pending.stamps.found(time.monotonic())
            computed = {name: np.full(shapes[name], 1 / length, np.float32) for name in pending.outputs}
            pending.settle(pending.reduce(computed) if pending.reduce else computed)

    def withdraw(self, _: object, pendings: Sequence[Pending], outcome: Any) -> None:
        for pending in pendings:
            pending.settle(outcome)


class _Attentions:
    """Loaded, and with room for all."""

    budget = AttendBudget(1 << 40)

    def using(self, model: Model) -> AbstractContextManager[tuple[str, int]]:
        return nullcontext(attention_key(model.key))

    async def loaded(self, _: Model) -> None:
        pass


class _Tokenizing:
    """In the caller's thread."""

    async def encode(
        self, tokenizer: Tokenizer, texts: Sequence[str], _: int, reading: Reading, room: int
    ) -> list[list[Tokens]]:
        return tokenizer.encode(texts, reading, room)


class _Control:
    """A folder with the one model, in which nothing changes."""

    allowed = True

    async def index(self) -> Sequence[Entry]:
        return [Entry("tiny", 1, "READY", "")]

    async def load(self, name: str) -> None:
        raise ModelNotFound(name, 0, ("tiny",), ())

    unload = load


def _keys(clock: Callable[[], float]) -> ApiKeys:
    with NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(f'[[keys]]\nname = "only"\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n')
        file.flush()
        return ApiKeys(file.name, clock)


@cache
def plain() -> Edges:
    """Without keys; made once."""
    return Edges()


@cache
def with_keys() -> Edges:
    """With keys; made once."""
    return Edges(keys=True)
