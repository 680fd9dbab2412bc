"""What a load is sent over: the messages as a server gets them, and its refusals as the report counts them."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest
from client.fake_server import Refusal, free_port
from harken.oip import inference_pb2
from harken_client import ModelInfo, Overloaded
from harken_client.load import runner
from harken_client.load.pacer import Call, ClosedLoop
from harken_client.load.protocols import ProtocolName, connected
from harken_client.load.workload import Workload
from harken_client.retry import Deadline

INFO = ModelInfo("m", 3, True, 8, 16, 500, 2, 2, True, "fp32", "cpu", "", "", "")
ROWS = [[101, 5, 102], [101, 102], [101, 5, 6, 7, 102]]
FULL = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "BACKLOG_FULL", retry_after_s=0.01)


async def loaded(
    protocol: ProtocolName, target: str, url: str, *, inputs_per_call: int = 3, deadline_s: float = 30.0
) -> list[Call]:
    """The calls of a short run that sends ROWS over and over."""
    plan = runner.Plan(ClosedLoop(2), 0.3, 0.0, deadline_s, inputs_per_call, "sentence")

    async def nothing() -> None:
        return None

    async with connected(protocol, target, url, INFO, plan.output) as sender:
        messages = runner.messages(sender, Workload("", 0, [*ROWS]), plan)
        return (await runner.run(sender, messages, plan, nothing)).calls


def outcomes(calls: list[Call]) -> Counter[tuple[int, int, tuple[str, ...]]]:
    return Counter((call.sequences, call.tokens, call.failures) for call in calls)


class FakeInference:
    """Keeps what it gets, refuses every third call, and answers nothing that anybody reads."""

    def __init__(self) -> None:
        self.requests: list[inference_pb2.ModelInferRequest] = []

    async def infer(self, request: inference_pb2.ModelInferRequest, context: Any) -> inference_pb2.ModelInferResponse:
        self.requests.append(request)
        if len(self.requests) % 3 == 0:
            await FULL.abort(context)
        return inference_pb2.ModelInferResponse()


@pytest.fixture
async def inference() -> AsyncIterator[tuple[FakeInference, str]]:
    fake, server = FakeInference(), grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        fake.infer,
        request_deserializer=inference_pb2.ModelInferRequest.FromString,
        response_serializer=inference_pb2.ModelInferResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield fake, f"127.0.0.1:{port}"
    await server.stop(0)


async def test_over_oip_rows_are_padded_with_a_mask(inference: tuple[FakeInference, str]) -> None:
    fake, target = inference
    calls = await loaded("oip", target, "")
    first = fake.requests[0]
    assert (first.model_name, first.model_version) == ("m", "3")
    assert [(one.name, one.datatype, list(one.shape)) for one in first.inputs] == [
        ("input_ids", "INT64", [3, 5]), ("attention_mask", "INT64", [3, 5]),
    ]  # fmt: skip
    ids, mask = (np.frombuffer(raw, "<i8").reshape(3, 5).tolist() for raw in first.raw_input_contents)
    assert ids == [[101, 5, 102, 0, 0], [101, 102, 0, 0, 0], [101, 5, 6, 7, 102]]
    assert mask == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert [output.name for output in first.outputs] == ["sentence_embedding"]
    assert all(request == first for request in fake.requests)
    refused = len(fake.requests) // 3
    assert outcomes(calls) == Counter(
        {(3, 10, ()): len(fake.requests) - refused, (0, 0, ("RESOURCE_EXHAUSTED BACKLOG_FULL",)): refused}
    )


async def test_over_oip_a_row_alone_has_no_mask(inference: tuple[FakeInference, str]) -> None:
    fake, target = inference
    await loaded("oip", target, "", inputs_per_call=1)
    for request in fake.requests:
        (raw,) = request.raw_input_contents
        row = np.frombuffer(raw, "<i8").tolist()
        assert row in ROWS
        assert [(one.name, list(one.shape)) for one in request.inputs] == [("input_ids", [1, len(row)])]


class FakeOpenAi(ThreadingHTTPServer):
    """Answers with `status` and `body`, or never, and keeps what it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Embeddings)
        self.status, self.headers, self.body, self.answers = 200, {"x": "y"}, b"", True
        self.bodies: list[Any] = []
        self.connections: set[Any] = set()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Embeddings(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeOpenAi

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append((self.path, self.headers["content-type"], json.loads(body)))
        self.server.connections.add(self.client_address)
        if not self.server.answers:
            self.server.over.wait()
            return
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is its own."""


@pytest.fixture
def web() -> Iterator[FakeOpenAi]:
    server = FakeOpenAi()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


async def test_over_http_token_lists_go_over_connections_that_stay(web: FakeOpenAi) -> None:
    web.body = json.dumps({"data": [{}, {}, {}], "usage": {"prompt_tokens": 10}}).encode()
    calls = await loaded("openai", "", web.url)
    body = {"model": "m", "input": ROWS, "encoding_format": "base64"}
    assert web.bodies == [("/v1/embeddings", "application/json", body)] * len(calls)
    assert len(web.connections) <= 2  # one of each worker
    assert outcomes(calls) == Counter({(3, 10, ()): len(calls)})


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (429, b'{"error": {"message": "full", "code": "busy"}}', "RESOURCE_EXHAUSTED busy"),
        (404, b'{"error": {"message": "none", "code": "model_not_found"}}', "NOT_FOUND model_not_found"),
        (503, b'{"error": {"message": "drains", "code": "draining"}}', "UNAVAILABLE draining"),
        (504, b'{"error": {"message": "late", "code": "deadline_exceeded"}}', "DEADLINE_EXCEEDED deadline_exceeded"),
        (502, b"<html>a proxy's</html>", "INTERNAL HTTP_502"),
        (200, b"<html>something else's</html>", "INTERNAL UNREADABLE"),
        (200, b'{"data": []}', "INTERNAL UNREADABLE"),
    ],
)  # fmt: skip
async def test_over_http_refusals_are_counted_by_code_and_reason(
    web: FakeOpenAi, status: int, body: bytes, failure: str
) -> None:
    web.status, web.body = status, body
    calls = await loaded("openai", "", web.url)
    assert outcomes(calls) == Counter({(0, 0, (failure,)): len(calls)})


async def test_over_http_the_server_says_when_to_come_again(web: FakeOpenAi) -> None:
    web.status, web.headers = 429, {"retry-after-ms": "60000"}
    web.body = b'{"error": {"message": "full", "code": "rate_limit_exceeded"}}'
    async with connected("openai", "", web.url, INFO, "sentence") as sender:
        with pytest.raises(Overloaded) as refusal:
            await sender.send(sender.message(ROWS), Deadline.after(30, time.monotonic()))
    assert refusal.value.retry_after_s == 60
    assert str(refusal.value) == "RESOURCE_EXHAUSTED (rate_limit_exceeded): full"


async def test_over_http_no_answer_and_no_server_are_failures_too(web: FakeOpenAi) -> None:
    web.answers = False
    late = await loaded("openai", "", web.url, deadline_s=0.05)
    assert outcomes(late) == Counter({(0, 0, ("DEADLINE_EXCEEDED",)): len(late)})
    gone = await loaded("openai", "", f"http://127.0.0.1:{free_port()}")
    assert outcomes(gone) == Counter({(0, 0, ("UNAVAILABLE",)): len(gone)})


BESIDE = """
from google.protobuf import descriptor_pb2, descriptor_pool
from importlib import resources

def of_others():
    "The same messages in the default pool, as another package's generated code puts them there."
    content = resources.files("harken.oip").joinpath("inference.binpb").read_bytes()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(content).file
    file.name = "grpc_service.proto"
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())

def ours():
    from harken_client import cli
    from harken_client.load import oip
    assert oip.message_class("ModelInferRequest")(model_name="m").SerializeToString()

def the_servers():
    import harken.oip.inference_pb2

"""


@pytest.mark.parametrize(
    ("steps", "fits"),
    [
        ("ours(); of_others()", True),
        ("of_others(); ours()", True),
        ("ours(); the_servers()", True),
        ("the_servers(); of_others()", False),  # what it is all about
    ],
)
def test_the_protocols_messages_of_others_have_room_in_the_same_process(steps: str, fits: bool) -> None:
    done = subprocess.run([sys.executable, "-c", BESIDE + steps], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == fits, done.stderr
    assert fits or "duplicate" in done.stderr
