"""The door of Attend, behind all edges: the same checks and the same waiting as for vectors, and maps in the end.

What is told of attention is one bulk sequence of the model's attention graph. What tokens add to a similarity is made
of the token vectors of the model itself, as everybody's are, so that it adds up to the similarity that is served.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from harken_server.errors import (
    AnswerTooLarge,
    CannotAttend,
    Expired,
    InvalidRequest,
    OverAttendBudget,
    Refusal,
    TurnedOff,
)
from harken_server.execution.attention import Attentions, maps_bytes, run_bytes
from harken_server.execution.batcher import Batcher
from harken_server.execution.engine import TOKENS
from harken_server.execution.pending import Pending, Stamps, Vectors
from harken_server.execution.reductions import ATTENTIONS, CONTRIBUTIONS, LINKS, ROLLOUT, Sizes, Wish, contributions
from harken_server.execution.served import ModelKey
from harken_server.models.repository import Model
from harken_server.models.tokenizer import Tokens
from harken_server.scheduling.deadline import Deadline
from harken_server.scheduling.waiting import Priority
from harken_server.service import Group, Service
from harken_server.values import Input, Options


@dataclass(frozen=True, slots=True)
class Attended:
    """What became of an Attend."""

    model: Model
    wish: Wish
    texts: Sequence[Tokens]
    """The text, and the other one if there is."""
    told: Vectors
    """By the names of reductions.py."""
    contributions: npt.NDArray[np.float32] | None
    """Of two texts: float32 [n, m], which adds up to their similarity."""
    stamps: Stamps | None
    """Of the sequence whose maps were computed."""

    @property
    def similarity(self) -> float | None:
        """The cosine of two texts."""
        return None if self.contributions is None else float(self.contributions.sum(dtype=np.float64))


class Attend:
    """Belongs to the event loop's thread."""

    def __init__(
        self, service: Service, batcher: Batcher, attentions: Attentions, turned_on: bool, clock: Callable[[], float]
    ) -> None:
        """`turned_on`: the setting attend."""
        self.service: Final = service
        self._batcher: Final = batcher
        self._attentions: Final = attentions
        self._turned_on: Final = turned_on
        self._clock: Final = clock

    def check(self, model: Model, options: Options, deadline: Deadline, received_s: float, pair: bool) -> None:
        """Raises TurnedOff, CannotAttend, NotReady, Expired, or what the account refuses by."""
        if not self._turned_on:
            raise TurnedOff("attend")
        self.service.check_open(model, options.account, deadline, received_s)
        manifest = model.manifest
        if not manifest.HasField("attention"):
            raise CannotAttend(manifest.name, manifest.version)
        if pair and manifest.pooling != "mean":
            raise CannotAttend(manifest.name, manifest.version, manifest.pooling)

    @asynccontextmanager
    async def answer(
        self,
        model: Model,
        options: Options,
        wish: Wish,
        inputs: Sequence[Input],
        names: Sequence[str],
        deadline: Deadline,
        received_s: float,
        check_sizes: Callable[[Sizes], None],
    ) -> AsyncIterator[Attended]:
        """What `wish` asks of the first input and, of two, what their tokens add to their similarity.

        The memory of the answer is held until the block ends: let it leave within. `check_sizes` may refuse an answer
        of so many numbers before it is computed. After `check`, raises InvalidRequest, BacklogFull,
        DeadlineUnreachable, LoadFailed, Expired, and what the engine ends a sequence by.
        """
        with self._batcher.models.using(model.key), self._attentions.using(model) as key:
            parts, fields = await self.service.reader.read(model, options, inputs, names, deadline)
            texts = [tokens for (tokens,) in parts]
            lengths = [len(tokens.ids) for tokens in texts]
            sizes = wish.sizes(lengths[0])
            if len(texts) > 1:
                sizes[CONTRIBUTIONS] = lengths[0] * lengths[1]
            check_sizes(sizes)
            pair_bytes, answer_bytes = 4 * sizes.get(CONTRIBUTIONS, 0), 4 * sum(sizes.values())
            computed_bytes = self._computed_bytes(model, wish, lengths[0])
            needed_bytes = max(
                self._needed_bytes(model, wish, lengths[0], fields[0]) + pair_bytes, computed_bytes + answer_bytes
            )
            budget_bytes = self._attentions.budget.budget_bytes
            if needed_bytes > budget_bytes:
                field = largest(sizes, fields)
                raise InvalidRequest((AnswerTooLarge(field, needed_bytes, budget_bytes, maps=True),))
            with self._attentions.budget.holding(answer_bytes, needed_bytes):
                if wish.anything:
                    await self._load(model, deadline)
                yield await self._compute(model, key, options, wish, texts, deadline, received_s)

    def _computed_bytes(self, model: Model, wish: Wish, length: int) -> int:
        """Of the maps out of which the answer is made: they go once it is."""
        return maps_bytes(model.manifest.layers, model.manifest.heads, length) if wish.anything else 0

    def _needed_bytes(self, model: Model, wish: Wish, length: int, field: str) -> int:
        """Most memory while the maps are computed. Raises InvalidRequest if it exceeds the budget by itself."""
        if not wish.anything:
            return 0
        layers, heads = model.manifest.layers, model.manifest.heads
        encoding_bytes = self._batcher.memory_model(model.key).batch_bytes(1, length)
        needed_bytes = run_bytes(layers, heads, length) + encoding_bytes
        budget_bytes = self._attentions.budget.budget_bytes
        if needed_bytes > budget_bytes:
            whole_bytes = self._computed_bytes(model, wish, length)
            problem = OverAttendBudget(field, length, layers, heads, whole_bytes, needed_bytes, budget_bytes)
            raise InvalidRequest((problem,))
        return needed_bytes

    async def _load(self, model: Model, deadline: Deadline) -> None:
        try:
            async with asyncio.timeout(deadline.remaining_s(self._clock())):
                await self._attentions.loaded(model)
        except TimeoutError:
            raise Expired(deadline.by_cap) from None

    async def _compute(
        self,
        model: Model,
        key: ModelKey,
        options: Options,
        wish: Wish,
        texts: Sequence[Tokens],
        deadline: Deadline,
        received_s: float,
    ) -> Attended:
        pair = len(texts) > 1
        group = Group(wish.anything + len(texts) * pair)
        queued_s = self._clock()

        def pending(tokens: Tokens, output: str, wanted: Wish | None = None) -> Pending:
            return Pending(
                length=len(tokens.ids),
                deadline=deadline,
                priority=Priority.BULK,
                flow=options.flow,
                arrived_s=queued_s,
                ids=tokens.ids,
                outputs=(output,),
                stamps=Stamps(received_s, queued_s),
                on_settled=group.settled,
                reduce=wanted.of if wanted else None,
                tenant=options.tenant,
                trace=options.trace,
                solitary=wanted is not None,
            )

        encoded = [pending(tokens, TOKENS) for tokens in texts] if pair else []
        attended = [pending(texts[0], ATTENTIONS, wish)] if wish.anything else []
        works = [(of, pendings) for of, pendings in ((model.key, encoded), (key, attended)) if pendings]
        if works:
            await self.service.settled(works, group, options.account, deadline)
        vectors = [_computed(one)[TOKENS] for one in encoded]
        told = _computed(attended[0]) if attended else {}
        added = await asyncio.to_thread(contributions, *vectors) if pair else None
        return Attended(model, wish, texts, told, added, attended[0].stamps if attended else None)


def largest(sizes: Sizes, texts: Sequence[str]) -> str:
    """The field to blame where an answer of these sizes is too large; `texts`: the fields of the texts.

    What layers and heads do not make smaller is the last text's.
    """
    name = max(sizes, key=sizes.__getitem__)
    return {LINKS: "top_k", ROLLOUT: texts[-1], CONTRIBUTIONS: texts[-1]}.get(name, name)


def _computed(pending: Pending) -> Vectors:
    """Raises the Refusal that it ended by."""
    outcome = pending.take()
    if isinstance(outcome, Refusal):
        raise outcome
    return outcome
