"""What one gRPC connection may hold, and for how long: its streams, its metadata, its silence."""

from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
from harken.v1 import encoder_pb2 as pb
from harken.v1.encoder_pb2_grpc import EncoderStub
from support.calls import ids
from support.server import RunningServer, running_server


def connection(server: RunningServer) -> grpc.Channel:
    """One that no other channel to the same server shares."""
    return grpc.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)])


def test_streams_over_the_limit_of_a_connection_wait_in_their_client(tiny_models: Path) -> None:
    one = pb.EncodeStreamRequest(input=pb.StreamInput(input=ids([7])[0]))
    with (
        running_server(tiny_models, "--max-streams-per-connection", "2") as server,
        connection(server) as channel,
        connection(server) as other,
    ):
        streams = []
        for _ in range(2):
            inputs: SimpleQueue[pb.EncodeStreamRequest | None] = SimpleQueue()
            inputs.put(one)
            stream = EncoderStub(channel).EncodeStream(iter(inputs.get, None), timeout=60)
            assert next(stream).result.HasField("embedding")
            streams.append((inputs, stream))
        waits = EncoderStub(channel).Encode.future(pb.EncodeRequest(inputs=ids([3])), timeout=60)
        with pytest.raises(grpc.FutureTimeoutError):
            waits.result(timeout=0.5)
        assert EncoderStub(other).Encode(pb.EncodeRequest(inputs=ids([3])), timeout=30).results
        for inputs, stream in streams:
            inputs.put(None)
            assert not list(stream)
        assert waits.result(timeout=30).results


def test_an_idle_connection_is_closed_and_made_again(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-connection-idle-s", "1") as server, connection(server) as channel:
        seen: list[grpc.ChannelConnectivity] = []
        channel.subscribe(seen.append)
        for _ in range(2):
            seen.clear()
            assert EncoderStub(channel).Encode(pb.EncodeRequest(inputs=ids([3])), timeout=30).results
            server.wait_until("the end of the connection", lambda: seen[-1:] == [grpc.ChannelConnectivity.IDLE])


def test_metadata_over_the_limit_is_refused_and_the_connection_goes_on(tiny_server: RunningServer) -> None:
    with connection(tiny_server) as channel:
        encoder, request = EncoderStub(channel), pb.EncodeRequest(inputs=ids([3]))
        with pytest.raises(grpc.RpcError) as error:
            encoder.Encode(request, metadata=(("x-much", "m" * 20_000),), timeout=30)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert encoder.Encode(request, metadata=(("x-some", "s" * 4_000),), timeout=30).results
