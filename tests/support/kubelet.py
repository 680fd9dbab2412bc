"""Probes as the kubelet does them: grpc.health.v1 at the pod's own address, by the numbers of the manifest."""

import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.manifests import Manifest


def passes(ip: str, probe: Manifest) -> bool:
    """One probe, over a connection of its own."""
    target = f"{ip}:{probe['grpc']['port']}"
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        try:
            answer = health.Check(request, timeout=probe.get("timeoutSeconds", 1))
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def wait_until_started(ip: str, probe: Manifest, lives: Callable[[], bool]) -> float:
    """Seconds until the startup probe passes. Fails where the kubelet would kill the container, or if it ended."""
    started_s = time.monotonic()
    for _ in range(probe.get("failureThreshold", 3)):
        begun_s = time.monotonic()
        if passes(ip, probe):
            return time.monotonic() - started_s
        assert lives(), "it ended before it was started"
        time.sleep(max(probe.get("periodSeconds", 10) - (time.monotonic() - begun_s), 0))
    raise AssertionError("the kubelet would have killed it")
