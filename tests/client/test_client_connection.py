"""Who repeats what, how often and when; several servers behind one name; whom a call is from."""

import asyncio
import subprocess
import sys
from itertools import pairwise

import grpc
import numpy as np
import pytest
from client.bad_gateway import bad_gateway
from client.fake_server import FakeEncoder, Refusal, free_port, serving, until, vector
from harken_client import AsyncClient, Overloaded, Unavailable

DIES_WITHIN_ITS_ANSWER = """
import asyncio, os, sys, grpc

async def begin(_, context):
    await context.send_initial_metadata(())
    await asyncio.sleep(0.1)  # until it has left
    os._exit(0)

async def main():
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    methods = {"Encode": grpc.unary_unary_rpc_method_handler(begin)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("harken.v1.Encoder", methods),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    print("up", flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""

SILENT = Refusal(grpc.StatusCode.UNAVAILABLE, "no word about later")
PATIENT = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "BACKLOG_FULL", retry_after_s=0.1, pushback_ms=100)


def gaps_s(fake: FakeEncoder) -> list[float]:
    return [after - before for before, after in pairwise(fake.called_s)]


def behind_one_name(*targets: str) -> str:
    return f"ipv4:{','.join(targets)}"


@pytest.mark.parametrize("refusals", [3, 4, 11], ids=["grpc_alone", "one_more_round", "three_rounds"])
async def test_grpcs_attempts_and_ours_add_up_and_each_keeps_the_servers_pause(
    refusals: int, fake: FakeEncoder, target: str
) -> None:
    fake.refuse_calls = [PATIENT] * refusals
    async with AsyncClient(target) as client:
        np.testing.assert_array_equal(await client.encode(["a"]), [vector("a")])
    assert len(fake.calls) == refusals + 1
    # gRPC counts the pause from the moment at which the refusal arrived, and rounds it to milliseconds.
    assert min(gaps_s(fake)) >= 0.1 - 0.005


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_without_the_servers_word_a_call_is_made_so_many_times(
    code: grpc.StatusCode, fake: FakeEncoder, target: str
) -> None:
    fake.refuse_calls = [Refusal(code)] * 9
    async with AsyncClient(target, max_attempts=3) as client:
        with pytest.raises((Unavailable, Overloaded)):
            await client.encode(["a"])
    assert len(fake.calls) == 3


async def test_a_body_over_256_kib_is_repeated_too(fake: FakeEncoder, target: str) -> None:
    fake.refuse_calls = [SILENT, SILENT]
    text = "word " * 400_000
    async with AsyncClient(target) as client:
        np.testing.assert_array_equal(await client.encode([text], truncate=True), [vector(text)])
    assert [len(call.inputs[0].text) for call in fake.calls] == [2_000_000] * 3


async def test_every_method_that_answers_once_is_repeated(fake: FakeEncoder) -> None:
    port = free_port()
    async with AsyncClient(f"127.0.0.1:{port}", max_attempts=5) as client:
        calls = asyncio.gather(
            client.encode(["a"]), client.similarity("a", ["b"]), client.models(), client.model(),
            client.explain_batches(), client.health(),
        )  # fmt: skip
        await asyncio.sleep(0.1)
        assert not calls.done()
        with serving(fake, port):
            await calls


async def test_a_call_whose_connection_breaks_before_the_answer_is_made_again(fake: FakeEncoder) -> None:
    fake.delay_s = 30
    successor = FakeEncoder()
    port = free_port()
    async with AsyncClient(f"127.0.0.1:{port}", max_attempts=5) as client:
        with serving(fake, port):
            pending = asyncio.create_task(client.encode(["a"]))
            await until(lambda: bool(fake.calls))
        with serving(successor, port):
            np.testing.assert_array_equal(await pending, [vector("a")])
    assert (len(fake.calls), len(successor.calls)) == (1, 1)


async def test_a_call_whose_answer_had_begun_when_the_server_died_is_made_again(fake: FakeEncoder) -> None:
    port = free_port()
    command = (sys.executable, "-c", DIES_WITHIN_ITS_ANSWER, str(port))
    dying = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert dying.stdout is not None
    assert await dying.stdout.readline() == b"up\n"
    async with AsyncClient(f"127.0.0.1:{port}", wait_for_ready=True) as client:
        answer = asyncio.create_task(client.encode(["a"]))
        assert await dying.wait() == 0
        with serving(fake, port):
            np.testing.assert_array_equal(await answer, [vector("a")])


async def test_a_call_that_a_proxy_has_no_server_for_is_made_again() -> None:
    for attempts in (3, 1):
        with bad_gateway() as gateway:
            async with AsyncClient(gateway.target, max_attempts=attempts) as client:
                with pytest.raises(Unavailable, match="502"):
                    await client.encode(["a"])
            # gRPC makes attempts of its own where it reads the head and the page at once.
            assert attempts <= gateway.calls <= attempts**2


async def test_one_attempt_does_not_outlive_its_connection(fake: FakeEncoder) -> None:
    fake.delay_s = 30
    with serving(fake) as target:
        client = AsyncClient(target, max_attempts=1)
        pending = asyncio.create_task(client.encode(["a"]))
        await until(lambda: bool(fake.calls))
    with pytest.raises(Unavailable):
        await pending
    await client.close()
    assert len(fake.calls) == 1


async def test_calls_are_spread_evenly_over_all_addresses(fake: FakeEncoder) -> None:
    other = FakeEncoder()
    with serving(fake) as first, serving(other) as second:
        async with AsyncClient(behind_one_name(first, second)) as client:
            for _ in range(1000):
                await client.encode(["both connections are up"])
                if fake.calls and other.calls:
                    break
            before = len(fake.calls), len(other.calls)
            for _ in range(100):
                await client.encode(["a"])
    assert (len(fake.calls) - before[0], len(other.calls) - before[1]) == (50, 50)


async def test_an_address_where_nobody_listens_costs_no_call(fake: FakeEncoder, target: str) -> None:
    async with AsyncClient(behind_one_name(f"127.0.0.1:{free_port()}", target), max_attempts=1) as client:
        await client.wait_ready()
        assert await client.health() == "SERVING"
        for _ in range(100):
            await client.encode(["a"])
    assert len(fake.calls) == 100


async def test_the_tenant_is_told_with_every_call_and_stream(fake: FakeEncoder, target: str) -> None:
    async with AsyncClient(target, tenant="acme") as client:
        await client.wait_ready()
        await client.health()
        await client.encode(["a"])
        await client.similarity("a", ["b"])
        await client.models()
        await client.model()
        await client.explain_batches()
        assert len([result async for result in client.encode_stream(["a"])]) == 1
    assert fake.tenants == dict.fromkeys(
        [
            "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check", "/harken.v1.Encoder/Encode",
            "/harken.v1.Encoder/Similarity", "/harken.v1.Encoder/ListModels", "/harken.v1.Encoder/GetModel",
            "/harken.v1.Debug/ExplainBatches", "/harken.v1.Encoder/EncodeStream",
        ],
        "acme",
    )  # fmt: skip


async def test_without_a_tenant_none_is_told(fake: FakeEncoder, target: str) -> None:
    async with AsyncClient(target) as client:
        await client.encode(["a"])
    assert fake.tenants == {"/harken.v1.Encoder/Encode": ""}


@pytest.mark.parametrize("tenant", ["a b", "ä", "a\n", "x" * 65])
def test_a_tenant_that_no_metadata_may_hold_is_refused(tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant is 1 to 64 printable ASCII characters without spaces, not '"):
        AsyncClient(tenant=tenant)


@pytest.mark.parametrize("max_attempts", [0, 6])
def test_more_attempts_than_grpc_makes_are_refused(max_attempts: int) -> None:
    with pytest.raises(ValueError, match=f"max_attempts is between 1 and 5, not {max_attempts}"):
        AsyncClient(max_attempts=max_attempts)
