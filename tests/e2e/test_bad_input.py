"""Every kind of bad input gets a precise answer, and the next good request succeeds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from harken.v1 import encoder_pb2 as pb
from harken.v1 import encoder_pb2_grpc
from support.calls import Refused, ids, refused, stub, text, vector
from support.server import RunningServer, running_server

ENCODE = "/harken.v1.Encoder/Encode"


@pytest.fixture(autouse=True)
def next_good_request_succeeds(minilm_server: RunningServer) -> Iterator[None]:
    yield
    (result,) = stub(minilm_server.target).Encode(pb.EncodeRequest(inputs=text("still here"))).results
    assert vector(result).shape == (384,)


def refusal(server: RunningServer, request: pb.EncodeRequest | bytes) -> Refused:
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.target, options) as channel, pytest.raises(grpc.RpcError) as error:
        raw_call(channel, ENCODE, raw)
    return refused(error.value)


def raw_call(channel: grpc.Channel, method: str, raw: bytes) -> Any:
    """Call with bytes as they are; gRPC's types know nothing of those."""
    call: Any = channel.unary_unary(method)
    return call(raw, timeout=30)


def not_utf8(request: pb.EncodeRequest, marker: bytes) -> bytes:
    return request.SerializeToString().replace(marker, b"\xff\xfe" + marker[2:])


