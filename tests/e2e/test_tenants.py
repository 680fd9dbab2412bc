"""Tenants: believed only where the server is told to, served by their weights, and apart from one another."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from harken.oip import inference_pb2, inference_pb2_grpc
from harken.v1 import encoder_pb2 as pb
from harken.v1 import encoder_pb2_grpc
from support.calls import ids, refused, stub
from support.server import RunningServer, running_server
from support.web import post


@pytest.fixture(scope="module")
def server(tiny_models: Path) -> Iterator[RunningServer]:
    with running_server(tiny_models, "--trust-tenants") as running:
        yield running


def named(name: str) -> tuple[tuple[str, str]]:
    return (("harken-tenant", name),)


def tokens_of(server: RunningServer, name: str) -> float:
    return server.total("harken_tenant_tokens_total", tenant=name)


EMBEDDINGS = "/v1/embeddings"


async def test_two_tenants_that_ask_for_more_than_there_is_get_tokens_by_their_weights(minilm_models: Path) -> None:
    """One sends long sequences and the other short ones: it is tokens that count, not requests."""
    weights = ("--trust-tenants", "--tenant-weights", "three=3")
    with running_server(minilm_models, *weights, "--lanes", "1", "--no-wide-lane") as server:
        random = np.random.default_rng(1)

        async def keep_asking(encoder: "encoder_pb2_grpc.EncoderAsyncStub", name: str, length: int) -> None:
            while True:
                sequences = random.integers(999, 30000, (64, length)).tolist()
                await encoder.Encode(pb.EncodeRequest(inputs=ids(*sequences)), metadata=named(name))

        def served() -> dict[str, float]:
            return {name: tokens_of(server, name) for name in ("one", "three")}

        async with grpc.aio.insecure_channel(server.target) as channel:
            encoder: encoder_pb2_grpc.EncoderAsyncStub = encoder_pb2_grpc.EncoderStub(channel)
            lengths = {"one": 8, "three": 60}
            asking = [asyncio.create_task(keep_asking(encoder, *asked)) for asked in lengths.items() for _ in range(6)]
            await until(lambda: min(served().values()) > 1000)
            before = served()
            await until(lambda: sum(served().values()) > sum(before.values()) + 20_000)
            after = served()
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
    assert (after["three"] - before["three"]) / (after["one"] - before["one"]) == pytest.approx(3.0, rel=0.25)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - it is another process that changes
        await asyncio.sleep(0.1)


def test_every_edge_takes_the_name_and_the_same_tokens_count_for_who_sent_them(server: RunningServer) -> None:
    stub(server.target).Encode(pb.EncodeRequest(inputs=ids([1, 2, 3])), metadata=named("by-grpc"))
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="input_ids", datatype="INT64", shape=[1, 4])
    tensor.contents.int64_contents.extend([1, 2, 3, 4])
    with grpc.insecure_channel(server.target) as channel:
        inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
            inference_pb2.ModelInferRequest(model_name="tiny", inputs=[tensor]), metadata=named("by-oip")
        )
    assert post(server, EMBEDDINGS, {"input": [1, 2, 3, 4, 5], "model": "tiny"}, dict(named("by-http"))).status == 200
    assert [tokens_of(server, name) for name in ("by-grpc", "by-oip", "by-http")] == [3.0, 4.0, 5.0]


@pytest.mark.parametrize("name", ["t" * 65, "two words"])
def test_what_is_no_name_is_refused_by_the_metadatas_name(server: RunningServer, name: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub(server.target).Encode(pb.EncodeRequest(inputs=ids([1])), metadata=named(name))
    told = refused(error.value)
    assert (told.code, told.reason, told.fields) == ("INVALID_ARGUMENT", "BAD_VALUE", ("harken-tenant",))
    assert "1 to 64 printable ASCII characters" in told.message
    replied = post(server, EMBEDDINGS, {"input": [1], "model": "tiny"}, dict(named(name)))
    assert (replied.status, replied.json["error"]["param"]) == (400, "harken-tenant")


@pytest.mark.parametrize("second", ["one", "two", ""])
def test_two_names_in_a_call_are_refused_by_every_edge(server: RunningServer, second: str) -> None:
    both = (*named("one"), *named(second))
    with pytest.raises(grpc.RpcError) as error:
        stub(server.target).Encode(pb.EncodeRequest(inputs=ids([1])), metadata=both)
    assert refused(error.value).fields == ("harken-tenant",)
    assert f"is one, {second}, which is not" in refused(error.value).message
    replied = post(server, EMBEDDINGS, {"input": [1], "model": "tiny"}, both)
    assert (replied.status, replied.json["error"]["param"]) == (400, "harken-tenant")
    assert f"is one, {second}, which is not" in replied.json["error"]["message"]


def test_the_65th_tenant_shares_with_the_nameless(tiny_models: Path) -> None:
    with running_server(tiny_models, "--trust-tenants", "--tenant-weights", "t68=2,never=1") as server:
        encoder = stub(server.target)
        for number in range(70):
            encoder.Encode(pb.EncodeRequest(inputs=ids([5] * 10)), metadata=named(f"t{number}"))
        labels = [sample for sample in server.metrics() if sample.startswith("harken_tenant_tokens_total")]
        # Those with weights have places whether they come or not: 62 more are left.
        assert len(labels) == 64
        assert tokens_of(server, "t68") == 10.0
        assert tokens_of(server, "") == 70.0
        assert any(line["event"] == "later tenants have no shares of their own" for line in server.log)


def test_names_are_not_even_read_unless_they_are_trusted(tiny_server: RunningServer) -> None:
    stub(tiny_server.target).Encode(pb.EncodeRequest(inputs=ids([1])), metadata=named("two words"))
    assert [sample for sample in tiny_server.metrics() if sample.startswith("harken_tenant_tokens_total")] == [
        'harken_tenant_tokens_total{tenant=""}'
    ]
