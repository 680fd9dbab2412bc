"""Bytes that do not parse, and refusals as gRPC says them."""

import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest.mock import AsyncMock, Mock

import grpc
import pytest
from harken.v1 import bundle_pb2
from harken.v1 import encoder_pb2 as pb
from harken_server import errors
from harken_server.execution.pending import Stamps
from harken_server.rpc.calls import Call, Calls
from harken_server.rpc.convert import set_result
from harken_server.rpc.status import answer, bug
from harken_server.rpc.tenants import Tenants
from harken_server.rpc.wire import parse, readable_text
from harken_server.scheduling.deadline import Deadline
from harken_server.telemetry.metrics import Metrics
from harken_server.values import Answer
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

LIMIT = 1 << 20


def problems(kind: type[pb.EncodeRequest] | type[bundle_pb2.Bundle], raw: bytes) -> tuple[errors.Problem, ...]:
    with pytest.raises(errors.InvalidRequest) as error:
        parse(kind, raw, LIMIT)
    return error.value.problems


def test_every_text_that_is_not_utf8_is_named_by_its_path() -> None:
    request = pb.EncodeRequest(model="AAAA", inputs=[pb.Input(text="fine"), pb.Input(text="BBBB")])
    raw = request.SerializeToString().replace(b"AAAA", b"\xff\xfe\xfd\xfc").replace(b"BBBB", b"a\xf0\x28b")
    assert problems(pb.EncodeRequest, raw) == (errors.NotUtf8("model"), errors.NotUtf8("inputs[1].text"))


def test_fields_of_messages_in_messages_are_named_too() -> None:
    manifest = bundle_pb2.Bundle(files=[bundle_pb2.BundleFile(name="ok"), bundle_pb2.BundleFile(name="AAAA")])
    raw = manifest.SerializeToString().replace(b"AAAA", b"\xff\xfe\xfd\xfc")
    assert problems(bundle_pb2.Bundle, raw) == (errors.NotUtf8("files[1].name"),)


def test_what_can_be_read_of_a_bad_message_is_read() -> None:
    message = pb.EncodeStreamRequest(input=pb.StreamInput(id="the-id", input=pb.Input(text="AAAA")))
    raw = message.SerializeToString().replace(b"AAAA", b"\xff\xfe\xfd\xfc")
    assert readable_text(pb.EncodeStreamRequest, raw, ("input", "id")) == "the-id"
    assert readable_text(pb.EncodeStreamRequest, b"\xff\xff", ("input", "id")) == ""
    raw = message.SerializeToString().replace(b"the-id", b"\xff\xfe\xfd\xfc\xfb\xfa")
    assert readable_text(pb.EncodeStreamRequest, raw, ("input", "id")) == ""


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(raw: bytes) -> None:
    try:
        found: tuple[errors.Problem, ...] = ()
        parse(pb.EncodeRequest, raw, LIMIT)
    except errors.InvalidRequest as invalid:
        found = invalid.problems
    assert all(isinstance(problem, errors.NotUtf8 | errors.NotProtobuf) for problem in found)


PROBLEMS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.Problem) and kind is not errors.Problem
]  # fmt: skip
EXAMPLES: dict[object, Any] = {
    int: 7, str: "seven", bool: True, tuple[str, ...]: ("a", "b"), tuple[int, ...]: (7, 8),
}  # fmt: skip


def example(kind: type[errors.Problem]) -> errors.Problem:
    hints = get_type_hints(kind)
    return kind(
        **{name: get_args(hint)[0] if get_origin(hint) is Literal else EXAMPLES[hint] for name, hint in hints.items()}
    )


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.__name__)
def test_every_problem_has_a_sentence_and_a_reason(kind: type[errors.Problem]) -> None:
    refused = answer(errors.InvalidRequest((example(kind),)), "id")
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == refused.reason.upper()
    assert refused.status.message.startswith("seven: ")
    assert refused.retry_after_s is None
    assert dict(refused.trailers(None))["grpc-retry-pushback-ms"] == "-1"


def test_what_may_succeed_later_says_when_and_nothing_else_does() -> None:
    later = [
        errors.BacklogFull(5, 2, 6, "tokens", 0.25), errors.NotReady("draining", 1.0),
        errors.DeadlineUnreachable(2.0, 1.0, 1.0), errors.NoMemory(1.0),
    ]  # fmt: skip
    never = [
        errors.InvalidRequest((errors.Missing("inputs"),)), errors.ModelNotFound("m", 0, (), ()), errors.Expired(True),
        errors.Expired(False), errors.Abandoned(), errors.ComputeFailed("ENGINE_FAILED"),
        errors.ComputeFailed("NOT_FINITE"), errors.LoadFailed("m", "damaged"),
        errors.BacklogFull(0, 9, 6, "tokens", 0.25),
    ]  # fmt: skip
    assert [answer(refusal, "id").retry_after_s for refusal in later] == [0.25, 1.0, 1.0, 1.0]
    assert [dict(answer(refusal, "id").trailers(None))["grpc-retry-pushback-ms"] for refusal in later] == [
        "250", "1000", "1000", "1000",
    ]  # fmt: skip
    assert [answer(refusal, "id").retry_after_s for refusal in never] == [None] * len(never)


