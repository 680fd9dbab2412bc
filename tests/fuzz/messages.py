"""gRPC's edges: whatever the bytes of a message are, its call is answered, or refused for what it holds."""

from typing import Final

from fuzz.edges import KEY, plain, with_keys
from harken.oip import inference_pb2
from harken.v1 import encoder_pb2
from harken_server.rpc.api_keys import AUTHORIZATION
from harken_server.rpc.calls import REQUEST_ID
from harken_server.rpc.tenants import TENANT

_INTERNAL: Final = 13


def unary(data: bytes) -> None:
    """The first byte is the method, of harken.v1.Encoder or GRPCInferenceService; the rest is its message."""
    edges = plain()
    _, handle = edges.unary[(data[0] if data else 0) % len(edges.unary)]
    edges.call(handle, [data[1:]])


def encode(data: bytes) -> None:
    """An EncodeRequest; of its answer, a result for each input."""
    context = plain().call(plain().unary[0][1], [data])
    for answer in context.answers:
        inputs = len(encoder_pb2.EncodeRequest.FromString(data).inputs)
        assert len(encoder_pb2.EncodeResponse.FromString(answer).results) == inputs


def infer(data: bytes) -> None:
    """A ModelInferRequest; of its answer, a row for each row."""
    context = plain().call(plain().unary[4][1], [data])
    for answer in context.answers:
        rows = inference_pb2.ModelInferRequest.FromString(data).inputs[0].shape[0]
        assert {output.shape[0] for output in inference_pb2.ModelInferResponse.FromString(answer).outputs} == {rows}


def encode_stream(data: bytes) -> None:
    """Messages, each after its length in one byte: one answer to each, but for the one that opens the stream."""
    raws = _messages(data)
    context = plain().call(plain().encode_stream, raws)
    answers = [encoder_pb2.EncodeStreamResponse.FromString(answer) for answer in context.answers]
    assert context.code or len(raws) - len(answers) in (0, 1), (raws, answers)
    indices = sorted(answer.index for answer in answers)
    assert indices == list(range(len(answers))), indices
    assert not [answer for answer in answers if answer.result.error.code == _INTERNAL], answers


def infer_stream(data: bytes) -> None:
    """Likewise of ModelStreamInfer, which nothing opens."""
    raws = _messages(data)
    context = plain().call(plain().infer_stream, raws)
    answers = [inference_pb2.ModelStreamInferResponse.FromString(answer) for answer in context.answers]
    assert len(raws) == len(answers), (raws, answers)
    assert not [answer for answer in answers if "the server failed" in answer.error_message], answers


def metadata(data: bytes) -> None:
    """Lines: the request id, the tenant, the key; of a server that trusts tenants, and of one that asks for keys."""
    given = (data.decode("latin-1").split("\n") + [""] * 3)[:3]
    named = dict(zip((REQUEST_ID, TENANT, AUTHORIZATION), given, strict=True))
    for edges in (plain(), with_keys()):
        context = edges.call(edges.unary[2][1], [b""], named)
        if edges is with_keys():
            assert (context.code is None) == (_key_of(named[AUTHORIZATION]) == KEY), named


def _key_of(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _messages(data: bytes) -> list[bytes]:
    raws: list[bytes] = []
    while data and len(raws) < 16:
        raws.append(data[1 : 1 + data[0]])
        data = data[1 + data[0] :]
    return raws
