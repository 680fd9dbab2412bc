"""Errors: made from what the server says, told in the caller's positions."""

import pickle
from typing import Any

import grpc
import pytest
from client.fake_server import BUSY, Refusal
from google.protobuf import any_pb2
from google.rpc import status_pb2  # type: ignore[import-untyped]  # googleapis-common-protos has no py.typed
from harken_client import FieldViolation, HarkenError, InternalError, InvalidInput, Overloaded, Unavailable
from harken_client.errors import from_rpc, from_status, moved, placed


def rpc_error(code: grpc.StatusCode, **trailers: str | bytes) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*((name.replace("_", "-"), value) for name, value in trailers.items()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details="plain words")


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_has_its_class(code: grpc.StatusCode) -> None:
    error = from_status(Refusal(code).status())
    assert error.code is code
    expected = [kind for kind in HarkenError.__subclasses__() if kind.code is code]
    assert [type(error)] == (expected or [InternalError])


def test_details_that_cannot_be_read_are_left_out() -> None:
    broken = any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff")
    strange = any_pb2.Any(type_url="type.googleapis.com/no.such.Type", value=b"")
    status = status_pb2.Status(code=8, message="full", details=[strange, broken, *BUSY.status().details])
    error = from_status(status)
    assert isinstance(error, Overloaded)
    assert (error.message, error.reason, error.retry_after_s) == ("full", "BACKLOG_FULL", 0.01)


def test_a_call_without_details_has_its_plain_words() -> None:
    error = from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE))
    assert isinstance(error, Unavailable)
    assert (error.message, error.reason, error.retry_after_s) == ("plain words", "", None)


@pytest.mark.parametrize("details", [b"\xff\xff", BUSY.status().SerializeToString(), "text"])
def test_details_that_do_not_fit_the_status_are_not_believed(details: Any) -> None:
    error = from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, grpc_status_details_bin=details))
    assert isinstance(error, Unavailable)
    assert (error.message, error.retry_after_s) == ("plain words", None)


def test_positions_are_moved_wherever_they_are_named() -> None:
    violations = [FieldViolation("inputs[3].text", "inputs[3].text is empty"), FieldViolation("options", "no")]
    error = moved(InvalidInput("inputs[3].text: inputs[12]", violations=violations), 100)
    assert (error.message, error.args, error.index) == (
        "inputs[103].text: inputs[112]",
        ("inputs[103].text: inputs[112]",),
        103,
    )
    assert error.violations == (
        FieldViolation("inputs[103].text", "inputs[103].text is empty"),
        FieldViolation("options", "no"),
    )


def test_an_input_of_a_stream_is_named_as_one_of_a_list() -> None:
    violations = [FieldViolation("input.input.text", "is empty")]
    error = placed(InvalidInput("input.input.text is empty", violations=violations), 41)
    assert str(error) == "INVALID_ARGUMENT: inputs[41].text is empty"
    assert (error.index, error.violations) == (41, (FieldViolation("inputs[41].text", "is empty"),))


def test_a_reason_that_is_only_the_code_is_not_said_twice() -> None:
    assert str(InvalidInput("empty", reason="INVALID_ARGUMENT")) == "INVALID_ARGUMENT: empty"
    assert str(InvalidInput("empty", reason="EMPTY")) == "INVALID_ARGUMENT (EMPTY): empty"


def test_an_error_survives_pickling() -> None:
    error = from_status(BUSY.status())
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is Overloaded
    assert vars(again) == vars(error)
