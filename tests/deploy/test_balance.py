"""Load over several servers, for real on loopback: by the client, by nginx and by Envoy.

Three servers have one port on 127.0.0.1, .2 and .3, as pods have. Nothing here depends on how fast they are.
"""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from support.callers import CALLERS, Ends, calling
from support.names import names
from support.server import BIN, RunningServer, running_server
from support.tools import REPOSITORY, missing, tool

ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
PROXIES = REPOSITORY / "deploy" / "proxies"
XDS = REPOSITORY / "build" / "deploy" / "xds"
FAIR = 0.15
"""How far a server's share may be from the mean."""
MEASURED = 600
"""Calls that shares are taken of."""
AGE_S = 2.0

Start = Callable[[str], RunningServer]


def common_port() -> int:
    """One that is free on all of the addresses."""
    while True:
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in ADDRESSES]
            port = 0
            try:
                for one, address in zip(sockets, ADDRESSES, strict=True):
                    one.bind((address, port))
                    port = one.getsockname()[1]
            except OSError:
                continue
            return port


@contextmanager
def starting(models: Path, port: int, *options: str) -> Iterator[Start]:
    """What starts a server on an address; they end with this."""
    with ExitStack() as stack:

        def start(address: str) -> RunningServer:
            arguments = ("--listen", address, "--grpc-port", str(port), "--warmup-s", "0.5", "--lanes", "1", *options)
            return stack.enter_context(running_server(models, *arguments))

        yield start


def answered(server: RunningServer) -> float:
    return server.total("harken_requests_total", method="Encode", code="OK")


async def shares(servers: Sequence[RunningServer], ends: Ends) -> list[float]:
    """Of the next calls, each server's over the mean."""
    before = [answered(server) for server in servers]
    await ends.more(MEASURED)
    counts = [answered(server) - count for server, count in zip(servers, before, strict=True)]
    return [count * len(servers) / sum(counts) for count in counts]


def check_fair(found: Sequence[float]) -> None:
    assert all(abs(share - 1.0) <= FAIR for share in found), found


def kill(server: RunningServer) -> None:
    server.process.kill()
    server.wait_exit()


def told(found: Sequence[float]) -> str:
    return "shares " + " ".join(f"{share:.2f}" for share in found)


async def test_the_client_spreads_calls_over_all_addresses_of_a_name_and_loses_none_to_a_killed_server(
    tiny_models: Path, record_property: Callable[[str, object], None]
) -> None:
    port = common_port()
    with starting(tiny_models, port) as start, names(*ADDRESSES) as dns:
        servers = [start(address) for address in ADDRESSES]
        async with calling(dns.target(port)) as ends:
            await ends.more(CALLERS)
            found = await shares(servers, ends)
            check_fair(found)
            kill(servers[0])
            await ends.more(MEASURED)
            check_fair(await shares(servers[1:], ends))
    assert (ends.failed, ends.wrong) == ({}, 0)
    record_property("found", f"{told(found)}; one killed: 0 of {ends.answered} calls lost")


async def test_without_retries_a_killed_server_costs_no_more_than_what_it_had_in_flight(
    tiny_models: Path, record_property: Callable[[str, object], None]
) -> None:
    port = common_port()
    with starting(tiny_models, port) as start, names(*ADDRESSES) as dns:
        servers = [start(address) for address in ADDRESSES]
        async with calling(dns.target(port), max_attempts=1) as ends:
            await ends.more(MEASURED)
            kill(servers[0])
            await ends.more(MEASURED)
    assert all(told.startswith("UNAVAILABLE") for told in ends.failed), ends.failed
    assert ends.failed.total() <= CALLERS
    assert ends.wrong == 0
    record_property("found", f"{ends.failed.total()} lost, with {CALLERS} in flight over 3 servers")


