"""Messages of harken.v1 to the service's values, and back."""

from collections.abc import Callable, Iterator
from typing import Final

import grpc
import numpy as np
import numpy.typing as npt
import structlog
from harken.v1 import encoder_pb2

from harken_server.errors import (
    BadValue,
    InvalidRequest,
    NoContent,
    NotTogether,
    Problem,
    Refusal,
    UnknownValue,
)
from harken_server.execution.engine import SENTENCE, TOKENS
from harken_server.execution.finishing import Finish, Pooling
from harken_server.execution.pending import Stamps
from harken_server.models.repository import Model
from harken_server.rpc.calls import Call
from harken_server.rpc.status import answer
from harken_server.scheduling.waiting import Priority
from harken_server.values import Answer, Chunks, Input, Options, TokenIds, Truncate

log = structlog.get_logger()

_OUTPUTS: Final = {
    encoder_pb2.OUTPUT_UNSPECIFIED: SENTENCE,
    encoder_pb2.OUTPUT_SENTENCE: SENTENCE,
    encoder_pb2.OUTPUT_TOKENS: TOKENS,
}
_TRUNCATE: Final[dict[int, Truncate]] = {
    encoder_pb2.TRUNCATION_UNSPECIFIED: "refuse",
    encoder_pb2.TRUNCATION_REFUSE: "refuse",
    encoder_pb2.TRUNCATION_RIGHT: "right",
    encoder_pb2.TRUNCATION_LEFT: "left",
}
_POOLINGS: Final[dict[int, Pooling | None]] = {
    encoder_pb2.POOLING_UNSPECIFIED: None,
    encoder_pb2.POOLING_MEAN: "mean",
    encoder_pb2.POOLING_CLS: "cls",
    encoder_pb2.POOLING_MAX: "max",
}
_CHUNKS: Final[dict[int, Chunks]] = {
    encoder_pb2.CHUNK_VECTORS_UNSPECIFIED: "mean",
    encoder_pb2.CHUNK_VECTORS_MEAN: "mean",
    encoder_pb2.CHUNK_VECTORS_ALL: "all",
}
_PRIORITIES: Final = {
    encoder_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    encoder_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    encoder_pb2.PRIORITY_BULK: Priority.BULK,
}


def options_of(
    message: encoder_pb2.EncodeRequest | encoder_pb2.SimilarityRequest | encoder_pb2.StreamOpen, call: Call
) -> Options:
    """What holds for the whole call. Raises InvalidRequest."""
    problems: list[Problem] = []
    options = message.options
    for name, known, enum in (
        ("output", _OUTPUTS, encoder_pb2.Output),
        ("truncation", _TRUNCATE, encoder_pb2.Truncation),
        ("priority", _PRIORITIES, encoder_pb2.Priority),
        ("pooling", _POOLINGS, encoder_pb2.Pooling),
        ("data_type", ELEMENTS, encoder_pb2.DataType),
    ):
        value = getattr(options, name)
        if value not in known:
            problems.append(UnknownValue(f"options.{name}", value, tuple(enum.keys())))
    if options.output == encoder_pb2.OUTPUT_TOKENS:
        of_sentences = [name for name in ("dimensions", "normalize", "pooling", "data_type") if name in _set(options)]
        problems += [NotTogether(f"options.{name}", "options.output OUTPUT_TOKENS") for name in of_sentences]
    problems += _chunking_problems(options)
    if problems:
        raise InvalidRequest(tuple(problems))
    return Options(
        model=message.model,
        version=message.version,
        outputs=(_OUTPUTS[options.output],),
        truncate=_TRUNCATE[options.truncation],
        priority=_PRIORITIES[options.priority],
        tenant=call.tenant,
        account=call.account,
        flow=call.number,
        trace=call.trace,
        finish=Finish(
            options.normalize if options.HasField("normalize") else None,
            options.dimensions or None,
            _POOLINGS[options.pooling],
        ),
        chunks=_CHUNKS[options.chunking.vectors] if options.HasField("chunking") else None,
        overlap_tokens=options.chunking.overlap_tokens,
        places=options.token_offsets,
        deterministic=options.deterministic,
    )


def _chunking_problems(options: encoder_pb2.EncodeOptions) -> Iterator[Problem]:
    if not options.HasField("chunking"):
        return
    if options.chunking.vectors not in _CHUNKS:
        known = tuple(encoder_pb2.ChunkVectors.keys())
        yield UnknownValue("options.chunking.vectors", options.chunking.vectors, known)
    if options.truncation in (encoder_pb2.TRUNCATION_RIGHT, encoder_pb2.TRUNCATION_LEFT):
        yield NotTogether("options.chunking", f"options.truncation {encoder_pb2.Truncation.Name(options.truncation)}")
    if options.output == encoder_pb2.OUTPUT_TOKENS:
        yield NotTogether("options.chunking", "options.output OUTPUT_TOKENS")
    if options.token_offsets:
        yield NotTogether("options.token_offsets", "options.chunking")


