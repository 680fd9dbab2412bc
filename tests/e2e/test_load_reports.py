"""ORCA load reports in the trailers of unary answers, and gRPC's own balancer that weighs servers by them."""

import base64
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from harken.v1 import encoder_pb2 as pb
from harken.v1 import encoder_pb2_grpc, load_report_pb2
from support.calls import different, ids, stub
from support.server import BIN, RunningServer, running_server

ENCODE = "harken.v1.Encoder/Encode"
ONE = {"inputs": [{"token_ids": {"ids": [7, 8]}}]}
WEIGHTED = {"blackoutPeriod": "0s", "weightUpdatePeriod": "0.1s"}


def trailers(server: RunningServer, method: str, request: object) -> dict[str, str]:
    """Of one call, as a client of another language sees them: gRPC's C core keeps the report from Python's."""
    command = [str(BIN / "grpcurl"), "-plaintext", "-v", "-d", json.dumps(request), server.target, method]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    section = said.split("Response trailers received:\n")[1].split("\nSent ")[0]
    return dict(re.findall(r"^([\w-]+): (.*)$", section, re.MULTILINE))


def report(server: RunningServer, method: str = ENCODE, request: object = ONE) -> load_report_pb2.LoadReport:
    value = trailers(server, method, request)["endpoint-load-metrics-bin"]
    return load_report_pb2.LoadReport.FromString(base64.b64decode(value + "=="))


@contextmanager
def load(server: RunningServer, sequences: list[list[int]]) -> Iterator[None]:
    """The same call over and over, by four callers."""
    stop = threading.Event()
    request = pb.EncodeRequest(inputs=ids(*sequences))

    def call() -> None:
        encoder = stub(server.target)
        while not stop.is_set():
            encoder.Encode(request)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        stop.set()
        for caller in callers:
            caller.join()


def test_utilization_and_rates_rise_under_load(tiny_models: Path) -> None:
    with running_server(tiny_models, "--lanes", "1", "--no-share-identical") as server:
        idle = report(server)
        assert idle.application_utilization < 0.1
        assert idle.rps_fractional < 10
        assert idle.eps == 0.0
        with load(server, different(64, 128)):
            server.wait_until("a load", lambda: report(server).application_utilization > 0.2)
            busy = report(server)
        assert busy.rps_fractional > 10 * idle.rps_fractional
        # Others see the same load.
        assert report(server, "inference.GRPCInferenceService/ServerLive", {}).application_utilization > 0.1


def test_refusals_count_as_errors_and_errors_have_a_report_too(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-backlog-sequences", "2") as server:
        three = {"inputs": [{"token_ids": {"ids": [7, 8 + number]}} for number in range(3)]}
        server.wait_until("errors", lambda: report(server, ENCODE, three).eps > 0)
        refused = report(server, ENCODE, three)
        # Nothing else was asked, and nothing was computed.
        assert refused.rps_fractional == refused.eps > 0
        assert report(server).rps_fractional > 0


def test_there_are_none_in_streams_and_none_if_turned_off(tiny_models: Path) -> None:
    one = {"input": {"input": {"token_ids": {"ids": [7, 8]}}}}
    with running_server(tiny_models) as server:
        assert set(trailers(server, "harken.v1.Encoder/EncodeStream", one)) == {"x-request-id"}
        assert set(trailers(server, ENCODE, ONE)) == {"x-request-id", "endpoint-load-metrics-bin"}
    with running_server(tiny_models, "--no-load-reports") as server:
        assert set(trailers(server, ENCODE, ONE)) == {"x-request-id"}


@pytest.mark.parametrize("policy", ["weighted_round_robin", "round_robin"])
def test_grpcs_weighted_round_robin_sends_less_to_the_server_that_is_loaded(tiny_models: Path, policy: str) -> None:
    options = ("--lanes", "1", "--no-share-identical")
    with (
        running_server(tiny_models, *options) as free,
        running_server(tiny_models, *options) as loaded,
        # Each of these is as much work as dozens of the calls that are balanced.
        load(loaded, different(64, 128)),
    ):
        config = {"loadBalancingConfig": [{policy: WEIGHTED if policy == "weighted_round_robin" else {}}]}
        target = f"ipv4:{free.target},{loaded.target}"
        channel = grpc.insecure_channel(target, [("grpc.service_config", json.dumps(config))])
        encoder = encoder_pb2_grpc.EncoderStub(channel)

        def share_of_loaded() -> float:
            before = free.total("harken_requests_total", method="Encode")
            for _ in range(200):
                encoder.Encode(pb.EncodeRequest(inputs=ids([7, 8])))
            return 1.0 - (free.total("harken_requests_total", method="Encode") - before) / 200

        if policy == "round_robin":
            assert share_of_loaded() == pytest.approx(0.5, abs=0.02)
        else:
            loaded.wait_until("weights", lambda: share_of_loaded() < 0.35, 60)
