"""The one door behind all edges: check, tokenise, admit, wait, assemble. Values in; values or typed refusals out."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from harken.v1 import bundle_pb2

from harken_server.errors import (
    Abandoned,
    AnswerTooLarge,
    BacklogFull,
    BadValue,
    Expired,
    InvalidRequest,
    NotReady,
    Refusal,
)
from harken_server.execution.batcher import Batcher
from harken_server.execution.engine import SENTENCE, TOKENS
from harken_server.execution.keys import Keys
from harken_server.execution.pending import Outcome, Pending, Stamps
from harken_server.execution.served import ModelKey
from harken_server.models.repository import Model, Repository
from harken_server.models.tokenizer import Tokens
from harken_server.reader import Reader
from harken_server.scheduling.deadline import Deadline
from harken_server.values import Account, Answer, Answers, Chunk, Input, Limits, Options

# A load, and an endpoint's way out of the lists of those who call it, take seconds.
_RETRY_S: Final = 1.0
# Lengths, timings and keys around a vector in a response.
_ANSWER_OVERHEAD_BYTES: Final = 96
# Of a token in its text: two numbers of at most five bytes.
_PLACE_BYTES: Final = 10


class Service:
    """Belongs to the event loop's thread."""

    def __init__(
        self,
        repository: Repository,
        batcher: Batcher,
        reader: Reader,
        limits: Limits,
        keys: Keys,
        clock: Callable[[], float],
    ) -> None:
        self._repository: Final = repository
        self._batcher: Final = batcher
        self.reader: Final = reader
        self.limits: Final = limits
        self._keys: Final = keys
        self._clock: Final = clock
        self._unsent_bytes = 0
        self.state: Literal["loading", "serving", "draining"] = "loading"
        self.leaving = False
        """Whether a drain has begun: it takes requests for a while, and nobody new shall be sent to it."""

    @property
    def ready(self) -> bool:
        """Whether it takes requests, and goes on to; and computes them."""
        return self.state == "serving" and not self.leaving and self._batcher.works

    @property
    def condition(self) -> Literal["loading", "serving", "draining", "stalled"]:
        """In one word, whether it is `ready`, or why not."""
        if self.state == "serving" and not self.ready:
            return "draining" if self.leaving else "stalled"
        return self.state

    def versions(self, name: str) -> tuple[int, ...]:
        """The versions of a model that are served."""
        return self._repository.versions(name)

    def find(self, name: str, version: int) -> Model:
        """The model version that a request means. Raises ModelNotFound, InvalidRequest, or NotReady while loading."""
        self._check_loaded()
        return self._repository.find(name, version)

    @property
    def max_length(self) -> int:
        """The longest sequence that any model takes, in tokens."""
        return self._repository.max_length

    def using(self, model: Model) -> AbstractContextManager[None]:
        """Meanwhile this version goes on answering, even if it is unloaded: whoever named it counts on it."""
        return self._batcher.models.using(model.key)

    def models(self) -> list[tuple[Model, int]]:
        """Every model version, with the version of that model that is its default. Raises NotReady while loading."""
        self._check_loaded()
        return [(model, self._repository.default_version(model.manifest.name)) for model in self._repository]

    async def encode(
        self,
        model: Model,
        options: Options,
        inputs: Sequence[Input],
        names: Sequence[str],
        deadline: Deadline,
        received_s: float,
    ) -> Answers:
        """Encode a call's inputs; names[i] is how an error calls inputs[i].

        All are accepted or none: raises InvalidRequest, BacklogFull, DeadlineUnreachable, NotReady, Expired, or what
        the account refuses by, before any is.
        Once accepted each has its own outcome; only when the deadline passes or the caller goes away all end together,
        by Expired or CancelledError.
        """
        self.check_open(model, options.account, deadline, received_s)
        _check_dimensions(options.finish.dimensions, model)
        with self._batcher.models.using(model.key):
            parts, _ = await self.reader.read(model, options, inputs, names, deadline)
            answer_bytes = self._check_answer(model, options, parts)
            self.hold(answer_bytes)
            try:
                sequences = [tokens for part in parts for tokens in part]
                answers = await self._compute(model, options, sequences, deadline, received_s)
            except BaseException:
                self.sent(answer_bytes)
                raise
            if options.chunks or options.places:
                answers = list(_told(iter(answers), inputs, parts, options, model.manifest))
            return Answers(model, answers, answer_bytes)

    def check_open(self, model: Model, account: Account, deadline: Deadline, received_s: float) -> None:
        """Raises NotReady, Expired, or what the account refuses by."""
        if self.state != "serving":
            raise NotReady(self.state, _RETRY_S)
        account.check(model.manifest.name)
        if deadline.passed(received_s):
            raise Expired(deadline.by_cap)

    async def tokenize(
        self, model: Model, options: Options, inputs: Sequence[Input], names: Sequence[str], deadline: Deadline
    ) -> list[Tokens]:
        """How the model reads each text, by what of `options` says how; none is in chunks, and nothing is computed.

        Raises InvalidRequest, BacklogFull, NotReady, Expired, or what the account refuses by.
        """
        self.check_open(model, options.account, deadline, self._clock())
        with self._batcher.models.using(model.key):
            parts, _ = await self.reader.read(model, options, inputs, names, deadline)
        return [tokens for (tokens,) in parts]

    def sent(self, size_bytes: int) -> None:
        """An answer has left, or nobody is there to take it."""
        self._unsent_bytes -= size_bytes

    def hold(self, size_bytes: int) -> None:
        """Callers who ask and never read must not fill the memory. Raises BacklogFull."""
        limit = self.limits.unsent_bytes
        if self._unsent_bytes + size_bytes > limit:
            raise BacklogFull(self._unsent_bytes, size_bytes, limit, "bytes of answers", _RETRY_S)
        self._unsent_bytes += size_bytes

    async def _compute(
        self, model: Model, options: Options, sequences: Sequence[Tokens], deadline: Deadline, received_s: float
    ) -> list[Answer]:
        """From tokens to each one's outcome."""
        group = Group(len(sequences))
        finish, bundle = options.finish, model.manifest
        outputs = finish.engine_outputs(options.outputs, bundle)
        keys: Sequence[bytes | None] = [None] * len(sequences)
        if not options.deterministic:
            keys = self._keys.of(model, options.tenant, outputs, [tokens.ids for tokens in sequences])
        queued_s = self._clock()
        pendings = [
            Pending(
                length=len(tokens.ids),
                deadline=deadline,
                priority=options.priority,
                flow=options.flow,
                arrived_s=queued_s,
                ids=tokens.ids,
                outputs=outputs,
                stamps=Stamps(received_s, queued_s),
                on_settled=group.settled,
                key=key,
                trace=options.trace,
                tenant=options.tenant,
                twin=key if self._keys.shared else None,
                solitary=options.deterministic,
            )
            for tokens, key in zip(sequences, keys, strict=True)
        ]
        await self.settled([(model.key, pendings)], group, options.account, deadline)
        return [
            Answer(
                _finished(pending.take(), options, bundle),
                pending.length,
                tokens.full_length > pending.length,
                pending.stamps,
            )
            for pending, tokens in zip(pendings, sequences, strict=True)
        ]

    async def settled(
        self,
        works: Sequence[tuple[ModelKey, Sequence[Pending]]],
        group: "Group",
        account: Account,
        deadline: Deadline,
    ) -> None:
        """Submit a call's sequences, and wait until each has its outcome. Raises as `encode`, after withdrawing all."""
        submitted: list[tuple[ModelKey, Sequence[Pending]]] = []
        timer: asyncio.TimerHandle | None = None
        try:
            for key, pendings in works:
                self._batcher.submit(key, pendings)
                submitted.append((key, pendings))
                account.spend(sum(pending.length for pending in pendings))
            timer = asyncio.get_running_loop().call_later(deadline.remaining_s(self._clock()), group.expire)
            await group.done
        except (asyncio.CancelledError, TimeoutError) as left:
            # By gRPC when the caller's deadline passes, or by a caller that went away; or by our own timer.
            expired = isinstance(left, TimeoutError) or deadline.explains_cancel(self._clock())
            self._withdraw(submitted, Expired(deadline.by_cap) if expired else Abandoned())
            if isinstance(left, TimeoutError):
                raise Expired(deadline.by_cap) from None
            raise
        except Refusal:
            self._withdraw(submitted, Abandoned())
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _withdraw(self, works: Sequence[tuple[ModelKey, Sequence[Pending]]], outcome: Outcome) -> None:
        for key, pendings in works:
            self._batcher.withdraw(key, pendings, outcome)

    def _check_loaded(self) -> None:
        if self.state == "loading":
            raise NotReady(self.state, _RETRY_S)

    def _check_answer(self, model: Model, options: Options, parts: Sequence[Sequence[Tokens]]) -> int:
        """Returns the bytes that the answer will have. Raises InvalidRequest if they are too many."""
        lengths = [len(tokens.ids) for part in parts for tokens in part]
        vectors = 0
        if SENTENCE in options.outputs:
            vectors = len(lengths) if options.chunks == "all" else len(parts)
        if TOKENS in options.outputs:
            padded_length = options.padded_length
            vectors += sum(lengths) if padded_length is None else len(lengths) * max(padded_length, *lengths)
        answer_bytes = vectors * model.manifest.hidden_size * 4 + len(lengths) * _ANSWER_OVERHEAD_BYTES
        if options.places:
            answer_bytes += sum(lengths) * _PLACE_BYTES
        if answer_bytes > self.limits.answer_bytes:
            raise InvalidRequest((AnswerTooLarge("inputs", answer_bytes, self.limits.answer_bytes),))
        return answer_bytes


