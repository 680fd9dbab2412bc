"""The last batches of a real server: what it says of them, what it never says, and where it stops."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from harken.v1 import debug_pb2, debug_pb2_grpc
from harken.v1 import encoder_pb2 as pb
from harken_client import Client
from support.calls import ids, refused, stub, text
from support.server import BIN, RunningServer, running_server


def explain(server: RunningServer, last: int = 4096) -> Sequence[debug_pb2.Batch]:
    with grpc.insecure_channel(server.target) as channel:
        request = debug_pb2.ExplainBatchesRequest(last=last)
        return debug_pb2_grpc.DebugStub(channel).ExplainBatches(request).batches


def raw_answer(server: RunningServer, raw: bytes) -> bytes:
    with grpc.insecure_channel(server.target) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/harken.v1.Debug/ExplainBatches")
        return method(raw)


def test_every_sequence_rides_once_and_the_metrics_agree(tiny_models: Path) -> None:
    lengths = [3, 100, 50, 4, 99, 51, 5, 120, 7, 8, 8, 8]
    sequences = [[number, *[5] * (length - 1)] for number, length in enumerate(lengths)]
    bulk = pb.EncodeOptions(priority=pb.PRIORITY_BULK)
    with running_server(tiny_models) as server:
        encoder = stub(server.target)
        first = encoder.Encode.future(pb.EncodeRequest(inputs=ids(*sequences)))
        second = encoder.Encode.future(pb.EncodeRequest(inputs=ids([5] * 30, [5] * 31), options=bulk))
        first.result(), second.result()
        for message in encoder.EncodeStream(
            pb.EncodeStreamRequest(input=pb.StreamInput(id=str(length), input=ids([5] * length)[0]))
            for length in (60, 61, 62)
        ):
            assert not message.result.HasField("error")
        # Whoever has an answer finds its batch here.
        batches = explain(server)
        assert [batch.number for batch in batches] == list(range(1, len(batches) + 1))
        members = [member for batch in batches for member in batch.members]
        assert sorted(member.length for member in members) == sorted([*lengths, 30, 31, 60, 61, 62])
        of_a_call: dict[int, list[int]] = {}
        for member in members:
            of_a_call.setdefault(member.flow, []).append(member.length)
        calls = sorted(sorted(call) for call in of_a_call.values())
        assert calls == sorted([sorted(lengths), [30, 31], [60, 61, 62]])
        assert {member.length for member in members if member.priority == pb.PRIORITY_BULK} == {30, 31}
        for batch in batches:
            assert (batch.model, batch.version) == ("tiny", 1)
            assert batch.padded_length == max(member.length for member in batch.members)
            assert batch.real_tokens == sum(member.length for member in batch.members)
            assert (batch.answered, batch.failed, batch.left, batch.waits_again) == (batch.sequences, 0, 0, 0)
            assert not batch.split
            assert {member.outcome for member in batch.members} == {debug_pb2.MEMBER_OUTCOME_ANSWERED}
            assert batch.predicted_ns > 0
            assert batch.alone_ns > 0
            assert batch.lane_ns > batch.compute_ns > 0
            assert batch.why
        ages_ns = [batch.age_ns for batch in batches]
        assert ages_ns == sorted(ages_ns, reverse=True)
        for why in ("cost", "limit", "lanes", "backlog"):
            told = sum(batch.closed_by == why for batch in batches)
            assert told == server.total("harken_batches_total", closed_by=why)
        queue_s = server.total("harken_stage_duration_seconds_sum", stage="queue")
        assert sum(member.waited_ns for member in members) / 1e9 == pytest.approx(queue_s, abs=1e-6)
        compute_s = sum(batch.compute_ns * batch.sequences for batch in batches) / 1e9
        assert compute_s == pytest.approx(server.total("harken_stage_duration_seconds_sum", stage="compute"), abs=1e-6)


def test_neither_texts_nor_ids_nor_names_of_callers_are_told(minilm_server: RunningServer) -> None:
    encoder = stub(minilm_server.target)
    request = pb.EncodeRequest(inputs=text("confidential merger"))
    encoder.Encode(request, metadata=(("harken-tenant", "acme-corporation"),))
    raw = raw_answer(minilm_server, b"")
    for secret in (b"confidential", b"merger", b"acme", b"127.0.0.1"):
        assert secret not in raw
    assert debug_pb2.ExplainBatchesResponse.FromString(raw).batches


def test_the_last_ones_are_kept_and_the_newest_of_them_told(tiny_models: Path) -> None:
    with running_server(tiny_models, "--debug-batches", "3") as server:
        encoder = stub(server.target)
        for length in range(1, 7):
            encoder.Encode(pb.EncodeRequest(inputs=ids([5] * length)))
        assert [batch.padded_length for batch in explain(server)] == [4, 5, 6]
        assert [batch.padded_length for batch in explain(server, last=2)] == [5, 6]
        assert [batch.number for batch in explain(server, last=0)] == [4, 5, 6]


def test_an_answer_keeps_to_the_message_limit(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-message-bytes", "1024") as server:
        encoder = stub(server.target)
        for _ in range(30):
            encoder.Encode(pb.EncodeRequest(inputs=ids([5])))
        batches = explain(server)
        assert [batch.number for batch in batches] == list(range(31 - len(batches), 31))
        assert 1 < len(batches) < 30
        assert debug_pb2.ExplainBatchesResponse(batches=batches).ByteSize() <= 1024


def test_kept_none_the_call_is_refused_with_its_reason(tiny_models: Path) -> None:
    with running_server(tiny_models, "--debug-batches", "0") as server:
        stub(server.target).Encode(pb.EncodeRequest(inputs=ids([5])))
        with pytest.raises(grpc.RpcError) as error:
            explain(server)
        off = refused(error.value)
        assert (off.code, off.reason, off.retry_after_s, off.pushback_ms) == ("UNIMPLEMENTED", "TURNED_OFF", None, "-1")
        assert "debug_batches" in off.message
        assert server.total("harken_rejected_total", reason="TURNED_OFF") == 1


def test_bytes_that_are_no_message_are_bad_input(tiny_server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as error:
        raw_answer(tiny_server, b"\xff\xff")
    assert (refused(error.value).code, refused(error.value).reason) == ("INVALID_ARGUMENT", "NOT_PROTOBUF")


def test_the_client_and_its_command_tell_the_same(tiny_models: Path) -> None:
    with running_server(tiny_models) as server, Client(server.target) as client:
        client.encode([[5] * 9, [5] * 12])
        batches = client.explain_batches()
        command = [str(BIN / "harken"), "explain-batches", "--server", server.target]
        done = subprocess.run([*command, "--json"], check=True, timeout=60, capture_output=True, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["number"] for line in lines] == [batch.number for batch in batches]
        assert [line["members"][0]["length"] for line in lines] == [batch.members[0].length for batch in batches]
        table = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
        assert "tiny/1" in table
        assert "call 1" in table
