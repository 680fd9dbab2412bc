"""Start and stop: what is refused at the start in one line, and what a drain keeps."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harken.v1 import encoder_pb2 as pb
from support.calls import different, ids, refused, stub
from support.server import BIN, RunningServer, failed_start, running_server

QUIET = ("--grpc-port", "0", "--metrics-port", "0", "--http-port", "0")


def health(channel: grpc.Channel) -> Any:
    """The stubs know no methods of this stub."""
    return health_pb2_grpc.HealthStub(channel)


def watch(server: RunningServer, service: str) -> tuple[grpc.Channel, list[str], threading.Thread]:
    """Follow a service's health until the stream ends."""
    channel = grpc.insecure_channel(server.target)
    seen: list[str] = []

    def follow() -> None:
        try:
            for update in health(channel).Watch(health_pb2.HealthCheckRequest(service=service)):
                seen.append(health_pb2.HealthCheckResponse.ServingStatus.Name(update.status))  # noqa: PERF401 - read while it grows
        except grpc.RpcError as error:
            seen.append(error.code().name)

    thread = threading.Thread(target=follow)
    thread.start()
    server.wait_until("the watch", lambda: bool(seen))
    return channel, seen, thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_server_is_even_imported_ends_it_with_zero(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "harken_server", "--models", "/none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        status = Path(f"/proc/{process.pid}/status")
        # Python has a handler of its own for SIGINT; SIGTERM's is the last to come. Its models are not there: had it
        # come so far as to look for them, it would end with 2.
        while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            time.sleep(0.001)
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_an_idle_server_with_an_open_watch_exits_at_once_with_zero(tiny_models: Path) -> None:
    with running_server(tiny_models) as server:
        channel, seen, thread = watch(server, "tiny")
        assert seen == ["SERVING"]
        started_s = time.monotonic()
        server.terminate()
        assert server.wait_exit() == 0
        assert time.monotonic() - started_s < 5.0  # of the 31 s that gRPC's own stop would wait
        thread.join()
        channel.close()
        assert seen[1] == "NOT_SERVING"
        assert server.log[-1]["event"] == "stopped"


def test_a_drain_is_not_serving_at_once_accepts_for_its_delay_then_refuses(tiny_models: Path) -> None:
    with running_server(tiny_models, "--drain-delay-s", "2") as server:
        channel, seen, thread = watch(server, "")
        encoder = stub(server.target)
        server.terminate()
        server.wait_until("NOT_SERVING", lambda: "NOT_SERVING" in seen)
        (result,) = encoder.Encode(pb.EncodeRequest(inputs=ids([5])), timeout=10).results
        assert result.tokens == 1
        assert server.wait_exit() == 0
        with pytest.raises(grpc.RpcError) as error:
            encoder.Encode(pb.EncodeRequest(inputs=ids([5])), timeout=10)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        thread.join()
        channel.close()


def test_sigterm_under_load_fails_nothing_that_was_accepted(minilm_models: Path) -> None:
    """Every call ends in its vectors, or in UNAVAILABLE that was given before it was accepted."""
    with running_server(minilm_models, "--drain-delay-s", "0.5", "--warmup-s", "1") as server:
        outcomes: list[str] = []
        stop = threading.Event()

        def caller(seed: int) -> None:
            encoder = stub(server.target)
            while not stop.is_set():
                try:
                    lengths = [1 + (seed * 37 + len(outcomes) * 13) % 200]
                    response = encoder.Encode(pb.EncodeRequest(inputs=ids(*[[101] * n for n in lengths])), timeout=30)
                    outcomes.append("OK" if response.results[0].HasField("embedding") else "FAILED")
                except grpc.RpcError as error:
                    outcomes.append(error.code().name)
                    return

        with ThreadPoolExecutor(16) as pool:
            for seed in range(16):
                pool.submit(caller, seed)
            server.wait_until("load", lambda: len(outcomes) > 50)
            last = server.metrics()
            server.terminate()
            assert server.wait_exit() == 0
            stop.set()
        assert set(outcomes) == {"OK", "UNAVAILABLE"}
        assert outcomes.count("OK") > 50
        assert last['harken_finished_total{model="all-MiniLM-L6-v2",outcome="failed"}'] == 0


def test_a_long_call_is_finished_in_a_drain(minilm_models: Path) -> None:
    with running_server(minilm_models, "--warmup-s", "1") as server:
        call = stub(server.target).Encode.future(pb.EncodeRequest(inputs=ids(*different(40, 256))), timeout=120)
        server.wait_until("the call", lambda: server.total("harken_accepted_total") == 40)
        server.terminate()
        assert len(call.result().results) == 40
        assert server.wait_exit() == 0


def test_while_loading_health_says_not_serving_and_calls_get_unavailable(minilm_models: Path) -> None:
    with running_server(minilm_models, wait=False) as server:
        with grpc.insecure_channel(server.target) as channel:
            assert (
                health(channel).Check(health_pb2.HealthCheckRequest()).status
                == health_pb2.HealthCheckResponse.NOT_SERVING
            )
        with pytest.raises(grpc.RpcError) as error:
            stub(server.target).Encode(pb.EncodeRequest(inputs=ids([5])))
        loading = refused(error.value)
        assert (loading.code, loading.reason, loading.retry_after_s) == ("UNAVAILABLE", "SERVER_LOADING", 1.0)
        server.terminate()
        assert server.wait_exit() == 0


def test_what_kubernetes_injects_does_not_stop_the_start(tiny_models: Path) -> None:
    injected = {
        "HARKEN_SERVICE_HOST": "10.0.0.1", "HARKEN_SERVICE_PORT": "8001", "HARKEN_SERVICE_PORT_GRPC": "8001",
        "HARKEN_PORT": "tcp://10.0.0.1:8001", "HARKEN_PORT_8001_TCP": "tcp://10.0.0.1:8001",
        "HARKEN_PORT_8001_TCP_PROTO": "tcp", "HARKEN_PORT_8001_TCP_PORT": "8001",
        "HARKEN_PORT_8001_TCP_ADDR": "10.0.0.1",
    }  # fmt: skip
    with running_server(tiny_models, environment=injected) as server:
        assert stub(server.target).Encode(pb.EncodeRequest(inputs=ids([5]))).results[0].tokens == 1


def test_settings_come_from_the_environment_and_a_file(tiny_models: Path, tmp_path: Path) -> None:
    config = tmp_path / "harken.toml"
    config.write_text("max_inputs = 2\n")
    environment = {"HARKEN_CONFIG": str(config), "HARKEN_LANES": "3"}
    with running_server(tiny_models, environment=environment) as server:
        with pytest.raises(grpc.RpcError) as error:
            stub(server.target).Encode(pb.EncodeRequest(inputs=ids([5], [5], [5])))
        assert refused(error.value).message == "inputs: has 3 elements, over the limit of 2"
        assert server.total("harken_engine_busy_seconds_total", lane="2") >= 0
        assert [line["lanes"] for line in server.log if line["event"] == "device"] == [3]


def test_the_start_says_what_of_the_machine_is_usable(minilm_server: RunningServer) -> None:
    (machine,) = [line for line in minilm_server.log if line["event"] == "machine"]
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 0
    assert machine["cores_by"]
    assert machine["memory_by"]


def test_a_port_in_use_is_one_line_and_code_two(tiny_models: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        base = ["--models", str(tiny_models)]
        code, error = failed_start([*base, "--grpc-port", port, "--metrics-port", "0", "--http-port", "0"])
        assert code == 2
        assert f"cannot listen on 127.0.0.1:{port} for gRPC: Address already in use" in error
        assert len(error.splitlines()) == 1
        code, error = failed_start([*base, "--grpc-port", "0", "--metrics-port", port, "--http-port", "0"])
        assert code == 2
        assert f"cannot listen on 127.0.0.1:{port} for metrics" in error
        assert len(error.splitlines()) == 1


def test_a_second_server_cannot_take_the_port_of_a_first(tiny_server: RunningServer, tiny_models: Path) -> None:
    port = str(tiny_server.grpc_port)
    code, error = failed_start(
        ["--models", str(tiny_models), "--grpc-port", port, "--metrics-port", "0", "--http-port", "0"]
    )
    assert (code, error) == (
        2, f"harken-server: error: cannot listen on 127.0.0.1:{port} for gRPC: Address already in use",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--bogus"], {}, "unrecognized arguments: --bogus"),
        (["--lanes", "many"], {}, "lanes: Input should be a valid integer"),
        (
            [],
            {"HARKEN_LANE": "1"},
            "HARKEN_LANE in the environment is not a setting; did you mean lanes (HARKEN_LANES)?",
        ),
        (["--models", "absent"], {}, "absent: no such folder; `harken-export minilm --models absent`"),
        (["--device", "cuda"], {}, "CUDA: "),
    ],
)
def test_a_start_that_cannot_be_is_one_line_and_code_two(
    tiny_models: Path, options: list[str], environment: dict[str, str], message: str
) -> None:
    arguments = [*QUIET, *([] if "--models" in options else ["--models", str(tiny_models)]), *options]
    code, error = failed_start(arguments, environment)
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("flip", "model.onnx: sha256 .* corrupted, or changed after the export"),
        ("truncate", "model.onnx: sha256 .* corrupted, or changed after the export"),
        ("remove", "model.onnx: No such file or directory"),
        ("manifest", "bundle.json: not a bundle manifest"),
        ("format", "bundle.json: format 99 is not known to this server"),
        ("moved", "bundle.json: is tiny/1, but lies in tiny/2"),
        ("fifo", "model.onnx: is not a regular file"),
        ("loop", "model.onnx: is a link to itself"),
        ("twice", "bundle.json: names a file twice"),
        ("precision", "bundle.json: precision 'fp64' is none of fp32, fp16, int8"),
        ("architecture", "bundle.json: architecture 'gpt' is none of bert, lstm, gru"),
        ("lie", "says hidden_size 34, but its vectors have 32"),
        ("size", "model.onnx: sha256 .* corrupted, or changed after the export"),
        ("key", "bundle.json: not a bundle manifest: .* no field named"),
        ("escape", "bundle.json: '../../secret' is not a plain file name"),
        ("empty", "holds no bundle"),
    ],
)
def test_a_corrupted_bundle_is_refused_at_the_start(  # noqa: PLR0912 - one case for each damage
    tiny_models: Path, tmp_path: Path, damage: str, message: str
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    bundle = models / "tiny" / "1"
    model, manifest = bundle / "model.onnx", bundle / "bundle.json"
    content = json.loads(manifest.read_text())
    match damage:
        case "flip":
            flipped = bytearray(model.read_bytes())
            flipped[len(flipped) // 2] ^= 1
            model.write_bytes(flipped)
        case "truncate":
            model.write_bytes(model.read_bytes()[:-1])
        case "remove":
            model.unlink()
        case "manifest":
            manifest.write_text("{")
        case "format":
            manifest.write_text(json.dumps({**content, "format": 99}))
        case "moved":
            bundle.rename(models / "tiny" / "2")
        case "fifo":
            model.unlink()
            os.mkfifo(model)
        case "loop":
            model.unlink()
            model.symlink_to(model)
        case "twice":
            manifest.write_text(json.dumps({**content, "files": content["files"] * 2}))
        case "precision":
            manifest.write_text(json.dumps({**content, "precision": "fp64"}))
        case "architecture":
            manifest.write_text(json.dumps({**content, "architecture": "gpt"}))
        case "lie":
            manifest.write_text(json.dumps({**content, "hidden_size": 34}))
        case "size":
            model = next(file for file in content["files"] if file["name"] == "model.onnx")
            model["size_bytes"] = str(2**63)
            manifest.write_text(json.dumps(content))
        case "key":
            manifest.write_text(json.dumps({**content, "a\nnew line": 1}))
        case "escape":
            content["files"][0]["name"] = "../../secret"
            manifest.write_text(json.dumps(content))
        case "empty":
            shutil.rmtree(models / "tiny")
    code, error = failed_start([*QUIET, "--models", str(models)])
    assert code == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)
    assert len(error.splitlines()) == 1


def test_connections_over_the_limit_are_not_taken(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-connections", "2") as server:
        options = [("grpc.use_local_subchannel_pool", 1)]
        held = [grpc.insecure_channel(server.target, options) for _ in range(2)]
        for channel in held:
            grpc.channel_ready_future(channel).result(timeout=10)
        with grpc.insecure_channel(server.target, options) as third, pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(third).result(timeout=2)
        held[0].close()
        with grpc.insecure_channel(server.target, options) as third:
            grpc.channel_ready_future(third).result(timeout=20)
        held[1].close()


def test_the_help_of_the_installed_command_explains_itself() -> None:
    done = subprocess.run([BIN / "harken-server", "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "HARKEN_GRPC_PORT" in done.stdout
    assert "--drain-delay-s" in done.stdout


@pytest.mark.parametrize(("min_interval_s", "tolerated"), [("0.1", True), ("60", False)])
def test_keepalive_pings_are_tolerated_down_to_the_setting(
    tiny_models: Path, min_interval_s: str, tolerated: bool
) -> None:
    """An idle client that pings every 0.4 s keeps its connection, or is told to calm down."""
    options = [
        ("grpc.keepalive_time_ms", 400),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with running_server(tiny_models, "--min-ping-interval-s", min_interval_s) as server:
        states: list[grpc.ChannelConnectivity] = []
        with grpc.insecure_channel(server.target, options) as channel:
            channel.subscribe(states.append, try_to_connect=True)
            grpc.channel_ready_future(channel).result(timeout=10)
            time.sleep(4.0)
            lost = grpc.ChannelConnectivity.READY in states[:-1]
            assert lost is not tolerated


def test_a_burst_that_a_drain_meets_ends_in_vectors_or_in_a_status_to_retry_by(tiny_models: Path) -> None:
    """Also the calls that had arrived and were not picked up yet."""
    with running_server(tiny_models) as server:
        encoder = stub(server.target)
        calls = [
            encoder.Encode.future(pb.EncodeRequest(inputs=ids(sequence)), timeout=60)
            for sequence in different(600, 100)
        ]
        server.terminate()
        outcomes = set()
        for call in calls:
            try:
                assert call.result().results[0].HasField("embedding")
                outcomes.add(("OK", ""))
            except grpc.RpcError as error:
                answer = refused(error)
                outcomes.add((answer.code, answer.reason))
                assert answer.retry_after_s is not None
        assert outcomes <= {("OK", ""), ("UNAVAILABLE", "SERVER_DRAINING")}
        assert server.wait_exit() == 0