def test_grpc_is_told_never_where_its_caller_would_not_wait_so_long() -> None:
    def told(retry_after_s: float, remaining_s: float | None) -> dict[str, str | bytes]:
        return dict(answer(errors.NotReady("draining", retry_after_s), "id").trailers(remaining_s))

    pushbacks = [told(*pause)["grpc-retry-pushback-ms"] for pause in ((1.0, None), (1.0, 1.1), (1.0, 1.0), (0.0, 0.5))]
    assert pushbacks == ["1000", "1000", "-1", "1"]
    # The details say it all the same: the caller may ask again, with more time.
    assert told(1.0, 0.5)["grpc-status-details-bin"] == told(1.0, None)["grpc-status-details-bin"]


async def test_a_call_ends_with_the_pause_that_its_caller_can_keep() -> None:
    async def refuse(_: object) -> None:
        raise errors.NotReady("draining", 1.0)

    def context(remaining_s: float | None) -> AsyncMock:
        answered = AsyncMock(abort=AsyncMock(side_effect=grpc.aio.AbortError))
        answered.configure_mock(
            time_remaining=Mock(return_value=remaining_s), invocation_metadata=Mock(return_value=()),
            set_trailing_metadata=Mock(), add_done_callback=Mock(),
        )  # fmt: skip
        return answered

    calls = Calls(Metrics(), Tenants(False, {}), lambda: 0.0, max_request_s=30.0)
    for remaining_s, pushback_ms in ((0.5, "-1"), (None, "1000")):
        caller = context(remaining_s)
        with pytest.raises(grpc.aio.AbortError):
            await calls.answer("Encode", caller, refuse)
        _, _, trailers = caller.abort.await_args.args
        assert dict(trailers)["grpc-retry-pushback-ms"] == pushback_ms


REFUSALS = [
    *(errors.InvalidRequest((example(kind),)) for kind in PROBLEMS), errors.ModelNotFound("m", 0, (), ()),
    errors.TurnedOff("s"), errors.LoadFailed("m", "damaged"),
    errors.BacklogFull(5, 2, 6, "tokens", 0.25), errors.DeadlineUnreachable(2.0, 1.0, 1.0),
    errors.NotReady("loading", 1.0), errors.NotReady("draining", 1.0),
    errors.CannotAttend("m", 1), errors.CannotAttend("m", 1, "cls"),
    errors.Unauthenticated(given=False), errors.Unauthenticated(given=True), errors.AdminOnly("k"),
    errors.ModelForbidden("k", "m"), errors.KeyLimit("k", "requests in flight", 4, 0.1),
]  # fmt: skip
ENDINGS = [
    errors.StreamTooOld(300.0, 0.0), errors.Expired(True), errors.Abandoned(), errors.ComputeFailed("NOT_FINITE"),
    errors.NoMemory(1.0),
]  # fmt: skip


def test_every_refusal_is_counted_by_its_reason_and_told_on_the_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    metrics = Metrics()
    calls = Calls(metrics, Tenants(False, {}), lambda: 0.0, max_request_s=1.0)
    for refusal in [*REFUSALS, *ENDINGS]:
        calls.rejected("m", refusal, answer(refusal, "id").reason)
    counted = {
        sample.labels["reason"]: sample.value
        for family in metrics.rejected.collect() for sample in family.samples if sample.name.endswith("_total")
    }  # fmt: skip
    assert counted == dict.fromkeys((answer(refusal, "id").reason for refusal in REFUSALS), 1.0)
    assert [reason for reason in counted if f"`{reason}`" not in page] == []


def test_no_kind_of_refusal_is_forgotten_here() -> None:
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.Refusal)}
    assert {type(refusal) for refusal in [*REFUSALS, *ENDINGS]} == kinds - {errors.Refusal}


def test_a_fault_of_the_server_carries_an_id_and_nothing_of_the_inside() -> None:
    for refused in (bug("abc123"), answer(errors.ComputeFailed("ENGINE_FAILED"), "abc123")):
        assert refused.code is grpc.StatusCode.INTERNAL
        assert "abc123" in refused.status.message
        assert "Traceback" not in refused.status.message


def test_trailers_stay_small_whatever_was_sent() -> None:
    long = "x" * 100_000
    refusals = [
        errors.ModelNotFound(long, 0, (long,), ()),
        errors.InvalidRequest(tuple(errors.TextNotAccepted("inputs[0].text", long) for _ in range(16))),
    ]
    for refusal in refusals:
        size = sum(len(key) + len(value) for key, value in answer(refusal, "id").trailers(None))
        assert size * 4 / 3 < 8192


def test_only_what_the_server_is_at_fault_for_is_logged_as_an_error() -> None:
    call = Call(1, "Encode", 0.0, Deadline(1.0), "the-id", "", "")
    with capture_logs() as lines:
        for outcome in (errors.Expired(by_cap=False), errors.ComputeFailed("ENGINE_FAILED")):
            failed = Answer(outcome, 3, False, Stamps(0.0, 0.0))
            set_result(pb.Result(), failed, call, pb.DATA_TYPE_FLOAT32)
    assert [(line["event"], line["reason"]) for line in lines] == [("input failed", "ENGINE_FAILED")]
