"""API keys and TLS as the client has them: where a key comes from, where it may go, and where it must never stand."""

import hashlib
import socket
import tomllib
from pathlib import Path

import pytest
from client.command import harken
from client.fake_server import FakeEncoder, Refusal
from harken_client import AsyncClient, Client, PermissionDenied, Unauthenticated
from harken_client.errors import HarkenError

KEY = "k" * 43


async def test_the_key_goes_with_every_call_and_stream(fake: FakeEncoder, target: str) -> None:
    async with AsyncClient(target, api_key=KEY, tenant="acme") as client:
        await client.wait_ready()
        await client.health()
        await client.encode(["a"])
        await client.similarity("a", ["b"])
        await client.models()
        await client.model()
        await client.explain_batches()
        assert len([result async for result in client.encode_stream(["a"])]) == 1
    assert len(fake.authorizations) == 8
    assert set(fake.authorizations.values()) == {f"Bearer {KEY}"}
    assert set(fake.tenants.values()) == {"acme"}


def test_in_plain_text_it_goes_through_no_proxy(
    fake: FakeEncoder, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.2)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        with Client(target.replace("127.0.0.1", "localhost"), api_key=KEY) as client:
            client.encode(["a"])
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_the_environment_holds_the_key_where_none_is_given(
    fake: FakeEncoder, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARKEN_API_KEY", KEY)
    shown = []
    for given in (None, "", "other"):
        with Client(target, api_key=given) as client:
            client.encode(["a"])
        shown.append(fake.authorizations["/harken.v1.Encoder/Encode"])
    assert shown == [f"Bearer {KEY}", "", "Bearer other"]


@pytest.mark.parametrize(
    "target",
    [
        "localhost:8001", "127.0.0.1:8001", "127.9.9.9:1", "[::1]:8001", "unix:/tmp/a", "unix-abstract:a",
        "dns:///localhost:8001", "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:8001",
    ],
)  # fmt: skip
async def test_a_key_may_go_to_this_machine_in_plain_text(target: str) -> None:
    await AsyncClient(target, api_key=KEY).close()


@pytest.mark.parametrize(
    "target",
    [
        "harken:8001", "10.0.0.1:8001", "[2001:db8::1]:8001", "dns:///harken:8001", "ipv4:127.0.0.1:1,10.0.0.1:1",
        "localhost.example.com:8001", "127.0.0.1.example.com:1", "dns://localhost/harken:8001", "dns://8.8.8.8/localhost:8001",
    ],
)  # fmt: skip
async def test_it_goes_nowhere_else_in_plain_text_unless_that_is_said(target: str) -> None:
    with pytest.raises(ValueError, match="in plain text: use TLS, or say that it may") as error:
        AsyncClient(target, api_key=KEY)
    assert KEY not in str(error.value)
    await AsyncClient(target, api_key=KEY, allow_plaintext_key=True).close()
    await AsyncClient(target).close()


@pytest.mark.parametrize("key", ["two words" * 5, "ä" * 43, f"{KEY}\n"])
def test_what_no_metadata_may_hold_is_refused_and_not_told(key: str) -> None:
    with pytest.raises(ValueError, match="the API key is not of printable ASCII characters without spaces") as error:
        AsyncClient(api_key=key)
    assert key not in str(error.value)


@pytest.mark.parametrize(
    ("code", "kind"), [("UNAUTHENTICATED", Unauthenticated), ("PERMISSION_DENIED", PermissionDenied)]
)
async def test_a_key_that_is_refused_is_not_tried_again(
    fake: FakeEncoder, target: str, code: str, kind: type[HarkenError]
) -> None:
    fake.refuse_calls = [Refusal(kind.code, reason="WHY")]
    async with AsyncClient(target, api_key=KEY) as client:
        with pytest.raises(kind) as error:
            await client.encode(["a"])
    assert (error.value.code.name, error.value.reason, len(fake.calls)) == (code, "WHY", 1)
    assert KEY not in repr(error.value)


def test_a_command_takes_the_key_from_the_environment_and_keeps_it_from_the_open(
    fake: FakeEncoder, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARKEN_API_KEY", KEY)
    assert harken("models", "-s", target).returncode == 0
    assert fake.authorizations["/harken.v1.Encoder/ListModels"] == f"Bearer {KEY}"
    refused = harken("models", "-s", "harken.example.com:8001")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "would go to harken.example.com:8001 in plain text" in refused.stderr
    assert KEY not in refused.stderr


def test_a_key_is_made_with_its_entry_and_only_the_entry_goes_into_the_file() -> None:
    made, again = harken("make-key", 'search "team"'.replace(" ", "-")), harken("make-key", "b")
    key = made.stderr.strip()
    assert len(key) == 43
    assert key != again.stderr.strip()
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert tomllib.loads(made.stdout) == {"keys": [{"name": 'search-"team"', "sha256": digest}]}
    refused = harken("make-key", "two words")
    assert refused.returncode == 2
    assert "1 to 64 printable ASCII characters without spaces, not 'two words'" in refused.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--tls-key", "a"), "a client's certificate and its key are given together"),
        (("--tls-key", "a", "--tls-certificate", "b"), "which needs the CA of the server's"),
        (("--tls-ca", "absent.pem"), "absent.pem"),
    ],
)
def test_files_of_tls_that_cannot_be_used_are_one_line_and_code_two(
    tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    refused = harken(*options, "models")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert told in refused.stderr
