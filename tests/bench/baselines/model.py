"""What both baselines need: a session of one thread, messages to arrays and back, a port for the bench."""

import json
import sys
from collections.abc import Sequence

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime as ort  # type: ignore[import-untyped]  # ships no types
from google.protobuf.message import Message
from harken.v1 import encoder_pb2 as pb

SERVICE = "harken.v1.Encoder"
OPTIONS = [("grpc.so_reuseport", 0), ("grpc.max_pending_requests", 1 << 20)]


def session(model: str, threads: int = 1) -> ort.InferenceSession:
    """A session on the CPU. Idle threads sleep: client and server share the cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A pattern is kept for each shape, and lengths that vary give thousands.
    options.enable_mem_pattern = False
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def padded(sequences: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[np.int64]]:
    """The graph's inputs: input_ids and attention_mask int64 [B, L], L the longest row; 1 is a real token."""
    longest = max(map(len, sequences))
    ids = np.zeros((len(sequences), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def encode(running: ort.InferenceSession, feed: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
    """Sentence vectors, float32 [B, H]."""
    vectors: npt.NDArray[np.float32] = running.run(["sentence_embedding"], feed)[0]
    return vectors


def token_ids(request: pb.EncodeRequest) -> list[int]:
    """The one sequence of a call."""
    return list(request.inputs[0].token_ids.ids)


def answer(vector: npt.NDArray[np.float32], tokens: int) -> pb.EncodeResponse:
    """The answer to a call of one sequence."""
    tensor = pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=vector.shape, data=vector.tobytes())
    return pb.EncodeResponse(results=[pb.Result(embedding=tensor, tokens=tokens)])


def handler(method: "grpc.RpcMethodHandler[pb.EncodeRequest, Message]") -> grpc.GenericRpcHandler:
    """The service with its one method."""
    return grpc.method_handlers_generic_handler(SERVICE, {"Encode": method})


def tell(**values: int) -> None:
    """A line of JSON for the bench."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
