"""From a call's inputs to sequences of tokens: checked, tokenised, checked again."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import numpy as np

from harken_server.errors import (
    Expired,
    InvalidRequest,
    Missing,
    NoTokens,
    OverMemoryBudget,
    Problem,
    SequenceTooLong,
    TextNotAccepted,
    TokenOutOfRange,
    TooMany,
    TooManyBytes,
    TooManyChunks,
)
from harken_server.execution.batcher import Batcher
from harken_server.execution.tokenizing import Tokenizing
from harken_server.models.repository import Model
from harken_server.models.tokenizer import Ids, Reading, Tokens, TooManySequences
from harken_server.scheduling.deadline import Deadline
from harken_server.values import MAX_PROBLEMS, Input, Limits, Options, TokenIds


class Reader:
    """Belongs to the event loop's thread."""

    def __init__(self, batcher: Batcher, tokenizing: Tokenizing, limits: Limits, clock: Callable[[], float]) -> None:
        self._batcher: Final = batcher
        self._tokenizing: Final = tokenizing
        self._limits: Final = limits
        self._clock: Final = clock

    async def read(
        self, model: Model, options: Options, inputs: Sequence[Input], names: Sequence[str], deadline: Deadline
    ) -> tuple[list[list[Tokens]], list[str]]:
        """The sequences of each input, and what errors call it. Raises InvalidRequest, BacklogFull, Expired."""
        text_bytes = self._check_inputs(model, inputs, names)
        if text_bytes:
            self._batcher.check_room(model.key, len(inputs))
        fields = [_field(given, name) for given, name in zip(inputs, names, strict=True)]
        parts = await self._tokenize(model, options, inputs, fields, text_bytes, deadline)
        self._check_sequences(model, options, parts, fields)
        return parts, fields

    def _check_inputs(self, model: Model, inputs: Sequence[Input], names: Sequence[str]) -> int:
        """What can be told without tokenising. Returns the bytes of all texts."""
        if not inputs:
            raise InvalidRequest((Missing("inputs"),))
        if len(inputs) > self._limits.inputs:
            raise InvalidRequest((TooMany("inputs", len(inputs), self._limits.inputs),))
        problems: list[Problem] = []
        text_bytes = 0
        for given, name in zip(inputs, names, strict=True):
            if isinstance(given, Problem):
                problems.append(given)
            elif isinstance(given, str):
                size_bytes = len(given.encode())
                text_bytes += size_bytes
                if model.tokenizer is None:
                    problems.append(TextNotAccepted(f"{name}.text", model.manifest.name))
                elif not given:
                    problems.append(NoTokens(f"{name}.text"))
                elif size_bytes > self._limits.text_bytes:
                    problems.append(TooManyBytes(f"{name}.text", size_bytes, self._limits.text_bytes))
            else:
                problems += _check_ids(given.ids, _field(given, name), model.manifest.vocab_size)
        _raise(problems)
        return text_bytes

    async def _tokenize(
        self,
        model: Model,
        options: Options,
        inputs: Sequence[Input],
        fields: Sequence[str],
        text_bytes: int,
        deadline: Deadline,
    ) -> list[list[Tokens]]:
        """The sequences of each input."""
        left = options.truncate == "left"
        tokenized: Iterator[list[Tokens]] = iter(())
        if text_bytes and model.tokenizer is not None:
            texts = [(field, given) for field, given in zip(fields, inputs, strict=True) if isinstance(given, str)]
            keep: Literal["start", "end", "chunks"] = "chunks" if options.chunks else "end" if left else "start"
            reading = Reading(keep, options.overlap_tokens, options.places)
            others = len(inputs) - len(texts)
            try:
                async with asyncio.timeout(deadline.remaining_s(self._clock())):
                    chosen = [text for _, text in texts]
                    room = self._limits.inputs - others
                    tokenized = iter(await self._tokenizing.encode(model.tokenizer, chosen, text_bytes, reading, room))
            except TimeoutError:
                raise Expired(deadline.by_cap) from None
            except TooManySequences as found:
                field, _ = texts[found.text]
                at_least = found.sequences + others
                raise InvalidRequest((TooManyChunks(field, at_least, self._limits.inputs),)) from None
        limit = model.manifest.max_length
        parts: list[list[Tokens]] = []
        for given in inputs:
            if isinstance(given, str):
                parts.append(next(tokenized))
            else:
                assert isinstance(given, TokenIds)
                ids = given.ids[-limit:] if left else given.ids[:limit]
                parts.append([Tokens(ids, given.full_length, counted_all=True, special=0)])
        return parts

    def _check_sequences(
        self, model: Model, options: Options, parts: Sequence[Sequence[Tokens]], fields: Sequence[str]
    ) -> None:
        """What only the tokens tell. Raises InvalidRequest."""
        limit = model.manifest.max_length
        budget_bytes = self._batcher.memory_budget_bytes
        memory = self._batcher.memory_model(model.key)
        problems: list[Problem] = []
        for part, field in zip(parts, fields, strict=True):
            # Of a text in chunks the first one is the longest.
            tokens, length = part[0], len(part[0].ids)
            if length <= tokens.special:
                problems.append(NoTokens(field))
            elif tokens.full_length > limit and options.truncate == "refuse":
                at_least, chunks = not tokens.counted_all, options.chunks is not None
                problems.append(SequenceTooLong(field, tokens.full_length, limit, at_least, chunks))
            elif memory.batch_bytes(1, length) > budget_bytes:
                problems.append(OverMemoryBudget(field, length, memory.batch_bytes(1, length), budget_bytes))
        _raise(problems)


def _field(given: Input, name: str) -> str:
    return f"{name}.text" if isinstance(given, str) else f"{name}.token_ids"


def _check_ids(ids: Ids, field: str, vocab_size: int) -> list[Problem]:
    if not len(ids):
        return [NoTokens(field)]
    # As unsigned numbers the negative ones are the largest.
    unsigned = ids.view(np.uint64)
    if unsigned.max() < vocab_size:
        return []
    position = int(np.argmax(unsigned >= vocab_size))
    return [TokenOutOfRange(f"{field}.ids[{position}]", position, int(ids[position]), vocab_size)]


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        raise InvalidRequest(tuple(problems[:MAX_PROBLEMS]))