def check_options(options: Options, data_type: int, model: Model) -> None:
    """Raises InvalidRequest if this model gives no such vectors, or takes no such chunks."""
    hidden_size = model.manifest.hidden_size
    dimensions = options.finish.dimensions or hidden_size
    if dimensions > hidden_size:
        wanted = f"from 1 to the model's {hidden_size}"
        raise InvalidRequest((BadValue("options.dimensions", str(dimensions), wanted),))
    if data_type == encoder_pb2.DATA_TYPE_BINARY and dimensions % 8:
        wanted = f"possible with {dimensions} dimensions, which 8 does not divide"
        raise InvalidRequest((BadValue("options.data_type", "DATA_TYPE_BINARY", wanted),))
    if model.tokenizer is not None and options.overlap_tokens >= model.tokenizer.most_text_tokens:
        wanted = f"from 0 to {model.tokenizer.most_text_tokens - 1}: less than a chunk"
        raise InvalidRequest((BadValue("options.chunking.overlap_tokens", str(options.overlap_tokens), wanted),))


def _set(options: encoder_pb2.EncodeOptions) -> set[str]:
    return {field.name for field, _ in options.ListFields()}


def input_of(message: encoder_pb2.Input, name: str, longest: int, truncate: Truncate) -> Input:
    """One input as a value; `name` is how an error calls it. At most `longest` token ids are kept, all are counted."""
    match message.WhichOneof("content"):
        case "text":
            return message.text
        case "token_ids":
            given = message.token_ids.ids
            # A message may hold millions, and none beyond the longest model's length is ever computed.
            kept = given[-longest:] if truncate == "left" else given[:longest]
            return TokenIds(np.array(kept, np.int64), len(given))
        case _:
            return NoContent(name)


def set_result(result: encoder_pb2.Result, answered: Answer, call: Call, data_type: int) -> None:
    """Write an answer into its message. What failed has no timings: some of its stages never were."""
    result.tokens = answered.tokens
    result.truncated = answered.truncated
    if isinstance(answered.outcome, Refusal):
        refused = answer(answered.outcome, call.request_id)
        if refused.code is grpc.StatusCode.INTERNAL:
            log.error("input failed", reason=refused.reason, model=call.model, **call.names)
        result.error.CopyFrom(refused.status)
        return
    set_timings(result.timings, answered.stamps)
    (vectors,) = answered.outcome.values()
    ELEMENTS[data_type](result.embedding, vectors)
    result.embedding.shape.extend(vectors.shape)
    for chunk in answered.chunks:
        result.chunks.add(start=chunk.start, end=chunk.end, tokens=chunk.tokens)
    if answered.places is not None:
        result.offsets.starts.extend(answered.places[:, 0].tolist())
        result.offsets.ends.extend(answered.places[:, 1].tolist())


def set_timings(timings: encoder_pb2.Timings, stamps: Stamps) -> None:
    """Write the stages of a sequence that was computed."""
    received, queued, taken, collated, computed, scattered = stamps.moments_ns()
    timings.tokenize_ns = queued - received
    timings.queue_ns = taken - queued
    timings.collate_ns = collated - taken
    timings.compute_ns = computed - collated
    timings.scatter_ns = scattered - computed
    timings.total_ns = scattered - received


def set_float32(tensor: encoder_pb2.Tensor, array: npt.NDArray[np.float32]) -> None:
    """Write an array, and its shape."""
    _float32(tensor, array)
    tensor.shape.extend(array.shape)


def truncate_of(field: str, value: int) -> Truncate:
    """Raises InvalidRequest if it is none that is known."""
    if value not in _TRUNCATE:
        raise InvalidRequest((UnknownValue(field, value, tuple(encoder_pb2.Truncation.keys())),))
    return _TRUNCATE[value]


def _float32(tensor: encoder_pb2.Tensor, vectors: npt.NDArray[np.float32]) -> None:
    tensor.data_type = encoder_pb2.DATA_TYPE_FLOAT32
    tensor.data = vectors.astype("<f4", copy=False).tobytes()


def _float16(tensor: encoder_pb2.Tensor, vectors: npt.NDArray[np.float32]) -> None:
    tensor.data_type = encoder_pb2.DATA_TYPE_FLOAT16
    tensor.data = vectors.astype("<f2").tobytes()


def _int8(tensor: encoder_pb2.Tensor, vectors: npt.NDArray[np.float32]) -> None:
    scale = float(np.abs(vectors).max()) / 127 or 1.0
    tensor.data_type = encoder_pb2.DATA_TYPE_INT8
    tensor.scale = scale
    tensor.data = np.rint(vectors / scale).astype(np.int8).tobytes()


def _binary(tensor: encoder_pb2.Tensor, vectors: npt.NDArray[np.float32]) -> None:
    tensor.data_type = encoder_pb2.DATA_TYPE_BINARY
    tensor.data = np.packbits(vectors > 0).tobytes()


ELEMENTS: Final[dict[int, Callable[[encoder_pb2.Tensor, npt.NDArray[np.float32]], None]]] = {
    encoder_pb2.DATA_TYPE_UNSPECIFIED: _float32,
    encoder_pb2.DATA_TYPE_FLOAT32: _float32,
    encoder_pb2.DATA_TYPE_FLOAT16: _float16,
    encoder_pb2.DATA_TYPE_INT8: _int8,
    encoder_pb2.DATA_TYPE_BINARY: _binary,
}
"""How vectors are written, whose shape stands beside them."""


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
        attends=manifest.HasField("attention"),
    )
