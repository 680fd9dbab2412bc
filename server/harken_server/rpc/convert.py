"""Messages of harken.v1 to the service's values, and back."""

from typing import Final

import numpy as np
import structlog
from harken.v1 import encoder_pb2

from harken_server.errors import InvalidRequest, NoContent, Problem, Refusal, TooManyBytes, UnknownValue
from harken_server.execution.engine import SENTENCE, TOKENS
from harken_server.models.repository import Model
from harken_server.rpc.calls import Call
from harken_server.rpc.status import answer
from harken_server.scheduling.waiting import Priority
from harken_server.service import Answer, Input, Options, TokenIds, Truncate

log = structlog.get_logger()

_MOST_TENANT_BYTES: Final = 64

_OUTPUTS: Final = {
    encoder_pb2.OUTPUT_UNSPECIFIED: SENTENCE,
    encoder_pb2.OUTPUT_SENTENCE: SENTENCE,
    encoder_pb2.OUTPUT_TOKENS: TOKENS,
}
_TRUNCATE: Final[dict[int, Truncate]] = {
    encoder_pb2.TRUNCATION_UNSPECIFIED: "refuse",
    encoder_pb2.TRUNCATION_REFUSE: "refuse",
    encoder_pb2.TRUNCATION_RIGHT: "right",
}
_PRIORITIES: Final = {
    encoder_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    encoder_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    encoder_pb2.PRIORITY_BULK: Priority.BULK,
}


def options_of(message: encoder_pb2.EncodeRequest | encoder_pb2.StreamOpen, flow: object) -> Options:
    """What holds for the whole call. Raises InvalidRequest."""
    problems: list[Problem] = []
    options = message.options
    for name, known, enum in (
        ("output", _OUTPUTS, encoder_pb2.Output),
        ("truncation", _TRUNCATE, encoder_pb2.Truncation),
        ("priority", _PRIORITIES, encoder_pb2.Priority),
    ):
        value = getattr(options, name)
        if value not in known:
            problems.append(UnknownValue(f"options.{name}", value, tuple(enum.keys())))
    tenant_bytes = len(options.tenant.encode())
    if tenant_bytes > _MOST_TENANT_BYTES:
        problems.append(TooManyBytes("options.tenant", tenant_bytes, _MOST_TENANT_BYTES))
    if problems:
        raise InvalidRequest(tuple(problems))
    return Options(
        model=message.model,
        version=message.version,
        outputs=(_OUTPUTS[options.output],),
        truncate=_TRUNCATE[options.truncation],
        priority=_PRIORITIES[options.priority],
        tenant=options.tenant,
        flow=flow,
    )


def input_of(message: encoder_pb2.Input, name: str, longest: int) -> Input:
    """One input as a value; `name` is how an error calls it. At most `longest` token ids are kept, all are counted."""
    match message.WhichOneof("content"):
        case "text":
            return message.text
        case "token_ids":
            given = message.token_ids.ids
            # A message may hold millions, and none beyond the longest model's length is ever computed.
            return TokenIds(np.array(given[:longest], np.int64), len(given))
        case _:
            return NoContent(name)


def set_result(result: encoder_pb2.Result, answered: Answer, call: Call) -> None:
    """Write an answer into its message. What failed has no timings: some of its stages never were."""
    result.tokens = answered.tokens
    result.truncated = answered.truncated
    if isinstance(answered.outcome, Refusal):
        refused = answer(answered.outcome, call.request_id)
        log.error("input failed", reason=refused.reason, model=call.model, request_id=call.request_id)
        result.error.CopyFrom(refused.status)
        return
    received, queued, taken, collated, computed, scattered = answered.stamps.moments_ns()
    timings = result.timings
    timings.tokenize_ns = queued - received
    timings.queue_ns = taken - queued
    timings.collate_ns = collated - taken
    timings.compute_ns = computed - collated
    timings.scatter_ns = scattered - computed
    timings.total_ns = scattered - received
    embedding = result.embedding
    embedding.data_type = encoder_pb2.DATA_TYPE_FLOAT32
    (vectors,) = answered.outcome.values()
    embedding.shape.extend(vectors.shape)
    embedding.data = vectors.astype("<f4", copy=False).tobytes()


def info_of(model: Model, default_version: int) -> encoder_pb2.ModelInfo:
    """A model version as a message."""
    manifest = model.manifest
    return encoder_pb2.ModelInfo(
        name=manifest.name,
        version=manifest.version,
        is_default=manifest.version == default_version,
        hidden_size=manifest.hidden_size,
        max_length=manifest.max_length,
        vocab_size=manifest.vocab_size,
        layers=manifest.layers,
        heads=manifest.heads,
        accepts_text=model.tokenizer is not None,
        precision=manifest.precision,
        device=model.device,
        bundle_sha256=model.sha256,
        weights_source=manifest.weights.source,
        weights_license=manifest.weights.license,
    )
