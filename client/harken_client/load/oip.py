"""A load over the Open Inference Protocol: ModelInfer of token ids, sentence vectors out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from harken_client.connection import Connection
from harken_client.load.sender import Answer
from harken_client.retry import Deadline
from harken_client.values import Input

_METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Infer:
    """A ModelInferRequest, and what its answer does not tell: how much it encodes."""

    request: Any
    sequences: int
    tokens: int


class OipSender:
    """inference.GRPCInferenceService/ModelInfer. `connection` makes one attempt for each call."""

    def __init__(self, connection: Connection, model: str, version: int) -> None:
        self._connection = connection
        self._model = model
        self._version = version
        self._infer: Any = connection.channel.unary_unary(
            _METHOD,
            request_serializer=message_class("ModelInferRequest").SerializeToString,
            response_deserializer=message_class("ModelInferResponse").FromString,
        )

    def message(self, inputs: Sequence[Input]) -> Infer:
        """Rows padded at their end to the longest, with a mask where there is padding."""
        lengths = np.array([len(ids) for ids in inputs])
        mask = np.arange(lengths.max()) < lengths[:, np.newaxis]  # [batch, padded_length]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate([np.asarray(row, np.int64) for row in inputs])
        tensors = {"input_ids": ids} if mask.all() else {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        request = message_class("ModelInferRequest")(
            model_name=self._model,
            model_version=str(self._version),
            inputs=[{"name": name, "datatype": "INT64", "shape": mask.shape} for name in tensors],
            outputs=[{"name": "sentence_embedding"}],
            raw_input_contents=[tensor.astype("<i8").tobytes() for tensor in tensors.values()],
        )
        return Infer(request, len(lengths), int(lengths.sum()))

    async def send(self, message: Infer, deadline: Deadline) -> Answer:
        await self._connection.call(self._infer, message.request, deadline)
        return Answer(message.sequences, message.tokens)


@cache
def message_class(name: str) -> Any:
    """The class of a message of the protocol.

    In a pool of its own: a process that loads tritonclient or kserve too has these messages in the default
    pool, and there they must not be twice.
    """
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    content = resources.files("harken.oip").joinpath("inference.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        pool.Add(file)
    return pool
