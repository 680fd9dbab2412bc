"""POST /studio/tokens: how a model reads texts, and what of them it never sees. Nothing is computed."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.types import ASGIApp

from harken_server.errors import AnswerTooLarge, BadValue, InvalidRequest, Missing, TooMany
from harken_server.models.repository import Model
from harken_server.models.tokenizer import Tokens
from harken_server.rpc.calls import Call
from harken_server.rpc.fields import without_kinds
from harken_server.rpc.status import Answer
from harken_server.rpc.web.exchange import Exchanges, Reply, parse_json, shown, to_json, unknown_names
from harken_server.rpc.web.inputs import checked_text
from harken_server.scheduling.waiting import Priority
from harken_server.values import Options

_FIELDS: Final = ("texts", "model")
# In JSON: an id, two places, a token of some ten characters, and what stands between them.
_TOKEN_BYTES: Final = 40


class TokensOf:
    """The route, and its form of errors."""

    def __init__(self, exchanges: Exchanges) -> None:
        self._exchanges: Final = exchanges

    async def tokens(self, request: Request) -> ASGIApp:
        """POST /studio/tokens with `texts`, and `model` where several are served."""

        async def work(call: Call, body: bytes) -> Reply:
            name, texts = self._asked(parse_json(body))
            service = self._exchanges.service
            model = service.find(name, 0)
            names = [f"texts[{index}]" for index in range(len(texts))]
            inputs = [checked_text(text, name) for text, name in zip(texts, names, strict=True)]
            try:
                read = await service.tokenize(model, _options(model, call), inputs, names, call.deadline)
            except InvalidRequest as invalid:
                raise without_kinds(invalid) from None
            size_bytes = sum(len(tokens.ids) for tokens in read) * _TOKEN_BYTES
            if size_bytes > service.limits.answer_bytes:
                raise InvalidRequest((AnswerTooLarge("texts", size_bytes, service.limits.answer_bytes),))
            return Reply(to_json(await _content(model, read)))

        return await self._exchanges.answer(request, "POST /studio/tokens", self, work)

    def _asked(self, given: dict[str, Any]) -> tuple[str, list[object]]:
        """The model's name, and the texts. Raises InvalidRequest."""
        problems = unknown_names(given, _FIELDS)
        name, texts, limit = given.get("model", ""), given.get("texts"), self._exchanges.service.limits.inputs
        if not isinstance(name, str):
            problems.append(BadValue("model", shown(name), "the name of a model"))
        if not isinstance(texts, list):
            problems.append(BadValue("texts", shown(texts), "a list of texts"))
        elif len(texts) > limit:
            problems.append(TooMany("texts", len(texts), limit))
        elif not texts:
            problems.append(Missing("texts"))
        elif not problems:
            return str(name), texts
        raise InvalidRequest(tuple(problems))

    def error(self, status: int, answer: Answer) -> tuple[int, dict[str, Any]]:
        """See Form."""
        return status, {"error": answer.status.message, "reason": answer.reason}


def _options(model: Model, call: Call) -> Options:
    return Options(
        model=model.manifest.name,
        version=model.manifest.version,
        outputs=(),
        truncate="right",
        priority=Priority.INTERACTIVE,
        tenant=call.tenant,
        account=call.account,
        flow=call.number,
        trace=call.trace,
        places=True,
    )


async def _content(model: Model, read: Sequence[Tokens]) -> dict[str, Any]:
    manifest, tokenizer = model.manifest, model.tokenizer
    assert tokenizer is not None, "else no text was accepted"
    texts = []
    for tokens in read:
        assert tokens.places is not None, "they were asked for"
        texts.append(
            {
                "ids": tokens.ids,
                "tokens": tokenizer.names(tokens.ids),
                # In characters; 0 and 0 of special tokens.
                "places": tokens.places,
                "length": tokens.full_length,
                "counted_all": tokens.counted_all,
            }
        )
        # A thousand long texts take tens of milliseconds, in which others' requests must not wait.
        await asyncio.sleep(0)
    return {"model": manifest.name, "version": manifest.version, "max_length": manifest.max_length, "texts": texts}
