"""Attend beside everything else: first use, idleness, keys, deadlines, memory, releases, drains, metrics."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from harken.oip import inference_pb2
from harken.v1 import encoder_pb2 as pb
from harken_client import Client
from support.api_keys import KeyFile
from support.attending import attend, attend_refused, posted
from support.calls import ids, refused, stub
from support.inference import oip
from support.releases import look, release, withdraw
from support.server import RunningServer, running_server

MODEL = "all-MiniLM-L6-v2"
LOADED = "attention graph loaded"


def logged(server: RunningServer, event: str) -> int:
    return sum(line["event"] == event for line in server.log)


def rss(server: RunningServer) -> float:
    return server.total("harken_memory_bytes", kind="rss")


def held(server: RunningServer) -> float:
    return server.total("harken_memory_bytes", kind="predicted_attend")


def test_the_first_one_loads_the_graph_and_after_a_while_without_any_it_goes(minilm_models: Path) -> None:
    with running_server(minilm_models, "--attend-idle-s", "1.5") as server:
        before = rss(server)
        assert logged(server, LOADED) == 0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: attend(server, [101, 102], maps=True), range(4)))
        assert logged(server, LOADED) == 1, "those who came meanwhile wait for the same load"
        backlog = 'harken_backlog_sequences{model="all-MiniLM-L6-v2+attention"}'
        assert backlog in server.metrics()
        server.wait_until("its release", lambda: backlog not in server.metrics())
        server.wait_until("its memory", lambda: rss(server) < 1.2 * before)
        attend(server, [101, 102], maps=True)
        assert logged(server, LOADED) == 2


@pytest.mark.parametrize("chosen", [[0], []], ids=["one head", "all of them"])
def test_a_run_takes_no_more_memory_than_was_predicted_and_gives_it_back(
    minilm_models: Path, chosen: list[int]
) -> None:
    with running_server(minilm_models, "--no-wide-lane", "--lanes", "1") as server:
        attend(server, [101] * 8, maps=True)
        Client(server.target).encode([[101] * 500] * 4)
        server.wait_until("rest", lambda: server.total("harken_memory_bytes", kind="predicted_batch") == 0)
        time.sleep(1.5)  # what batches left goes back after a second
        before = rss(server)
        # Whatever of all that is computed is sent, what was computed for it must not stay.
        attend(server, [101] * 512, maps=True, layers=chosen, heads=chosen)
        peak = server.total("harken_memory_bytes", kind="rss_peak") - before
        predicted = server.total("harken_memory_bytes", kind="attend_peak")
        assert 2 * 75 << 20 < predicted < 260 << 20
        assert peak < 1.25 * predicted
        server.wait_until("memory to go back", lambda: rss(server) < before + (40 << 20))
        assert held(server) == 0


def test_keys_hold_as_for_every_call(tiny_models: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    keys.write(plain="", elsewhere='models = ["other"]', slow="tokens_per_s = 5")
    with running_server(tiny_models, *keys.options) as server:
        missing = attend_refused(server, [1, 2], maps=True)
        assert (missing.code, missing.reason) == ("UNAUTHENTICATED", "KEY_MISSING")
        forbidden = attend_refused(server, [1, 2], maps=True, metadata=keys.bearer("elsewhere"))
        assert (forbidden.code, forbidden.reason) == ("PERMISSION_DENIED", "MODEL_FORBIDDEN")
        assert posted(server, {"input": [1, 2]}).status == 401
        assert posted(server, {"input": [1, 2]}, keys.bearer("elsewhere")).status == 403
        assert attend(server, [1, 2], maps=True, metadata=keys.bearer("plain"))
        # 40 tokens of maps and 80 of a similarity: a debt of seconds.
        second = pb.Input(token_ids=pb.TokenIds(ids=[3] * 40))
        attend(server, [1] * 40, maps=True, other=second, metadata=keys.bearer("slow"))
        limited = attend_refused(server, [1], maps=True, metadata=keys.bearer("slow"))
        assert (limited.code, limited.reason) == ("RESOURCE_EXHAUSTED", "KEY_LIMIT")
        assert limited.retry_after_s is not None
        assert 20 < limited.retry_after_s <= 24


def test_a_caller_that_leaves_or_runs_out_of_time_leaves_nothing_behind(minilm_models: Path) -> None:
    with running_server(minilm_models, "--lanes", "1", "--no-wide-lane") as server:
        attend(server, [101, 102], maps=True)
        late = attend_refused(server, [101] * 512, maps=True, timeout_s=0.02)
        assert late.code in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
        calls = [stub(server.target).Attend(pb.AttendRequest(input=ids([101] * 400)[0], maps=True)) for _ in range(6)]
        server.wait_until("them to come", lambda: held(server) > 0)
        for call in calls:
            call.cancel()
        server.wait_until("their memory", lambda: held(server) == 0)
        assert attend(server, [101, 102], maps=True)
        accepted = server.total("harken_accepted_total", model=f"{MODEL}+attention")
        server.wait_until(
            "their ends", lambda: server.total("harken_finished_total", model=f"{MODEL}+attention") == accepted
        )


def test_a_reader_that_never_reads_is_cut_and_holds_up_nobody(minilm_models: Path) -> None:
    with running_server(minilm_models, "--max-request-s", "12") as server:
        attend(server, [101, 102], maps=True)
        slow = stub(server.target).Attend(pb.AttendRequest(input=ids([101] * 300)[0], maps=True))
        next(slow)
        assert held(server) > 24 << 20
        # 26 MB wait for it; others have their answers.
        assert attend(server, [101] * 64, maps=True)
        server.wait_until("the end of its time", lambda: held(server) == 0, timeout_s=60)
        with pytest.raises(grpc.RpcError) as error:
            list(slow)
        assert refused(error.value).code == "DEADLINE_EXCEEDED"


def test_maps_that_others_hold_are_counted_and_what_does_not_fit_is_told_when_to_come_again(
    minilm_models: Path,
) -> None:
    # One of 512 tokens fits, and its answer and another do not.
    with running_server(minilm_models, "--attend-memory-bytes", str(220 << 20)) as server:
        attend(server, [101, 102], maps=True)
        slow = stub(server.target).Attend(pb.AttendRequest(input=ids([101] * 512)[0], maps=True))
        next(slow)
        full = attend_refused(server, [101] * 512, maps=True)
        assert (full.code, full.reason) == ("RESOURCE_EXHAUSTED", "BACKLOG_FULL")
        assert full.retry_after_s == 1.0
        assert "bytes of attention maps" in full.message
        assert len(list(slow)) > 72
        server.wait_until("room", lambda: held(server) == 0)
        assert attend(server, [101] * 512, entropy=True)


def test_files_that_changed_since_the_start_are_refused_and_only_the_log_says_where(
    tiny_models: Path, tmp_path: Path
) -> None:
    release(tiny_models / "tiny" / "1", tmp_path, 1)
    with running_server(tmp_path) as server:
        with (tmp_path / "tiny" / "1" / "model.onnx").open("ab") as file:
            file.write(b"\0")
        wrong = attend_refused(server, [1, 2], maps=True)
        assert (wrong.code, wrong.reason) == ("FAILED_PRECONDITION", "LOAD_FAILED")
        assert str(tmp_path) not in wrong.message
        (line,) = [line for line in server.log if line["event"] == "attention graph not loaded"]
        assert "model.onnx: sha256" in line["why"]
        # Vectors come from what was loaded.
        assert Client(server.target).encode([[1, 2]]).shape == (1, 32)


def test_a_version_that_goes_takes_its_graph_along_and_the_next_one_has_its_own(
    tiny_models: Path, tmp_path: Path
) -> None:
    release(tiny_models / "tiny" / "1", tmp_path, 1)
    with running_server(tmp_path) as server:
        assert attend(server, [1, 2], maps=True)[0].summary.version == 1
        release(tiny_models / "tiny" / "1", tmp_path, 2)
        withdraw(tmp_path, 1)
        look(server)
        server.wait_until("the change", lambda: logged(server, "model unloaded") == 1)
        assert attend(server, [1, 2], maps=True)[0].summary.version == 2
        assert logged(server, LOADED) == 2
        with oip(server) as service:
            index = service.RepositoryIndex(inference_pb2.RepositoryIndexRequest()).models
        assert [(one.name, one.version) for one in index] == [("tiny", "2")]
        scales = [name for name in server.metrics() if name.startswith("harken_cost_scale_ratio")]
        assert sorted(scales) == [
            'harken_cost_scale_ratio{model="tiny",version="2"}',
            'harken_cost_scale_ratio{model="tiny+attention",version="2"}',
        ]


def test_a_drain_finishes_what_was_accepted_and_refuses_the_rest(minilm_models: Path) -> None:
    with running_server(minilm_models, "--drain-delay-s", "0.2") as server:
        attend(server, [101, 102], maps=True)
        ends: list[str] = []

        def ask() -> None:
            while True:
                try:
                    first, *parts = attend(server, [101] * 200, maps=True)
                    ends.append("OK" if first.summary.parts == len(parts) else "CUT")
                except grpc.RpcError as error:
                    ends.append(error.code().name)
                    return

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        server.wait_until("calls", lambda: ends.count("OK") > 3)
        server.terminate()
        for thread in threads:
            thread.join(60)
        assert server.wait_exit() == 0
        assert set(ends) == {"OK", "UNAVAILABLE"}


def test_it_is_counted_under_names_of_its_own_and_explained(minilm_models: Path) -> None:
    with running_server(minilm_models) as server:
        before = {name: value for name, value in server.metrics().items() if f'model="{MODEL}"' in name}
        attend(server, [101] * 30, maps=True)
        posted(server, {"input": "A cat.", "entropy": True})
        attend_refused(server, [101], layers=[9], maps=True)
        labels: dict[str, Any] = {"model": MODEL}
        assert server.total("harken_requests_total", method="Attend", code="OK", **labels) == 1
        assert server.total("harken_requests_total", method="Attend", code="INVALID_ARGUMENT", **labels) == 1
        assert server.total("harken_requests_total", method="POST /v1/attend", code="OK", **labels) == 1
        assert server.total("harken_rejected_total", reason="OUT_OF_RANGE", **labels) == 1
        assert server.total("harken_request_duration_seconds_count", method="Attend", **labels) == 1
        own = {"model": f"{MODEL}+attention"}
        assert server.total("harken_accepted_total", **own) == server.total("harken_finished_total", **own) == 2
        assert server.total("harken_tokens_total", **own) == 30 + 5
        # No figure of the vectors has moved.
        now = server.metrics()
        moved = {name for name, value in before.items() if now.get(name) != value}
        assert {name.split("{")[0] for name in moved} <= {"harken_cost_scale_ratio", "harken_predicted_wait_seconds"}
        explained = Client(server.target).explain_batches()
        assert [batch.model for batch in explained] == [f"{MODEL}+attention"] * 2
        assert [member.priority for batch in explained for member in batch.members] == ["bulk", "bulk"]