@pytest.mark.parametrize(
    ("request_", "reason", "fields", "message"),
    [
        (pb.EncodeRequest(), "MISSING", ("inputs",), "inputs: must have at least one element, and has none"),
        (
            pb.EncodeRequest(inputs=[*text("good"), pb.Input()]),
            "NO_CONTENT",
            ("inputs[1]",),
            "inputs[1]: has neither text nor token_ids; one of them is required",
        ),
        (
            pb.EncodeRequest(inputs=text(*["good"] * 17, "")),
            "NO_TOKENS",
            ("inputs[17].text",),
            "inputs[17].text: is empty: it must give at least one token",
        ),
        (
            pb.EncodeRequest(inputs=text("good", " \t\n")),
            "NO_TOKENS",
            ("inputs[1].text",),
            "inputs[1].text: is empty: it must give at least one token",
        ),
        (
            pb.EncodeRequest(inputs=ids([])),
            "NO_TOKENS",
            ("inputs[0].token_ids",),
            "inputs[0].token_ids: is empty: it must give at least one token",
        ),
        (
            pb.EncodeRequest(inputs=ids([101, 30522])),
            "TOKEN_OUT_OF_RANGE",
            ("inputs[0].token_ids.ids[1]",),
            "inputs[0].token_ids.ids[1]: is 30522, outside the model's vocabulary of 0 to 30521",
        ),
        (
            pb.EncodeRequest(inputs=ids([-1])),
            "TOKEN_OUT_OF_RANGE",
            ("inputs[0].token_ids.ids[0]",),
            "inputs[0].token_ids.ids[0]: is -1, outside the model's vocabulary of 0 to 30521",
        ),
        (
            pb.EncodeRequest(inputs=text("ok", "word " * 898)),
            "SEQUENCE_TOO_LONG",
            ("inputs[1].text",),
            "inputs[1].text: has 900 tokens, over the model's limit of 512; truncation would cut it",
        ),
        (
            pb.EncodeRequest(inputs=ids([101] * 513)),
            "SEQUENCE_TOO_LONG",
            ("inputs[0].token_ids",),
            "inputs[0].token_ids: has 513 tokens, over the model's limit of 512; "
            "truncation would cut it",
        ),
        (
            pb.EncodeRequest(inputs=text(*["a"] * 1025)),
            "TOO_MANY",
            ("inputs",),
            "inputs: has 1025 elements, over the limit of 1024",
        ),
        (
            pb.EncodeRequest(inputs=text("a" * ((1 << 18) + 1))),
            "TOO_MANY_BYTES",
            ("inputs[0].text",),
            "inputs[0].text: has 262145 bytes, over the limit of 262144",
        ),
        (
            pb.EncodeRequest(inputs=text("word " * 400) * 30, options=pb.EncodeOptions(output=pb.OUTPUT_TOKENS)),
            "ANSWER_TOO_LARGE",
            ("inputs",),
            "inputs: the answer would have 18527040 bytes, over the limit of 16777216; send fewer inputs a call",
        ),
        (
            not_utf8(pb.EncodeRequest(inputs=text("good", "bad-text")), b"bad-text"),
            "NOT_UTF8",
            ("inputs[1].text",),
            "inputs[1].text: is not valid UTF-8",
        ),
        (
            not_utf8(pb.EncodeRequest(model="bad-name", inputs=text("good")), b"bad-name"),
            "NOT_UTF8",
            ("model",),
            "model: is not valid UTF-8",
        ),
        (
            b"\xff\xff\xff",
            "NOT_PROTOBUF",
            ("",),
            "the request's 3 bytes are no harken.v1.EncodeRequest message",
        ),
        (
            bytes((16 << 20) + 1),
            "TOO_MANY_BYTES",
            ("",),
            "the message has 16777217 bytes, over the limit of 16777216",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_field_value_and_limit(
    minilm_server: RunningServer,
    request_: pb.EncodeRequest | bytes,
    reason: str,
    fields: tuple[str, ...],
    message: str,
) -> None:
    before = minilm_server.total("harken_rejected_total", reason=reason)
    accepted = minilm_server.total("harken_accepted_total")
    assert refusal(minilm_server, request_) == Refused("INVALID_ARGUMENT", message, reason, fields, None, "-1")
    assert minilm_server.total("harken_rejected_total", reason=reason) == before + 1
    assert minilm_server.total("harken_accepted_total") == accepted


def test_every_field_at_fault_is_named_up_to_a_bound(minilm_server: RunningServer) -> None:
    several = refusal(minilm_server, pb.EncodeRequest(inputs=[*text("", "fine"), pb.Input(), *ids([-5])]))
    assert several.fields == ("inputs[0].text", "inputs[2]", "inputs[3].token_ids.ids[0]")
    assert several.message.endswith("(and 2 more)")
    assert len(refusal(minilm_server, pb.EncodeRequest(inputs=text(*[""] * 1000))).fields) == 16


def test_unknown_enum_values_are_named_with_the_known_ones(minilm_server: RunningServer) -> None:
    unknown = pb.EncodeRequest(inputs=text("a"), options=pb.EncodeOptions(output=9, truncation=8, priority=7))  # type: ignore[arg-type]  # out of range on purpose
    answer = refusal(minilm_server, unknown)
    assert answer.fields == ("options.output", "options.truncation", "options.priority")
    assert "is 9, which is none of OUTPUT_UNSPECIFIED, OUTPUT_SENTENCE, OUTPUT_TOKENS" in answer.message


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            pb.EncodeRequest(model="absent", inputs=text("a")),
            "model: 'absent' is not served here; served: all-MiniLM-L6-v2",
        ),
        (
            pb.EncodeRequest(model="all-MiniLM-L6-v2", version=9, inputs=text("a")),
            "model: 'all-MiniLM-L6-v2' has no version 9 here; it has 1",
        ),
    ],
)
def test_a_model_or_version_that_does_not_exist_is_not_found(
    minilm_server: RunningServer, request_: pb.EncodeRequest, message: str
) -> None:
    assert refusal(minilm_server, request_) == Refused("NOT_FOUND", message, "MODEL_NOT_FOUND", (), None, "-1")
    with pytest.raises(grpc.RpcError) as error:
        stub(minilm_server.target).GetModel(pb.GetModelRequest(model=request_.model, version=request_.version))
    assert refused(error.value).message == message


def test_a_message_far_over_the_limit_is_refused_by_grpc_itself(minilm_server: RunningServer) -> None:
    assert refusal(minilm_server, bytes(40 << 20)).code == "RESOURCE_EXHAUSTED"


