"""Requests that are wrong, drawn from a seed: of protobuf, tensors, text, JSON, HTTP heads, and frames of HTTP/2."""

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import numpy as np
from harken.oip import inference_pb2 as oip
from harken.v1 import debug_pb2
from harken.v1 import encoder_pb2 as pb

ENCODER: Final = "/harken.v1.Encoder/"
INFERENCE: Final = "/inference.GRPCInferenceService/"
STREAMS: Final = (f"{ENCODER}EncodeStream", f"{INFERENCE}ModelStreamInfer")

_Tensor = oip.ModelInferRequest.InferInputTensor
_IDS: Final = np.array([[5, 6, 7], [8, 9, 0]], "<i8")


def _ids(*ids: int) -> pb.Input:
    return pb.Input(token_ids=pb.TokenIds(ids=ids))


_ENCODES: Final = (
    pb.EncodeRequest(model="tiny", version=1, inputs=[_ids(5, 6, 7), pb.Input(text="a text")]),
    pb.EncodeRequest(
        inputs=[pb.Input(text="a b " * 90)],
        options=pb.EncodeOptions(
            chunking=pb.Chunking(overlap_tokens=2, vectors=pb.CHUNK_VECTORS_ALL), data_type=pb.DATA_TYPE_INT8,
            normalize=False, dimensions=8, pooling=pb.POOLING_MAX,
        ),
    ),
    pb.EncodeRequest(
        inputs=[_ids(5), pb.Input(text="a b")],
        options=pb.EncodeOptions(
            output=pb.OUTPUT_TOKENS, truncation=pb.TRUNCATION_LEFT, priority=pb.PRIORITY_BULK, token_offsets=True,
            deterministic=True,
        ),
    ),
)  # fmt: skip
_INFERS: Final = (
    oip.ModelInferRequest(
        model_name="tiny", model_version="1", id="x",
        parameters={"priority": oip.InferParameter(int64_param=2), "truncate": oip.InferParameter(bool_param=True)},
        inputs=[_Tensor(name=name, datatype="INT64", shape=[2, 3]) for name in ("input_ids", "attention_mask")],
        outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="sentence_embedding")],
        raw_input_contents=[_IDS.tobytes(), (_IDS > 0).astype("<i8").tobytes()],
    ),
    oip.ModelInferRequest(
        inputs=[
            _Tensor(
                name="text", datatype="BYTES", shape=[1, 1], contents=oip.InferTensorContents(bytes_contents=[b"a"])
            )
        ],
    ),
)  # fmt: skip
_UNARY: Final[Sequence[tuple[str, Any]]] = (
    *((f"{ENCODER}Encode", message) for message in _ENCODES),
    (f"{ENCODER}Similarity", pb.SimilarityRequest(query=_ids(5), candidates=[_ids(6), pb.Input(text="b")], top_k=1)),
    (f"{ENCODER}ListModels", pb.ListModelsRequest()),
    (f"{ENCODER}GetModel", pb.GetModelRequest(model="tiny", version=1)),
    ("/harken.v1.Debug/ExplainBatches", debug_pb2.ExplainBatchesRequest(last=3)),
    *((f"{INFERENCE}ModelInfer", message) for message in _INFERS),
    (f"{INFERENCE}ServerLive", oip.ServerLiveRequest()),
    (f"{INFERENCE}ServerReady", oip.ServerReadyRequest()),
    (f"{INFERENCE}ServerMetadata", oip.ServerMetadataRequest()),
    (f"{INFERENCE}ModelReady", oip.ModelReadyRequest(name="tiny", version="1")),
    (f"{INFERENCE}ModelMetadata", oip.ModelMetadataRequest(name="tiny")),
    (f"{INFERENCE}ModelConfig", oip.ModelConfigRequest(name="tiny")),
    (f"{INFERENCE}ModelStatistics", oip.ModelStatisticsRequest(name="tiny", version="1")),
    (f"{INFERENCE}RepositoryIndex", oip.RepositoryIndexRequest(ready=True)),
    (f"{INFERENCE}RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="tiny")),
    (f"{INFERENCE}RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="tiny")),
    (f"{ENCODER}Absent", pb.ListModelsRequest()),
)
_STREAMED: Final[tuple[Sequence[Any], Sequence[Any]]] = (
    (
        pb.EncodeStreamRequest(open=pb.StreamOpen(model="tiny", version=1)),
        pb.EncodeStreamRequest(input=pb.StreamInput(id="a", input=_ids(5, 6))),
        pb.EncodeStreamRequest(input=pb.StreamInput(id="b", input=pb.Input(text="a text"))),
    ),
    _INFERS,
)

_DATATYPES: Final = ("INT64", "INT32", "UINT64", "FP64", "FP32", "FP16", "BF16", "BOOL", "BYTES", "", "int64")
_FLOATS: Final = (float("nan"), float("inf"), -float("inf"), 6e4, -0.0)
_PARAMETERS: Final = ("priority", "timeout", "truncate", "output_datatype", "deterministic", "other")

JSON_VALUES: Final = (
    b"NaN", b"-Infinity", b"1e999", b"-1e999", b"1.5", b"9" * 500, b"18446744073709551616", b"-0", b"null", b"true",
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff\xfe"', b'"\\u0000"', b'""', b'"a', b"[" * 3000, b"[" * 900 + b"]" * 900,
    b'{"a":' * 900 + b"1" + b"}" * 900, b"{}", b"[]", b"[[]]", b"[1, 1.0]", b'["a", 1]', b"[1e3]", b"[5000]", b"[-1]",
    b"'a'", b"/* */ 1", b"1,", b"[null]", b'{"a": 1, "a": 2}', b"[" + b"1," * 5000 + b"1]", b'["' + b"\xf0\x9f" + b'"]',
)  # fmt: skip
_TENSOR: Final = b'{"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [5, 6]}'
_TEMPLATES: Final = (
    ("/v1/embeddings", b'{"model": "tiny", "input": %s}'),
    ("/v1/embeddings", b'{"input": "a", "input": [5], "dimensions": %s}'),
    ("/v1/embeddings", b'{"input": "a", "encoding_format": %s}'),
    ("/v1/embeddings", b"%s"),
    ("/embed", b'{"inputs": %s, "truncate": true}'),
    ("/embed", b'{"inputs": ["a"], "normalize": %s, "truncation_direction": "left"}'),
    ("/embed", b'{"inputs": "a", "truncation_direction": %s}'),
    ("/v2/models/tiny/infer", b'{"inputs": [' + _TENSOR.replace(b"[5, 6]", b"%s") + b"]}"),
    ("/v2/models/tiny/infer", b'{"inputs": [' + _TENSOR.replace(b"[1, 2]", b"%s") + b"]}"),
    ("/v2/models/tiny/infer", b'{"inputs": [' + _TENSOR + b'], "parameters": {"timeout": %s, "priority": 1}}'),
    ("/v2/models/tiny/infer", b'{"inputs": [' + _TENSOR + b'], "outputs": [{"name": %s}]}'),
    ("/v2/models/tiny/infer", b'{"id": %s, "inputs": [' + _TENSOR + b"]}"),
    ("/v2/models/tiny/infer", b'{"inputs": %s}'),
    ("/v2/repository/index", b'{"ready": %s}'),
    ("/v2/repository/models/tiny/unload", b'{"parameters": %s}'),
)

_ROWS: Final = [row for row in range(0, 0x110000, 16) if not 0xD800 <= row < 0xE000]
_MARKS: Final = (
    "\u202e\u2066", "e\u0301\u0323\u0489" * 9, "\x00\x07\x1b[2J", "\ufeff", "\u200d\U0001f469", "\ufffe\uffff"
)  # fmt: skip


class Malformed:
    """Draws one after the other. Among so many `texts` each row of 16 code points occurs: every block has one."""

    def __init__(self, random: Random, texts: int) -> None:
        self._random: Final = random
        self._rows: Final = random.sample(_ROWS, len(_ROWS))
        self._each: Final = -(-len(_ROWS) // max(texts, 1))
        self._texts = 0

    def unary(self) -> tuple[str, bytes]:
        """A method, and the bytes of a message that is damaged."""
        method, message = self._random.choice(_UNARY)
        return method, self._damaged(message.SerializeToString())

    def streamed(self) -> tuple[str, list[bytes]]:
        """A method, and messages of a stream, some of them damaged."""
        which = self._random.randrange(len(STREAMS))
        raws = [self._random.choice(_STREAMED[which]).SerializeToString() for _ in range(self._random.randrange(1, 8))]
        return STREAMS[which], [self._damaged(raw) if self._random.random() < 0.5 else raw for raw in raws]

    def tensors(self) -> bytes:
        """A ModelInferRequest whose tensors disagree with what is said of them, or have floats where ids belong."""
        draw = self._random
        shape = draw.choice([[], [1], [2, 3], [3, 2], [-1, 3], [0, 3], [2, 3, 1], [1 << 40, 1 << 40], [1, 6]])
        floats = [draw.choice(_FLOATS) for _ in range(draw.choice([1, 6]))]
        contents = oip.InferTensorContents(
            int64_contents=draw.choice([[], [5] * 6, [-1] * 6, [1 << 62] * 6]), fp32_contents=floats,
            fp64_contents=floats, bool_contents=[True], bytes_contents=draw.choice([[], [b"\xff"], [b"a"] * 6]),
        )  # fmt: skip
        raws = [
            np.array(floats * 6, draw.choice(["<f4", "<f8", "<f2"])).tobytes(), _IDS.tobytes(), _IDS.tobytes()[:-1],
            b"", struct.pack("<I", 1 << 31) + b"a", draw.randbytes(24),
        ]  # fmt: skip
        names = draw.choices(["input_ids", "attention_mask", "text", "token_type_ids"], k=draw.randrange(1, 4))
        is_raw = draw.random() < 0.6
        return oip.ModelInferRequest(
            model_name="tiny",
            parameters={draw.choice(_PARAMETERS): oip.InferParameter(double_param=draw.choice(floats))}
            if draw.random() < 0.2
            else {},
            inputs=[
                _Tensor(
                    name=name,
                    datatype=draw.choice(_DATATYPES),
                    shape=shape if draw.random() < 0.7 else [2, 3],
                    contents=None if is_raw else contents,
                )
                for name in names
            ],
            raw_input_contents=draw.choices(raws, k=draw.choice([len(names), len(names), 1])) if is_raw else [],
        ).SerializeToString()

    def text(self) -> str:
        """Characters of rows that no text had before, assigned or not, and marks that change how others are read."""
        start = self._texts * self._each
        self._texts += 1
        rows = [self._rows[number % len(_ROWS)] for number in range(start, start + self._each)]
        characters = [chr(row + self._random.randrange(16)) for row in rows]
        return "".join([*characters, self._random.choice(_MARKS)])

    def json(self) -> tuple[str, bytes]:
        """A path, and a body."""
        path, template = self._random.choice(_TEMPLATES)
        body = template.replace(b"%s", self._random.choice(JSON_VALUES))
        return path, self._damaged(body) if self._random.random() < 0.2 else body

    def _damaged(self, raw: bytes) -> bytes:
        for _ in range(self._random.randrange(1, 4)):
            raw = self._random.choice(_DAMAGES)(raw, self._random)
        return raw


_Damage = Callable[[bytes, Random], bytes]


def _at(raw: bytes, draw: Random) -> int:
    return draw.randrange(len(raw) + 1)


def _flipped(raw: bytes, draw: Random) -> bytes:
    changed = bytearray(raw or b"\0")
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(raw: bytes, draw: Random) -> bytes:
    return raw[: _at(raw, draw)]


def _longer(raw: bytes, draw: Random) -> bytes:
    """A byte that may be a length says too much."""
    where = _at(raw, draw)
    return raw[:where] + draw.choice([b"\x7f", b"\xff\xff\x03", b"\xff\xff\xff\xff\x07"]) + raw[where + 1 :]


def _varint(raw: bytes, draw: Random) -> bytes:
    where = _at(raw, draw)
    return raw[:where] + b"\xff" * draw.choice([4, 9, 10, 40]) + b"\x01" + raw[where:]


def _nested(raw: bytes, draw: Random) -> bytes:
    """Deeper than any message is, in the fields that hold messages, or in groups."""
    tag = draw.choice([b"\x1a", b"\x22", b"\x2a", b"\x0a"])
    raw = raw[:100]
    for _ in range(draw.choice([20, 150])):
        size = len(raw)
        raw = tag + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + raw
    return draw.choice([raw, b"\x23" * 2000])


def _typed(raw: bytes, draw: Random) -> bytes:
    """Another type on the wire."""
    where = draw.randrange(len(raw)) if raw else 0
    return raw[:where] + bytes([(raw[where] if raw else 0) ^ draw.randrange(1, 8)]) + raw[where + 1 :]


def _twice(raw: bytes, draw: Random) -> bytes:
    begin, end = sorted((_at(raw, draw), _at(raw, draw)))
    return raw[:end] + raw[begin:end] * draw.choice([1, 3, 200]) + raw[end:]


def _elements(raw: bytes, draw: Random) -> bytes:
    return raw + draw.choice([b"\x22\x00", b"\x2a\x00", b"\x3a\x00", b"\x1a\x00"]) * draw.choice([20, 2000, 50_000])


def _noise(raw: bytes, draw: Random) -> bytes:
    where = _at(raw, draw)
    return raw[:where] + draw.randbytes(draw.randrange(1, 20)) + raw[where:]


_DAMAGES: Final[Sequence[_Damage]] = (
    _flipped, _flipped, _cut, _longer, _varint, _nested, _typed, _typed, _twice, _elements, _noise
)  # fmt: skip
