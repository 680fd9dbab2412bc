"""The command of the image's health check: `python -m harken_server.health`.

It asks the health port of a server on this machine, as a Kubernetes probe does, for where there is only a command to
run. It is started again and again, so it imports as little as it can.
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from ipaddress import ip_address
from os import environ
from typing import Any, Final, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_READINESS: Final = ""
_LIVENESS: Final = "liveness"

# A proxy of the environment is for what lies beyond this machine.
_OPTIONS: Final = (("grpc.enable_http_proxy", 0),)


def ask(host: str, port: int, service: str, timeout_s: float) -> str:
    """SERVING, NOT_SERVING, or the status code with which there was no answer."""
    with grpc.insecure_channel(f"{host}:{port}", options=_OPTIONS) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _host(listen: str) -> str:
    """Where a server that listens there is reached from its own machine."""
    try:
        address = ip_address(listen)
    except ValueError:
        return listen
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return str(address) if address.version == 4 else f"[{address}]"


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ArgumentTypeError(f"a port is between 1 and 65535, not {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Print the answer. Exits with 0 if it is SERVING, with 1 if it is not, with 2 after wrong usage."""
    parser = ArgumentParser(
        prog="python -m harken_server.health",
        description="Ask a harken server on this machine whether it takes requests. Ends with 0 only if it does.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--port", type=_port, default=environ.get("HARKEN_HEALTH_PORT") or "8003",
        help="its health_port; by default HARKEN_HEALTH_PORT, else 8003",
    )  # fmt: skip
    parser.add_argument(
        "--listen", default=environ.get("HARKEN_LISTEN") or "127.0.0.1",
        help="its `listen`; by default HARKEN_LISTEN, else 127.0.0.1",
    )  # fmt: skip
    parser.add_argument("--liveness", action="store_true", help="ask whether the process is well, loading or draining")
    parser.add_argument("--timeout-s", type=float, default=2.0, help="longest wait for the answer, in seconds")
    given = parser.parse_args(arguments)
    status = ask(_host(given.listen), given.port, _LIVENESS if given.liveness else _READINESS, given.timeout_s)
    print(status)
    sys.exit(0 if status == "SERVING" else 1)


if __name__ == "__main__":
    main()
