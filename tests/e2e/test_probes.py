"""The listener for probes: plain text, no keys, health and nothing else, and it outlives the others."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harken.v1 import encoder_pb2 as pb
from support.calls import different, ids, stub
from support.server import RunningServer, failed_start, running_server

READINESS, LIVENESS = "", "liveness"


@contextmanager
def probe(server: RunningServer) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.health_port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


def said(health: Any, service: str) -> str:
    status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def test_a_server_that_loads_is_live_and_not_ready_and_then_both(minilm_models: Path) -> None:
    # Without what is kept of the last start it measures for seconds, and loads until then.
    with running_server(minilm_models, "--state-dir", os.devnull, wait=False) as server, probe(server) as health:
        assert (said(health, LIVENESS), said(health, READINESS)) == ("SERVING", "NOT_SERVING")
        server.wait_until("ready", lambda: said(health, READINESS) == "SERVING", timeout_s=120)
        assert said(health, LIVENESS) == "SERVING"


def test_in_a_drain_it_is_not_ready_at_once_and_live_until_the_last_answer_has_left(minilm_models: Path) -> None:
    with running_server(minilm_models, "--warmup-s", "1") as server, probe(server) as health:
        call = stub(server.target).Encode.future(pb.EncodeRequest(inputs=ids(*different(64, 256))), timeout=120)
        server.wait_until("the call", lambda: server.total("harken_accepted_total") == 64)
        watching = health.Watch(health_pb2.HealthCheckRequest(service=LIVENESS))
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        server.terminate()
        server.wait_until("NOT_SERVING", lambda: said(health, READINESS) == "NOT_SERVING")
        lives = []
        while not call.done():
            lives.append(said(health, LIVENESS))
            time.sleep(0.01)
        assert set(lives) == {"SERVING"}
        assert len(call.result().results) == 64
        # Its Watch has heard of no other state, and ends with the process.
        with pytest.raises(grpc.RpcError):
            next(watching)
        assert server.wait_exit() == 0
        assert server.log[-1]["event"] == "stopped"


def test_nothing_else_is_served_there(tiny_server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub(f"127.0.0.1:{tiny_server.health_port}").Encode(pb.EncodeRequest(inputs=ids([1])), timeout=10)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with probe(tiny_server) as health, pytest.raises(grpc.RpcError) as error:
        said(health, "tiny")
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_its_port_in_use_is_one_line_and_code_two(tiny_server: RunningServer, tiny_models: Path) -> None:
    port = str(tiny_server.health_port)
    others = ("--grpc-port", "0", "--metrics-port", "0", "--http-port", "0")
    code, error = failed_start(["--models", str(tiny_models), *others, "--health-port", port])
    assert (code, error) == (
        2, f"harken-server: error: cannot listen on 127.0.0.1:{port} for health: Address already in use",
    )  # fmt: skip


def test_idle_connections_keep_no_probe_out_for_long(tiny_models: Path) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with running_server(tiny_models) as server, ExitStack() as stack:
        for _ in range(64):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", server.health_port), timeout=30))
            idle.sendall(preface)
        server.wait_until("a place", lambda: answers(server))


def answers(server: RunningServer) -> bool:
    """Whether a probe that connects now hears that requests are taken."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.health_port}", options) as channel:
        try:
            return said(health_pb2_grpc.HealthStub(channel), READINESS) == "SERVING"
        except grpc.RpcError:
            return False


def test_calls_of_a_connection_are_no_more_than_a_limit(tiny_server: RunningServer) -> None:
    with probe(tiny_server) as health:
        watches = [health.Watch(health_pb2.HealthCheckRequest(service=LIVENESS), timeout=60) for _ in range(16)]
        assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.SERVING] * 16
        with pytest.raises(grpc.RpcError) as error:
            health.Check(health_pb2.HealthCheckRequest(), timeout=0.5)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert answers(tiny_server)
        watches.pop().cancel()
        assert said(health, READINESS) == "SERVING"