def test_a_bundle_without_tokenizer_refuses_text_and_takes_ids(tiny_server: RunningServer) -> None:
    answer = refusal(tiny_server, pb.EncodeRequest(inputs=text("hello")))
    assert answer == Refused(
        "INVALID_ARGUMENT",
        "inputs[0].text: the bundle of 'tiny' has no tokenizer; send token_ids",
        "TEXT_NOT_ACCEPTED",
        ("inputs[0].text",),
        None,
        "-1",
    )
    (result,) = stub(tiny_server.target).Encode(pb.EncodeRequest(inputs=ids([5, 6, 7]))).results
    assert vector(result).shape == (32,)


def test_a_sequence_over_the_memory_budget_is_refused_before_it_is_computed(tiny_models: Path) -> None:
    with running_server(tiny_models, "--memory-budget-bytes", "200000") as server:
        answer = refusal(server, pb.EncodeRequest(inputs=ids([5] * 128)))
        assert (answer.code, answer.reason, answer.fields) == (
            "INVALID_ARGUMENT", "OVER_MEMORY_BUDGET", ("inputs[0].token_ids",),
        )  # fmt: skip
        (result,) = stub(server.target).Encode(pb.EncodeRequest(inputs=ids([5] * 16))).results
        assert result.tokens == 16


@pytest.mark.parametrize("method", ["ListModels", "GetModel"])
def test_garbage_to_the_other_methods_is_refused_alike(minilm_server: RunningServer, method: str) -> None:
    with grpc.insecure_channel(minilm_server.target) as channel, pytest.raises(grpc.RpcError) as error:
        raw_call(channel, f"/harken.v1.Encoder/{method}", b"\xff\xff")
    assert refused(error.value).reason == "NOT_PROTOBUF"


def test_an_unknown_method_is_unimplemented(minilm_server: RunningServer) -> None:
    with grpc.insecure_channel(minilm_server.target) as channel, pytest.raises(grpc.RpcError) as error:
        raw_call(channel, "/harken.v1.Encoder/Absent", b"")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("element", [b"\x22\x00", b"\x22\x04\x0a\x02\xff\xfe"], ids=["empty", "not UTF-8"])
def test_millions_of_elements_are_refused_before_they_are_parsed(tiny_server: RunningServer, element: bytes) -> None:
    before = tiny_server.total("harken_memory_bytes", kind="rss_peak")
    answer = refusal(tiny_server, b"\x0a\x04tiny" + element * ((15 << 20) // len(element)))
    assert (answer.reason, answer.fields) == ("TOO_MANY", ("inputs",))
    assert answer.message == "inputs: has at least 8703 elements, over the limit of 1024"
    # Parsed, they would take more than a gigabyte.
    assert tiny_server.total("harken_memory_bytes", kind="rss_peak") < before + (200 << 20)
    (result,) = stub(tiny_server.target).Encode(pb.EncodeRequest(inputs=ids([5]))).results
    assert result.tokens == 1


def is_answered(encoder: encoder_pb2_grpc.EncoderStub, request: pb.EncodeRequest) -> bool:
    """Whole, rather than refused for now."""
    try:
        return len(encoder.Encode(request, timeout=60).results) == 100
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False


def test_answers_that_nobody_reads_have_a_budget(tiny_models: Path) -> None:
    options = pb.EncodeOptions(output=pb.OUTPUT_TOKENS)
    request = pb.EncodeRequest(inputs=ids(*[[5] * 128] * 100), options=options)  # an answer of 1.6 MB
    with running_server(tiny_models, "--max-unsent-bytes", "2000000") as server:
        encoder = stub(server.target)
        for _ in range(5):
            # Each one that is read gives its bytes back, a moment after it was read.
            server.wait_until("an answer", lambda: is_answered(encoder, request))
        answers = [encoder.Encode.future(request, timeout=60) for _ in range(20)]
        codes = {answer.code().name for answer in answers}
        assert codes <= {"OK", "RESOURCE_EXHAUSTED"}
        assert "OK" in codes
        server.wait_until("an answer", lambda: is_answered(encoder, request))
        too_large = pb.EncodeRequest(inputs=ids(*[[5] * 128] * 200), options=options)
        answer = refusal(server, too_large)
        assert (answer.code, answer.reason, answer.retry_after_s) == ("RESOURCE_EXHAUSTED", "BACKLOG_FULL", None)