class Group:
    """Counts the sequences of a call down to its end."""

    def __init__(self, size: int) -> None:
        self._left = size
        self.done: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()

    def settled(self, _: Pending) -> None:
        self._left -= 1
        if not self._left and not self.done.done():
            self.done.set_result(None)

    def expire(self) -> None:
        """The deadline has come."""
        if not self.done.done():
            self.done.set_exception(TimeoutError())


def _check_dimensions(dimensions: int | None, model: Model) -> None:
    hidden_size = model.manifest.hidden_size
    if dimensions is not None and not 1 <= dimensions <= hidden_size:
        raise InvalidRequest((BadValue("dimensions", str(dimensions), f"from 1 to the model's {hidden_size}"),))


def _told(
    answers: Iterator[Answer], inputs: Sequence[Input], parts: Sequence[Sequence[Tokens]], options: Options,
    bundle: bundle_pb2.Bundle,
) -> Iterator[Answer]:  # fmt: skip
    """The answer to each input, of those to its sequences."""
    for given, part in zip(inputs, parts, strict=True):
        own = [next(answers) for _ in part]
        if not isinstance(given, str):
            yield own[0]
        elif options.chunks:
            yield _joined(own, part, options, bundle)
        else:
            yield replace(own[0], places=part[0].places)


def _joined(answers: Sequence[Answer], part: Sequence[Tokens], options: Options, bundle: bundle_pb2.Bundle) -> Answer:
    """The answer to a text, of those to its chunks; if one of them failed, that is the text's end, too."""
    vectors: list[npt.NDArray[np.float32]] = []
    for answer in answers:
        if isinstance(answer.outcome, Refusal):
            return answer
        vectors.append(answer.outcome[SENTENCE])
    stacked = np.stack(vectors)
    if options.chunks == "mean":
        stacked = options.finish.mean(stacked, [len(tokens.ids) - tokens.special for tokens in part], bundle)
    return Answer(
        {SENTENCE: stacked},
        sum(answer.tokens for answer in answers),
        False,
        max((answer.stamps for answer in answers), key=lambda stamps: stamps.scattered_s),
        [_chunk(tokens) for tokens in part],
    )


def _chunk(tokens: Tokens) -> Chunk:
    assert tokens.places is not None
    # Special tokens stand at 0 to 0.
    text = tokens.places[tokens.places[:, 1] > 0]
    start, end = (int(text[0, 0]), int(text[-1, 1])) if len(text) else (0, 0)
    return Chunk(start, end, len(tokens.ids))


def _finished(outcome: Outcome, options: Options, bundle: bundle_pb2.Bundle) -> Outcome:
    return outcome if isinstance(outcome, Refusal) else options.finish.apply(outcome, options.outputs, bundle)
