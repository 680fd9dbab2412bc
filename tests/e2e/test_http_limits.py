"""Bodies, heads, connections, time and readers of the HTTP edge are limited; whoever exceeds them disturbs nobody."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from harken_client import Client
from support.calls import different
from support.server import RunningServer, running_server
from support.web import EMBEDDINGS, INFER, Replied, call, post


def test_a_body_over_the_limit_is_refused_and_others_go_on(minilm_server: RunningServer) -> None:
    with Client(minilm_server.target) as client:
        replied = post(minilm_server, EMBEDDINGS, b" " * (100 << 20))
        assert client.encode(["a"])[0].shape == (384,)
    assert replied.status == 413
    assert "has 104857600 bytes, over the limit of 16777216" in replied.json["error"]["message"]
    assert post(minilm_server, EMBEDDINGS, b"x", {"content-encoding": "gzip"}).status == 400


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (EMBEDDINGS, b'{"input":[' + b",".join([b"[]"] * 2_000_000) + b"]}", "input"),
        (EMBEDDINGS, b'{"input":[' + b",".join([b'""'] * 2_000_000) + b"]}", "input"),
        (EMBEDDINGS, b"{" + b",".join(b'"%d":1' % one for one in range(800_000)) + b"}", ""),
        (INFER, b'{"parameters":{' + b",".join(b'"%d":1' % one for one in range(800_000)) + b"}}", "parameters"),
        (
            INFER,
            b'{"inputs":[{"name":"input_ids","datatype":"INT64","shape":[1,1],"data":['
            + b",".join([b"[]"] * 2_000_000)
            + b"]}]}",
            "inputs[0].data",
        ),
    ],
    ids=["empty lists", "empty texts", "unknown fields", "parameters", "nested data"],
)
def test_millions_of_elements_are_refused_without_a_look_at_each(
    minilm_server: RunningServer, path: str, body: bytes, field: str
) -> None:
    slowest_s, over = 0.0, False

    def look() -> None:
        nonlocal slowest_s
        while not over:
            began_s = time.monotonic()
            assert call(minilm_server, "GET", "/healthz").status == 200
            slowest_s = max(slowest_s, time.monotonic() - began_s)

    looking = Thread(target=look)
    looking.start()
    try:
        replied = post(minilm_server, path, body)
    finally:
        over = True
        looking.join()
    assert replied.status == 400
    error = replied.json["error"]
    assert field in (error["message"] if isinstance(error, dict) else error)
    assert len(replied.body) < 2000


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize("field", ["input", "model", "encoding_format", "dimensions", "user"])
def test_deep_json_is_no_bug(minilm_server: RunningServer, field: str) -> None:
    for depth in (100, 900, 1000, 1020):
        replied = post(minilm_server, EMBEDDINGS, b'{"input":"a","%s":%s}' % (field.encode(), deep(depth)))
        assert replied.status in (200, 400)
    for body in (b'{"inputs":%s}', b'{"inputs":"a","truncation_direction":%s}', b'{"inputs":[%s]}'):
        assert post(minilm_server, "/embed", body % deep(1000)).status == 422
    tensor = b'{"inputs":[{"name":"text","datatype":"BYTES","shape":[1],"data":[%s]}],"parameters":{"a":%s}}'
    assert post(minilm_server, INFER, tensor % (deep(500), b"1")).status == 400
    assert post(minilm_server, INFER, tensor % (b"1", deep(900))).status == 400
    assert post(minilm_server, INFER, b"{}", {"Inference-Header-Content-Length": "0" * 12 + "9" * 5000}).status == 400


GET = b"GET /healthz HTTP/1.1\r\nhost: a\r\n"
CHUNKED = b"POST /embed HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"


@pytest.mark.parametrize("piece_bytes", [1 << 22, 5000], ids=["at once", "in pieces"])
@pytest.mark.parametrize(
    ("before", "repeated", "after", "status"),
    [
        (GET + b"x: ", b"a", b"\r\n\r\n", 200),
        (GET, b"x: aa\r\n", b"\r\n", 200),
        (b"GET /healthz?", b"a", b" HTTP/1.1\r\nhost: a\r\n\r\n", 200),
        (CHUNKED, b"x: aa\r\n", b"\r\n", 400),
    ],
    ids=["header", "headers", "line", "trailers"],
)
def test_a_head_is_limited_in_bytes(
    tiny_server: RunningServer, piece_bytes: int, before: bytes, repeated: bytes, after: bytes, status: int
) -> None:
    for size_bytes in (63 << 10, 66 << 10, 100 << 10, 1 << 20):
        sent = before + repeated * (size_bytes // len(repeated)) + after
        with connected(tiny_server) as connection:
            with suppress(ConnectionError):
                for start in range(0, len(sent), piece_bytes):
                    connection.sendall(sent[start : start + piece_bytes])
            head, _, body = connection.recv(4096).partition(b"\r\n\r\n")
            if size_bytes < 64 << 10:
                assert head.startswith(b"HTTP/1.1 %d " % status)
            else:
                assert head.startswith(b"HTTP/1.1 431 ")
                assert b"x-request-id: " in head
                assert json.loads(body)["error"].endswith("exceed the limit of 65536 bytes")
                with suppress(ConnectionError):
                    assert connection.recv(1) == b""


def answer_of(connection: socket.socket) -> tuple[bytes, bytes]:
    """One answer, which may come in pieces: its head, and its body."""
    received = b""
    while b"\r\n\r\n" not in received and (piece := connection.recv(4096)):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < size and (piece := connection.recv(4096)):
        body += piece
    return head, body


def test_trailers_are_no_headers(tiny_server: RunningServer) -> None:
    with connected(tiny_server) as connection:
        connection.sendall(CHUNKED + b"x-request-id: mine\r\ncontent-encoding: gzip\r\n\r\n")
        head, body = answer_of(connection)
    assert b"mine" not in head
    assert json.loads(body)["error"].startswith("inputs: ")


def test_what_is_no_http_is_said_after_what_is_due(tiny_server: RunningServer) -> None:
    with connected(tiny_server) as connection:
        connection.sendall(b"no http\r\n\r\n")
        head, body = answer_of(connection)
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"x-request-id: " in head
        assert json.loads(body) == {"error": "what came is no HTTP/1.1 request"}
    body = json.dumps({"inputs": [[1, 2]]}).encode()
    with connected(tiny_server) as connection:
        # A length that is too small: the answer is to what it covers.
        connection.sendall(b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body + b"}}")
        received = b""
        while piece := connection.recv(4096):
            received += piece
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1") == 1


def test_a_head_is_limited_in_time(tiny_server: RunningServer) -> None:
    with connected(tiny_server) as silent, connected(tiny_server) as half:
        half.sendall(b"GET /healthz HTTP/1.1\r\nx: ")
        began_s = time.monotonic()
        for waiting in (silent, half):
            with suppress(ConnectionError):
                assert waiting.recv(1) == b""
        assert time.monotonic() - began_s < 25
    assert call(tiny_server, "GET", "/healthz").status == 200


def test_connections_over_the_limit_are_closed_and_the_others_go_on(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-connections", "5") as server, ExitStack() as stack:
        kept = [stack.enter_context(connected(server)) for _ in range(5)]
        time.sleep(0.2)
        with pytest.raises((ConnectionError, HTTPException)):
            call(server, "GET", "/healthz")
        kept[0].sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert kept[0].recv(4096).startswith(b"HTTP/1.1 200 ")
        kept.pop().close()
        server.wait_until("its place", lambda: call_or_none(server) is not None)


def call_or_none(server: RunningServer) -> Replied | None:
    try:
        return call(server, "GET", "/healthz")
    except (ConnectionError, HTTPException):
        return None


def test_answers_that_nobody_reads_are_bounded_and_let_go(tiny_models: Path) -> None:
    options = ["--max-unsent-bytes", str(20 << 20), "--max-request-s", "10"]
    with running_server(tiny_models, *options) as server, connected(server) as unread:
        ids = np.ones((500, 100), np.int64).tobytes()
        tensor = {"name": "input_ids", "datatype": "INT64", "shape": [500, 100],
                  "parameters": {"binary_data_size": len(ids)}}  # fmt: skip
        header = json.dumps({"inputs": [tensor], "outputs": [{"name": "token_embeddings"}]}).encode()
        length = {"inference-header-content-length": str(len(header))}
        lines = ["POST /v2/models/tiny/infer HTTP/1.1", "host: a", f"content-length: {len(header) + len(ids)}"]
        lines += [f"{name}: {value}" for name, value in length.items()]
        unread.sendall("\r\n".join([*lines, "", ""]).encode() + header + ids)
        server.wait_until("its answer", lambda: server.total("harken_finished_total", outcome="answered") == 500)
        path = "/v2/models/tiny/infer"
        # 6.4 MB of vectors are some 17 MB of text, and nobody reads them.
        server.wait_until("the bound", lambda: post(server, path, header + ids, length).status == 429)
        assert post(server, EMBEDDINGS, {"input": [1, 2]}).status == 200
        server.wait_until("its end", lambda: post(server, path, header + ids, length).status == 200)
        assert [line for line in server.log if line.get("level") not in ("info", None)] == []


def test_whoever_polls_does_not_hold_a_drain(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-request-s", "20", "--drain-delay-s", "0.2") as server:
        over = False

        def poll() -> None:
            while not over:
                with suppress(OSError, HTTPException):
                    call(server, "GET", "/v2/health/ready")

        polling = Thread(target=poll)
        polling.start()
        try:
            with connected(server) as half:
                half.sendall(b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
                time.sleep(0.3)
                began_s = time.monotonic()
                server.terminate()
                assert server.wait_exit() == 0
                assert time.monotonic() - began_s < 10
        finally:
            over = True
            polling.join()


def test_a_slow_reader_gets_all_of_its_answer_in_a_drain(tiny_models: Path) -> None:
    with running_server(tiny_models) as server, connected(server) as slow:
        body = json.dumps({"input": [[1] * 10] * 1000, "model": "tiny"}).encode()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        server.wait_until("its end", lambda: server.total("harken_finished_total", outcome="answered") == 1000)
        server.terminate()
        received = b""
        while piece := slow.recv(8 << 10):
            received += piece
            time.sleep(0.01)
        head, _, content = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert len(json.loads(content)["data"]) == 1000
        assert server.wait_exit() == 0


@contextmanager
def connected(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as connection:
        yield connection


def test_a_slow_body_ends_with_its_time(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-request-s", "1") as server, connected(server) as slow:
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
        assert post(server, EMBEDDINGS, {"input": [1, 2]}).status == 200
        assert slow.recv(4096).startswith(b"HTTP/1.1 504 ")
        began_s = time.monotonic()
        with suppress(ConnectionError):
            slow.sendall(b"x")
            while slow.recv(4096):
                pass
        # Else it would keep one of max_connections for ever.
        assert time.monotonic() - began_s < 25


def test_who_goes_away_is_not_computed(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-batch-sequences", "1") as server:
        body = json.dumps({"input": different(1000, 128)}).encode()
        with connected(server) as going:
            head = f"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
            going.sendall(head.encode() + body)
            server.wait_until("its acceptance", lambda: server.total("harken_accepted_total") == 1000)
            going.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.wait_until("its end", lambda: server.total("harken_finished_total") == 1000)
        assert server.total("harken_finished_total", outcome="cancelled") > 0
        assert server.total("harken_requests_total", method="POST /v1/embeddings", code="CANCELLED") == 1


def test_a_full_backlog_says_when_to_come_again(tiny_models: Path) -> None:
    with running_server(tiny_models, "--max-backlog-tokens", "4000", "--max-batch-sequences", "1") as server:
        refused: list[Replied] = []

        def ask() -> None:
            for _ in range(20):
                replied = post(server, EMBEDDINGS, {"input": different(20, 128)})
                if replied.status != 200:
                    refused.append(replied)

        threads = [Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert refused
        assert {replied.status for replied in refused} == {429}
        error = refused[0].json["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert int(refused[0].headers["retry-after"]) >= 1
        assert int(refused[0].headers["retry-after-ms"]) >= 1
        assert "x-should-retry" not in refused[0].headers