async def test_a_new_server_has_its_share_once_the_connections_have_aged(
    tiny_models: Path, record_property: Callable[[str, object], None]
) -> None:
    port = common_port()
    with (
        starting(tiny_models, port, "--max-connection-age-s", str(AGE_S)) as start,
        names(*ADDRESSES[:2]) as dns,
    ):
        servers = [start(address) for address in ADDRESSES[:2]]
        async with calling(dns.target(port)) as ends:
            await ends.more(MEASURED)
            new = await asyncio.to_thread(start, ADDRESSES[2])
            dns.addresses.append(ADDRESSES[2])
            began_s = time.monotonic()
            await ends.until("work for the new server", lambda: answered(new) > 0)
            took_s = time.monotonic() - began_s
            found = await shares([*servers, new], ends)
            check_fair(found)
    # Connections went of age under the calls all the while, and none was lost.
    assert (ends.failed, ends.wrong) == ({}, 0)
    record_property("found", f"first call after {took_s:.1f} s at an age of {AGE_S:g} s, {told(found)}, 0 calls lost")


@contextmanager
def proxy(kind: str, port: int, tmp_path: Path) -> Iterator[str]:
    """nginx or Envoy with the file of deploy/proxies, on free ports, before the three addresses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    if kind == "nginx":
        config = tmp_path / "nginx.conf"
        command = [tool("nginx"), "-p", str(tmp_path), "-c", str(config), "-e", "stderr", "-g", "daemon off;"]
    else:
        config = tmp_path / "envoy.yaml"
        command = [tool("envoy"), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
    content = (PROXIES / config.name).read_text()
    assert content.count("8001") == 3
    assert content.count("8080") == 1
    config.write_text(content.replace("8001", str(port)).replace("8080", str(own)))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        channel = grpc.insecure_channel(f"127.0.0.1:{own}")
        try:
            grpc.channel_ready_future(channel).result(timeout=30)
        except grpc.FutureTimeoutError:
            raise AssertionError(f"{kind} does not listen: {(tmp_path / 'log').read_text()}") from None
        finally:
            channel.close()
        yield f"127.0.0.1:{own}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("kind", ["nginx", "envoy"])
async def test_a_proxy_spreads_calls_and_none_is_lost_to_aging_connections_or_a_killed_server(
    kind: str, tiny_models: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    tool(kind)
    port = common_port()
    with ExitStack() as stack:
        start = stack.enter_context(starting(tiny_models, port, "--max-connection-age-s", str(AGE_S)))
        servers = [start(address) for address in ADDRESSES]
        target = stack.enter_context(proxy(kind, port, tmp_path))
        async with calling(target, wait_for_ready=True) as ends:
            began_s = time.monotonic()
            await ends.more(CALLERS)
            found = await shares(servers, ends)
            check_fair(found)
            # Long enough that every connection to a server has gone of age.
            await ends.until("old connections", lambda: time.monotonic() > began_s + 1.2 * AGE_S)
            kill(servers[0])
            await ends.more(MEASURED)
            check_fair(await shares(servers[1:], ends))
    assert (ends.failed, ends.wrong) == ({}, 0)
    record_property("found", f"{told(found)}; one killed: 0 of {ends.answered} calls lost")


DECODE = """
import base64, json, sys
sys.path.append(sys.argv[1])
from xds.data.orca.v3 import orca_load_report_pb2
report = orca_load_report_pb2.OrcaLoadReport.FromString(base64.b64decode(sys.argv[2] + "=="))
print(json.dumps({field.name: value for field, value in report.ListFields()}))
"""


def test_the_load_in_the_trailers_is_an_orca_load_report_by_its_own_definition(
    tiny_models: Path, record_property: Callable[[str, object], None]
) -> None:
    if not (XDS / "xds").is_dir():
        missing("xds-protos is not there: tests/deploy/setup.sh puts it there")
    request = json.dumps({"inputs": [{"token_ids": {"ids": [7, 8]}}]})
    with running_server(tiny_models) as server:
        grpcurl = [str(BIN / "grpcurl"), "-plaintext", "-v", "-d", request, server.target, "harken.v1.Encoder/Encode"]
        said = [subprocess.run(grpcurl, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    trailers = re.findall(r"^endpoint-load-metrics-bin: (\S+)$", said[-1], re.MULTILINE)
    assert len(trailers) == 1
    # In a process of its own: xds-protos has copies of other packages' messages.
    decoded = subprocess.run(
        [sys.executable, "-c", DECODE, str(XDS), trailers[0]], capture_output=True, text=True, check=True
    )
    report = json.loads(decoded.stdout)
    assert set(report) == {"rps_fractional", "application_utilization"}
    assert 0 < report["rps_fractional"] < 3
    assert 0 < report["application_utilization"] < 0.5
    record_property("found", f"{report}")
