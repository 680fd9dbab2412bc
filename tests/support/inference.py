"""Calls of the Open Inference Protocol over gRPC, and what their answers hold."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from harken.oip import inference_pb2 as pb
from harken.oip import inference_pb2_grpc
from harken_client import Client

from support.calls import Refused, refused
from support.server import RunningServer

MODEL = "all-MiniLM-L6-v2"
Message = pb.ModelInferRequest
Tensor = Message.InferInputTensor
SENTENCE = Message.InferRequestedOutputTensor(name="sentence_embedding")


@contextmanager
def oip(server: RunningServer) -> Iterator[inference_pb2_grpc.GRPCInferenceServiceStub]:
    """The service."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.target, options) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def infer(server: RunningServer, request: pb.ModelInferRequest) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an answer, by name."""
    with oip(server) as service:
        return arrays(service.ModelInfer(request, timeout=30))


def arrays(response: pb.ModelInferResponse) -> dict[str, npt.NDArray[Any]]:
    """Those of a response, by name."""
    dtypes = {"FP32": "<f4", "FP16": "<f2"}
    assert len(response.outputs) == len(response.raw_output_contents)
    return {
        output.name: np.frombuffer(raw, dtypes[output.datatype]).reshape(output.shape)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """int64 ids and mask [rows, longest]."""
    length = max(map(len, rows))
    ids = np.array([[*row, *[0] * (length - len(row))] for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int64)
    return ids, mask


def raw(name: str, values: npt.NDArray[Any]) -> tuple[Tensor, bytes]:
    """An input whose contents are raw, and the contents."""
    datatype = {"int64": "INT64", "int32": "INT32"}[str(values.dtype)]
    return Tensor(name=name, datatype=datatype, shape=values.shape), values.tobytes()


def asks(*tensors: tuple[Tensor, bytes], outputs: Sequence[str] = (), **fields: Any) -> pb.ModelInferRequest:
    """A request of raw inputs."""
    return pb.ModelInferRequest(
        inputs=[tensor for tensor, _ in tensors],
        raw_input_contents=[content for _, content in tensors],
        outputs=[Message.InferRequestedOutputTensor(name=name) for name in outputs],
        **fields,
    )


def text_tensor(*texts: str) -> Tensor:
    """Texts, typed."""
    contents = pb.InferTensorContents(bytes_contents=[text.encode() for text in texts])
    return Tensor(name="text", datatype="BYTES", shape=[len(texts)], contents=contents)


def typed_ids(*rows: list[int], shape: Sequence[int] | None = None, datatype: str = "INT64") -> Tensor:
    """Token ids, typed."""
    flat = [token for row in rows for token in row]
    contents = pb.InferTensorContents(int64_contents=flat)
    if datatype != "INT64":
        contents = pb.InferTensorContents(int_contents=flat)
    return Tensor(name="input_ids", datatype=datatype, shape=shape or [len(rows), len(rows[0])], contents=contents)


def own(server: RunningServer, rows: Sequence[Sequence[int]] | Sequence[str], output: Any = "sentence") -> list[Any]:
    """What harken's own client gets."""
    with Client(server.target) as client:
        return list(client.encode([row if isinstance(row, str) else list(row) for row in rows], output=output))


def refusal_of(method: Any, request: Any) -> Refused:
    """How a call is refused."""
    with pytest.raises(grpc.RpcError) as error:
        method(request, timeout=30)
    return refused(error.value)


def refusal(server: RunningServer, request: pb.ModelInferRequest) -> Refused:
    """How a request is refused."""
    with oip(server) as service:
        return refusal_of(service.ModelInfer, request)
