"""What counts against the availability objective, for each way in which a call can end."""

import inspect

import grpc
import pytest
from harken_server import errors
from harken_server.rpc import objective
from harken_server.rpc.status import answer, bug

CODE = grpc.StatusCode
UNAVAILABLE = [
    errors.BacklogFull(5, 2, 6, "tokens", 0.25), errors.DeadlineUnreachable(2.0, 1.0, 1.0),
    errors.NotReady("loading", 1.0), errors.NotReady("draining", 1.0), errors.Expired(False), errors.Expired(True),
    errors.NoMemory(1.0), errors.ComputeFailed("ENGINE_FAILED"), errors.ComputeFailed("NOT_FINITE"),
    errors.ComputeFailed("ENGINE_STALLED"), errors.StreamTooOld(300.0, 0.0),
]  # fmt: skip
OF_CALLERS = [
    errors.InvalidRequest((errors.NoTokens("inputs[0].text"),)), errors.ModelNotFound("m", 0, (), ()),
    errors.Unauthenticated(given=False), errors.Unauthenticated(given=True), errors.AdminOnly("k"),
    errors.ModelForbidden("k", "m"), errors.KeyLimit("k", "requests in flight", 4, 0.1), errors.TurnedOff("s"),
    errors.LoadFailed("m", "damaged"), errors.Abandoned(), errors.BacklogFull(0, 9, 6, "tokens", 0.25),
    errors.CannotAttend("m", 1), errors.CannotAttend("m", 1, "cls"),
]  # fmt: skip


def of_call(method: str, refusal: errors.Refusal, model: str = "m") -> objective.Outcome | None:
    refused = answer(refusal, "id")
    return objective.of_call(method, refused.code, refused, model, inputs_failed=False)


def test_every_refusal_is_the_servers_or_the_callers() -> None:
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.Refusal)}
    assert {type(refusal) for refusal in [*UNAVAILABLE, *OF_CALLERS]} == kinds - {errors.Refusal}
    for refusal in UNAVAILABLE:
        assert of_call("Encode", refusal) == objective.of_refusal(answer(refusal, "id")) == "unavailable", refusal
    for refusal in OF_CALLERS:
        assert of_call("Encode", refusal) == objective.of_refusal(answer(refusal, "id")) == "caller", refusal
    assert objective.of_refusal(bug("id")) == "unavailable"


@pytest.mark.parametrize("method", sorted(objective.COMPUTES - objective.STREAMS))
def test_a_call_is_served_unless_one_of_its_inputs_failed(method: str) -> None:
    assert objective.of_call(method, CODE.OK, None, "m", inputs_failed=False) == "served"
    assert objective.of_call(method, CODE.OK, None, "m", inputs_failed=True) == "unavailable"
    # gRPC cancels a call whose deadline passes, and one whose caller goes away.
    assert objective.of_call(method, CODE.DEADLINE_EXCEEDED, None, "m", inputs_failed=False) == "unavailable"
    assert objective.of_call(method, CODE.CANCELLED, None, "m", inputs_failed=False) == "caller"
    assert objective.of_call(method, CODE.INTERNAL, None, "m", inputs_failed=False) == "unavailable"
    # A body that does not come in time has named no model yet.
    assert of_call(method, errors.Expired(True), model="") == "caller"


@pytest.mark.parametrize("method", sorted(objective.STREAMS))
def test_of_streams_their_inputs_count_and_their_end_only_if_it_is_a_failure(method: str) -> None:
    for code in (CODE.OK, CODE.CANCELLED, CODE.DEADLINE_EXCEEDED):
        assert objective.of_call(method, code, None, "m", inputs_failed=False) is None
    for ends in (errors.StreamTooOld(300.0, 0.0), errors.NotReady("draining", 1.0), errors.Expired(True)):
        assert of_call(method, ends) is None
    assert of_call(method, errors.NotReady("loading", 1.0)) == "unavailable"
    assert of_call(method, errors.ModelNotFound("m", 0, (), ())) == "caller"
    assert objective.of_call(method, CODE.INTERNAL, None, "m", inputs_failed=False) == "unavailable"


@pytest.mark.parametrize("method", ["ServerReady", "GET /health", "ListModels", "RepositoryModelLoad"])
def test_health_metadata_and_administration_are_not_judged(method: str) -> None:
    assert objective.of_call(method, CODE.OK, None, "", inputs_failed=False) is None
    assert of_call(method, errors.NotReady("draining", 1.0)) is None
