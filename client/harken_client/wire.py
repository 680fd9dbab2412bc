"""Between the caller's values and the messages of harken.v1."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from harken.v1 import admin_pb2, debug_pb2
from harken.v1 import encoder_pb2 as pb
from numpy.typing import NDArray

from harken_client import values
from harken_client.checks import checked_count, half_a_character
from harken_client.errors import InternalError, from_status
from harken_client.source import Unreadable

_OUTPUTS: dict[str, pb.Output.ValueType] = {"sentence": pb.OUTPUT_SENTENCE, "tokens": pb.OUTPUT_TOKENS}
_TRUNCATIONS: dict[values.Truncate, pb.Truncation.ValueType] = {
    False: pb.TRUNCATION_REFUSE,
    True: pb.TRUNCATION_RIGHT,
    "right": pb.TRUNCATION_RIGHT,
    "left": pb.TRUNCATION_LEFT,
}
_POOLINGS: dict[str | None, pb.Pooling.ValueType] = {
    None: pb.POOLING_UNSPECIFIED,
    "mean": pb.POOLING_MEAN,
    "cls": pb.POOLING_CLS,
    "max": pb.POOLING_MAX,
}
_ELEMENT_TYPES: dict[str, pb.DataType.ValueType] = {
    "float32": pb.DATA_TYPE_FLOAT32,
    "float16": pb.DATA_TYPE_FLOAT16,
    "int8": pb.DATA_TYPE_INT8,
    "binary": pb.DATA_TYPE_BINARY,
}
_DTYPES: dict[int, np.dtype[Any]] = {
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_INT8: np.dtype(np.int8),
    pb.DATA_TYPE_BINARY: np.dtype(np.uint8),
}
_CHUNK_VECTORS: dict[str, pb.ChunkVectors.ValueType] = {
    "mean": pb.CHUNK_VECTORS_MEAN,
    "all": pb.CHUNK_VECTORS_ALL,
}
_PRIORITIES: dict[str, pb.Priority.ValueType] = {
    "interactive": pb.PRIORITY_INTERACTIVE,
    "bulk": pb.PRIORITY_BULK,
}
_PRIORITY_NAMES: dict[pb.Priority.ValueType, values.Priority] = {
    pb.PRIORITY_INTERACTIVE: "interactive",
    pb.PRIORITY_BULK: "bulk",
}
_OUTCOME_NAMES: dict[debug_pb2.MemberOutcome.ValueType, values.MemberOutcome] = {
    debug_pb2.MEMBER_OUTCOME_ANSWERED: "answered",
    debug_pb2.MEMBER_OUTCOME_FAILED: "failed",
    debug_pb2.MEMBER_OUTCOME_EXPIRED: "expired",
    debug_pb2.MEMBER_OUTCOME_CANCELLED: "cancelled",
    debug_pb2.MEMBER_OUTCOME_WAITS_AGAIN: "waits_again",
}
_MODEL_FIELDS = [field.name for field in fields(values.ModelInfo)]

_NS_PER_S = 1e9


def input_message(value: values.Input | Unreadable) -> pb.Input:
    """Raises TypeError if `value` is neither a text nor integers, ValueError if it cannot be written."""
    if isinstance(value, Unreadable):
        raise ValueError(value.why)
    if isinstance(value, str):
        try:
            return pb.Input(text=value)
        except UnicodeEncodeError as error:
            raise ValueError(half_a_character("a text", error)) from None
    if isinstance(value, bytes | bytearray):
        raise TypeError("an input is a str or a sequence of token ids, not bytes: decode it first")
    ids = value.tolist() if isinstance(value, np.ndarray) else value
    try:
        if isinstance(ids, Sequence):
            return pb.Input(token_ids=pb.TokenIds(ids=ids))
    except TypeError:
        pass  # a member that is no integer; told as any other wrong type
    raise TypeError(f"an input is a str or a sequence of token ids (integers), not {value!r:.60}")


def input_messages(name: str, inputs: Sequence[values.Input]) -> list[pb.Input]:
    """Raises as `placed_message` does; the place is NAME[index]."""
    return [placed_message(f"{name}[{index}]", value) for index, value in enumerate(inputs)]


def placed_message(place: str, value: values.Input) -> pb.Input:
    """Raises as `input_message` does, the place before the sentence."""
    try:
        return input_message(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{place}: {error}") from error


def options_message(
    output: values.Output,
    truncate: values.Truncate,
    priority: values.Priority,
    vector: values.VectorOptions,
) -> pb.EncodeOptions:
    """Raises ValueError for what the contract does not know."""
    pooling, element_type = vector.get("pooling"), vector.get("element_type", "float32")
    chunking = vector.get("chunking")
    for name, value, known in (
        ("output", output, _OUTPUTS),
        ("truncate", truncate, _TRUNCATIONS),
        ("priority", priority, _PRIORITIES),
        ("pooling", pooling, _POOLINGS),
        ("element_type", element_type, _ELEMENT_TYPES),
        ("chunking.vectors", chunking.vectors if chunking else "mean", _CHUNK_VECTORS),
    ):
        if value not in known:
            raise ValueError(f"{name} is one of {', '.join(map(repr, known))}, not {value!r}")
    dimensions = vector.get("dimensions")
    message = pb.EncodeOptions(
        output=_OUTPUTS[output],
        truncation=_TRUNCATIONS[truncate],
        priority=_PRIORITIES[priority],
        dimensions=0 if dimensions is None else checked_count("dimensions", dimensions, least=1),
        pooling=_POOLINGS[pooling],
        # Where it is not said, servers that do not know the field yet do the same.
        data_type=_ELEMENT_TYPES[element_type] if element_type != "float32" else pb.DATA_TYPE_UNSPECIFIED,
        token_offsets=vector.get("token_offsets", False),
        deterministic=vector.get("deterministic", False),
    )
    if chunking is not None:
        message.chunking.overlap_tokens = checked_count("chunking.overlap_tokens", chunking.overlap_tokens)
        message.chunking.vectors = _CHUNK_VECTORS[chunking.vectors]
    normalize = vector.get("normalize")
    if normalize is not None:
        message.normalize = normalize
    return message


def empty_vectors(info: values.ModelInfo, vector: values.VectorOptions) -> values.Vector:
    """What the vectors of no inputs are: the shape and the type of many, none of them."""
    data_type = _ELEMENT_TYPES[vector.get("element_type", "float32")]
    dimensions = vector.get("dimensions") or info.hidden_size
    return np.empty((0, dimensions // 8 if data_type == pb.DATA_TYPE_BINARY else dimensions), _DTYPES[data_type])


def encoding(result: pb.Result, model: str, version: int) -> values.Encoding:
    """The answer in one result. Raises the HarkenError that it carries instead, its index unset."""
    if result.WhichOneof("outcome") != "embedding":
        raise from_status(result.error)
    tensor = result.embedding
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None:
        raise InternalError(f"the server answered with data type {tensor.data_type}, unknown to this client")
    shape = list(tensor.shape)
    if tensor.data_type == pb.DATA_TYPE_BINARY:
        shape[-1] //= 8
    return values.Encoding(
        vector=np.frombuffer(tensor.data, dtype).reshape(shape),
        tokens=result.tokens,
        truncated=result.truncated,
        timings=timings(result.timings),
        model=model,
        version=version,
        scale=tensor.scale or 1.0,
        chunks=tuple(values.Chunk(chunk.start, chunk.end, chunk.tokens) for chunk in result.chunks),
        offsets=offsets(result.offsets) if result.HasField("offsets") else None,
    )


def timings(message: pb.Timings) -> values.Timings:
    return values.Timings(
        tokenize_s=message.tokenize_ns / _NS_PER_S,
        queue_s=message.queue_ns / _NS_PER_S,
        collate_s=message.collate_ns / _NS_PER_S,
        compute_s=message.compute_ns / _NS_PER_S,
        scatter_s=message.scatter_ns / _NS_PER_S,
        total_s=message.total_ns / _NS_PER_S,
    )


def offsets(message: pb.TokenOffsets) -> NDArray[np.uint32]:
    return np.stack([np.array(message.starts, np.uint32), np.array(message.ends, np.uint32)], axis=1)


def truncation(truncate: values.Truncate) -> pb.Truncation.ValueType:
    """Raises ValueError for what the contract does not know."""
    if truncate not in _TRUNCATIONS:
        raise ValueError(f"truncate is one of {', '.join(map(repr, _TRUNCATIONS))}, not {truncate!r}")
    return _TRUNCATIONS[truncate]


def model_info(message: pb.ModelInfo) -> values.ModelInfo:
    return values.ModelInfo(**{name: getattr(message, name) for name in _MODEL_FIELDS})


def setting(message: admin_pb2.Setting) -> values.Setting:
    return values.Setting(message.name, message.value, message.is_default, message.changeable)


def batch(message: debug_pb2.Batch) -> values.Batch:
    """Raises InternalError for a priority or an outcome that this client does not know."""
    return values.Batch(
        number=message.number,
        age_s=message.age_ns / _NS_PER_S,
        model=message.model,
        version=message.version,
        lane=message.lane,
        closed_by=message.closed_by,
        why=message.why,
        sequences=message.sequences,
        real_tokens=message.real_tokens,
        padded_length=message.padded_length,
        predicted_s=message.predicted_ns / _NS_PER_S,
        alone_s=message.alone_ns / _NS_PER_S,
        compute_s=message.compute_ns / _NS_PER_S,
        lane_s=message.lane_ns / _NS_PER_S,
        split=message.split,
        answered=message.answered,
        failed=message.failed,
        left=message.left,
        waits_again=message.waits_again,
        members=tuple(_member(member) for member in message.members),
    )


def _member(message: debug_pb2.BatchMember) -> values.BatchMember:
    try:
        return values.BatchMember(
            length=message.length,
            waited_s=message.waited_ns / _NS_PER_S,
            priority=_PRIORITY_NAMES[message.priority],
            flow=message.flow,
            outcome=_OUTCOME_NAMES[message.outcome],
        )
    except KeyError as error:
        raise InternalError(f"the server answered with a value unknown to this client: {error}") from None
