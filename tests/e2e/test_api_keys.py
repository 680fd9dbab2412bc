"""API keys: who gets in, what a key may do and how much of it, and keys that come and go under traffic."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from client.command import COMMAND, finished, harken
from harken.oip import inference_pb2, inference_pb2_grpc
from harken.v1 import admin_pb2, admin_pb2_grpc, debug_pb2, debug_pb2_grpc, encoder_pb2_grpc
from harken.v1 import encoder_pb2 as pb
from harken_client import Client, PermissionDenied, Unauthenticated
from support.api_keys import KeyFile
from support.calls import Refused, ids, refused, stub
from support.inference import typed_ids
from support.server import RunningServer, failed_start, running_server
from support.web import Replied, call, post

EMBEDDINGS = "/v1/embeddings"
Metadata = dict[str, str]

WRONG = {"authorization": "Bearer " + "w" * 43}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.toml")


@pytest.fixture(scope="module")
def server(tiny_models: Path, keys: KeyFile) -> Iterator[RunningServer]:
    keys.write(
        plain="", admin="admin = true", shared='tenant = "team"', elsewhere='models = ["other"]',
        slow="tokens_per_s = 1", narrow="requests_in_flight = 1",
    )  # fmt: skip
    with running_server(
        tiny_models, *keys.options, "--model-control", "--remote-settings", "--trust-tenants"
    ) as running:
        yield running


def encode(server: RunningServer, shown: Metadata) -> Any:
    return stub(server.target).Encode(pb.EncodeRequest(inputs=ids([1, 2, 3])), metadata=tuple(shown.items()))


def infer(server: RunningServer, shown: Metadata) -> Any:
    with grpc.insecure_channel(server.target) as channel:
        request = inference_pb2.ModelInferRequest(model_name="tiny", inputs=[typed_ids([1, 2, 3])])
        return inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=tuple(shown.items()))


def stream(server: RunningServer, shown: Metadata) -> Any:
    messages = iter([pb.EncodeStreamRequest(open=pb.StreamOpen()), input_of([1, 2, 3])])
    return list(stub(server.target).EncodeStream(messages, metadata=tuple(shown.items())))


def input_of(tokens: list[int]) -> pb.EncodeStreamRequest:
    return pb.EncodeStreamRequest(input=pb.StreamInput(input=ids(tokens)[0]))


def embeddings(server: RunningServer, shown: Metadata) -> Replied:
    return post(server, EMBEDDINGS, {"input": [1, 2, 3]}, shown)


OVER_GRPC = [encode, stream, infer]
Call = Callable[[RunningServer, Metadata], Any]


def told(make: Call, server: RunningServer, shown: Metadata) -> Refused:
    with pytest.raises(grpc.RpcError) as error:
        make(server, shown)
    return refused(error.value)


@pytest.mark.parametrize("make", OVER_GRPC)
def test_over_grpc_no_key_and_a_wrong_one_are_unauthenticated_and_a_known_one_is_served(
    server: RunningServer, keys: KeyFile, make: Call
) -> None:
    missing, wrong = told(make, server, {}), told(make, server, WRONG)
    assert (missing.code, missing.reason) == ("UNAUTHENTICATED", "KEY_MISSING")
    assert (wrong.code, wrong.reason) == ("UNAUTHENTICATED", "KEY_UNKNOWN")
    assert "www" not in wrong.message
    assert make(server, keys.bearer("plain"))


def test_over_http_each_protocol_says_so_in_its_own_form(server: RunningServer, keys: KeyFile) -> None:
    for path, form in (
        (EMBEDDINGS, lambda said: (said["error"]["code"], said["error"]["type"])),
        ("/embed", lambda said: ("invalid_api_key" if said["error_type"] == "Validation" else "", "")),
        ("/v2/models/tiny/infer", lambda said: ("invalid_api_key" if isinstance(said["error"], str) else "", "")),
    ):
        for shown in ({}, WRONG):
            replied = post(server, path, {"input": [1, 2, 3]}, shown)
            assert (replied.status, replied.headers["www-authenticate"]) == (401, "Bearer")
            assert replied.headers["x-should-retry"] == "false"
            assert form(replied.json)[0] == "invalid_api_key"
    assert embeddings(server, keys.bearer("plain")).status == 200
    # Whatever way the scheme is written; any other one is no key.
    key = keys.keys["plain"]
    assert embeddings(server, {"Authorization": f"bearer {key}"}).status == 200
    assert embeddings(server, {"Authorization": f"Basic {key}"}).status == 401


def test_two_keys_in_a_call_are_none_even_if_both_are_known(server: RunningServer, keys: KeyFile) -> None:
    for second in ("plain", "admin"):
        both = (*keys.bearer("plain").items(), *keys.bearer(second).items())
        with pytest.raises(grpc.RpcError) as error:
            stub(server.target).Encode(pb.EncodeRequest(inputs=ids([1, 2, 3])), metadata=both)
        assert refused(error.value).reason == "KEY_UNKNOWN"
        replied = post(server, EMBEDDINGS, {"input": [1, 2, 3]}, both)
        assert (replied.status, replied.json["error"]["code"]) == (401, "invalid_api_key")


def test_every_method_but_those_of_health_needs_a_key(server: RunningServer, keys: KeyFile) -> None:
    for method, path in (
        ("GET", "/v1/models"), ("GET", "/v1/models/tiny"), ("GET", "/info"), ("GET", "/v2"), ("GET", "/v2/models/tiny"),
        ("GET", "/v2/models/tiny/versions/1"), ("GET", "/v2/models/tiny/ready"), ("GET", "/v2/models/tiny/config"),
        ("GET", "/v2/models/tiny/stats"), ("GET", "/v2/models/stats"), ("POST", "/v2/models/tiny/versions/1/infer"),
        ("POST", "/v2/repository/index"), ("POST", "/v2/repository/models/tiny/load"),
        ("POST", "/v2/repository/models/tiny/unload"),
    ):  # fmt: skip
        assert call(server, method, path).status == 401, path
        # Names and shapes can be read with any key, whatever it may compute with.
        if method == "GET":
            assert call(server, method, path, headers=keys.bearer("elsewhere")).status == 200, path
    for path in ("/healthz", "/readyz", "/health", "/v2/health/live", "/v2/health/ready"):
        assert call(server, "GET", path).status == 200, path
    encoder = stub(server.target)
    for ask in (
        lambda: encoder.ListModels(pb.ListModelsRequest()),
        lambda: encoder.GetModel(pb.GetModelRequest()),
        lambda: encoder.Similarity(pb.SimilarityRequest()),
    ):
        with pytest.raises(grpc.RpcError) as error:
            ask()
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("make", OVER_GRPC)
def test_a_model_that_a_key_may_not_use_is_permission_denied(server: RunningServer, keys: KeyFile, make: Call) -> None:
    refusal = told(make, server, keys.bearer("elsewhere"))
    assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "MODEL_FORBIDDEN")
    assert refusal.message == "the key 'elsewhere' may not use the model 'tiny'"
    replied = embeddings(server, keys.bearer("elsewhere"))
    assert (replied.status, replied.json["error"]["code"]) == (403, "model_forbidden")


def test_over_http_each_protocol_says_in_its_own_form_what_a_key_may_not(server: RunningServer, keys: KeyFile) -> None:
    message = "the key 'elsewhere' may not use the model 'tiny'"
    openai = {"message": message, "type": "invalid_request_error", "param": None, "code": "model_forbidden"}
    tensor = {"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}
    for path, body, said in (
        (EMBEDDINGS, {"input": [1, 2]}, {"error": openai}),
        ("/embed", {"inputs": [1, 2]}, {"error": message, "error_type": "Validation"}),
        ("/v2/models/tiny/infer", {"inputs": [tensor]}, {"error": message}),
    ):
        replied = post(server, path, body, keys.bearer("elsewhere"))
        assert (replied.status, replied.json) == (403, said)
        assert replied.headers["x-should-retry"] == "false"
        assert "www-authenticate" not in replied.headers


def test_what_operators_do_needs_an_admins_key(server: RunningServer, keys: KeyFile) -> None:
    load = inference_pb2.RepositoryModelLoadRequest(model_name="tiny")
    with grpc.insecure_channel(server.target) as channel:
        service = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        debug = debug_pb2_grpc.DebugStub(channel)
        admin = admin_pb2_grpc.AdminStub(channel)
        calls = (
            lambda shown: service.RepositoryModelLoad(load, metadata=shown),
            lambda shown: debug.ExplainBatches(debug_pb2.ExplainBatchesRequest(), metadata=shown),
            lambda shown: admin.Settings(admin_pb2.SettingsRequest(), metadata=shown),
        )
        for ask in calls:
            with pytest.raises(grpc.RpcError) as error:
                ask(tuple(keys.bearer("plain").items()))
            refusal = refused(error.value)
            assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "ADMIN_ONLY")
            ask(tuple(keys.bearer("admin").items()))
        unload = inference_pb2.RepositoryModelUnloadRequest(model_name="tiny")
        with pytest.raises(grpc.RpcError) as error:
            service.RepositoryModelUnload(unload, metadata=tuple(keys.bearer("plain").items()))
        assert refused(error.value).reason == "ADMIN_ONLY"
    for change in ("load", "unload"):
        assert post(server, f"/v2/repository/models/tiny/{change}", {}, keys.bearer("plain")).status == 403
    assert post(server, "/v2/repository/models/tiny/load", {}, keys.bearer("admin")).status == 200


def test_a_key_over_its_tokens_is_told_when_to_come_again(server: RunningServer, keys: KeyFile) -> None:
    # 120 tokens, of one a second: served, and a debt is left that no machine is too slow to see.
    shown = tuple(keys.bearer("slow").items())
    assert stub(server.target).Encode(pb.EncodeRequest(inputs=ids([5] * 120)), metadata=shown).results[0].tokens == 120
    for make in (encode, infer):
        refusal = told(make, server, keys.bearer("slow"))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "KEY_LIMIT")
        assert refusal.message == "the key 'slow' has its limit of 1 tokens a second"
        assert refusal.retry_after_s is not None
        assert 0 < refusal.retry_after_s <= 120
    replied = embeddings(server, keys.bearer("slow"))
    assert (replied.status, replied.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(replied.headers["retry-after-ms"]) <= 120_000
    assert encode(server, keys.bearer("plain"))


def test_a_key_has_no_more_in_flight_than_it_may(server: RunningServer, keys: KeyFile) -> None:
    shown = tuple(keys.bearer("narrow").items())
    with grpc.insecure_channel(server.target) as channel:
        encoder = encoder_pb2_grpc.EncoderStub(channel)
        first = encoder.ListModels(pb.ListModelsRequest(), metadata=shown)
        assert first.models
        half, done = iter(lambda: input_of([1]), None), []
        opened = encoder.EncodeStream(half, metadata=shown)
        done.append(next(opened))
        refusal = told(encode, server, keys.bearer("narrow"))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "KEY_LIMIT")
        assert (refusal.message, refusal.retry_after_s) == (
            "the key 'narrow' has its limit of 1 requests in flight",
            0.1,
        )
        assert embeddings(server, keys.bearer("narrow")).status == 429
        opened.cancel()
        server.wait_until("a place", lambda: embeddings(server, keys.bearer("narrow")).status == 200)


def test_a_key_names_its_tenant_and_the_metadata_does_not(server: RunningServer, keys: KeyFile) -> None:
    def tokens(name: str) -> float:
        return server.total("harken_tenant_tokens_total", tenant=name)

    before = tokens("team")
    encode(server, {**keys.bearer("shared"), "harken-tenant": "somebody-else"})
    assert (tokens("team") - before, tokens("somebody-else")) == (3.0, 0.0)


def test_no_key_stands_in_the_log_the_metrics_or_an_error(tiny_models: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    keys.write(one="")
    with running_server(tiny_models, *keys.options, "--log-level", "debug") as server:
        encode(server, keys.bearer("one"))
        errors = [told(encode, server, WRONG).details, embeddings(server, WRONG).body]
        keys.path.write_text(f'[[keys]]\nname = "one"\nsha256 = "{keys.keys["one"]}"')
        wait_for(server, "files changed and cannot be used")
        everything = f"{server.log} {server.metrics()} {errors}"
    assert keys.keys["one"] not in everything
    assert "w" * 43 not in everything


def wait_for(server: RunningServer, event: str, times: int = 1) -> None:
    server.wait_until(event, lambda: sum(line["event"].startswith(event) for line in server.log) >= times)


def test_keys_come_and_go_without_a_restart_and_a_broken_file_changes_nothing(
    tiny_models: Path, tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    keys.write(old='tenant = "team"')
    with running_server(tiny_models, *keys.options) as server, grpc.insecure_channel(server.target) as channel:
        sent, answers = iter(lambda: input_of([1]), None), []
        opened = encoder_pb2_grpc.EncoderStub(channel).EncodeStream(sent, metadata=tuple(keys.bearer("old").items()))
        answers.append(next(opened))
        keys.write(old='tenant = "team"', new='tenant = "team"')
        wait_for(server, "files read again")
        assert encode(server, keys.bearer("old"))
        assert encode(server, keys.bearer("new"))
        keys.path.write_text("[[keys]]\nname = ")
        wait_for(server, "files changed and cannot be used")
        assert encode(server, keys.bearer("new"))
        keys.write(new='tenant = "team"')
        wait_for(server, "files read again", times=2)
        assert told(encode, server, keys.bearer("old")).reason == "KEY_UNKNOWN"
        assert encode(server, keys.bearer("new"))
        # A stream that it opened gets nothing more either.
        code = grpc.StatusCode.UNAUTHENTICATED.value[0]
        assert any(answer.result.error.code == code for answer in opened)
        opened.cancel()
        # The last one can be taken out as well.
        keys.path.write_text("keys = []\n")
        wait_for(server, "files read again", times=3)
        assert told(encode, server, keys.bearer("new")).reason == "KEY_UNKNOWN"


SHA = "0" * 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("keys = 1", "keys: Input should be a valid list, not 1"),
        ("", "keys: Field required"),
        ("[[keys]]\nname = ", "is no TOML: "),
        (
            f'[[keys]]\nname = "a"\nsha256 = "{SHA}"\nweight = 0',
            "keys[0].weight: Input should be greater than or equal",
        ),
        ('[[keys]]\nname = "a"\nsha256 = "secret"', "keys[0].sha256: String should match pattern '^[0-9a-f]{64}$'"),
        (f'[[keys]]\nname = "a"\nsha256 = "{SHA}"\nlimit = 3', "keys[0].limit: Extra inputs are not permitted, not 3"),
        (f'[[keys]]\nname = "a"\nsha256 = "{SHA}"\nmodels = []', "keys[0].models: List should have at least 1 item"),
        (
            f'[[keys]]\nname = "a"\nsha256 = "{SHA}"\n[[keys]]\nname = "b"\nsha256 = "{SHA}"',
            "keys[1].sha256: another key has it already",
        ),
        (
            f'[[keys]]\nname = "a"\nsha256 = "{SHA}"\ntenant = "t"\n'
            f'[[keys]]\nname = "b"\nsha256 = "{"1" * 64}"\ntenant = "t"\nweight = 2',
            "keys[1].weight: is 2.0, and 1.0 in another key of t",
        ),
    ],
)
def test_a_file_that_is_not_right_at_the_start_is_one_line_and_code_two(
    tiny_models: Path, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(content)
    ports = ("--grpc-port", "0", "--metrics-port", "0", "--http-port", "0")
    code, error = failed_start(["--models", str(tiny_models), *ports, "--api-keys", str(path)])
    assert code == 2
    assert error.startswith(f"harken-server: error: api_keys: {path}: {message}")
    assert len(error.splitlines()) == 1
    assert "secret" not in error


def test_a_key_too_short_to_be_random_is_none_whatever_the_file_says(tiny_models: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml", {"guessed": "hunter2"})
    keys.write(guessed="")
    with running_server(tiny_models, *keys.options) as server:
        assert told(encode, server, keys.bearer("guessed")).reason == "KEY_UNKNOWN"


def test_our_own_client_shows_its_key_in_calls_and_streams(server: RunningServer, keys: KeyFile) -> None:
    with Client(server.target, api_key=keys.keys["plain"]) as client:
        assert client.encode([[1, 2, 3]]).shape == (1, 32)
        assert [result.error for result in client.encode_stream([[1], [2]])] == [None, None]
        with pytest.raises(PermissionDenied, match="ADMIN_ONLY"):
            client.explain_batches()
    with Client(server.target) as client, pytest.raises(Unauthenticated, match="KEY_MISSING"):
        client.encode([[1, 2, 3]])


def test_made_keys_are_what_the_server_takes(tiny_models: Path, tmp_path: Path) -> None:
    made = harken("make-key", "team")
    (tmp_path / "keys.toml").write_text(made.stdout)
    with running_server(tiny_models, "--api-keys", str(tmp_path / "keys.toml")) as server:
        for protocol in ("harken", "oip", "openai"):
            web = ("--http", f"http://127.0.0.1:{server.http_port}") if protocol == "openai" else ()
            ran = finished(
                [
                    *COMMAND, "load", "-s", server.target, "--protocol", protocol, *web, "--metrics", "none",
                    "--concurrency", "1", "--duration", "0.5", "--warmup", "0", "--lengths", "fixed:5",
                ],
                environment={"HARKEN_API_KEY": made.stderr.strip()},
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr
        assert server.total("harken_tenant_tokens_total", tenant="team") > 0
