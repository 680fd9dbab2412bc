"""What one gRPC connection may hold, and for how long: its streams, its metadata, its silence."""

import socket
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


def field(name: bytes, value: bytes) -> bytes:
    """As HPACK has it that keeps nothing (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Of HTTP/2 (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@pytest.mark.parametrize("path", [b"/\xff", b"/harken.v1.Encoder/Encode\xff", b"\xc3\x28", b"/caf\xc3\xa9/x"])
def test_a_path_that_is_no_text_is_an_unknown_method_and_others_go_on(tiny_server: RunningServer, path: bytes) -> None:
    inputs: SimpleQueue[pb.EncodeStreamRequest | None] = SimpleQueue()
    one = pb.EncodeStreamRequest(input=pb.StreamInput(input=ids([7])[0]))
    head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a"), (b"te", b"trailers")]
    head.append((b"content-type", b"application/grpc"))
    request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
    request += frame(1, 4, 1, b"".join(field(name, value) for name, value in head)) + frame(0, 1, 1, bytes(5))
    with connection(tiny_server) as channel:
        stream = EncoderStub(channel).EncodeStream(iter(inputs.get, None), timeout=60)
        inputs.put(one)
        assert next(stream).result.HasField("embedding")
        for port in (tiny_server.grpc_port, tiny_server.health_port):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
                raw.sendall(request)
                received = b""
                while b"Method not found!" not in received:
                    received += (piece := raw.recv(4096))
                    assert piece, "the connection was closed without an answer"
            with socket.create_connection(("127.0.0.1", port), timeout=30):
                pass
        inputs.put(one)
        assert next(stream).result.HasField("embedding")
        inputs.put(None)
        assert not list(stream)
