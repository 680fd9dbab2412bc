"""TLS on both ports: who gets in, what a wrong file costs, and certificates that change under traffic."""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from client.command import harken
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harken_client import Client
from support.server import RunningServer, failed_start, running_server


@dataclass(frozen=True)
class Files:
    """A server's PEM files; who renews them writes over them."""

    certificate: Path
    key: Path
    client_ca: Path

    @property
    def options(self) -> tuple[str, ...]:
        return ("--tls-certificate", str(self.certificate), "--tls-key", str(self.key))

    @property
    def mutual(self) -> tuple[str, ...]:
        return (*self.options, "--tls-client-ca", str(self.client_ca))

    def issue(self, ca: trustme.CA, **options: Any) -> None:
        leaf = ca.issue_cert("localhost", "127.0.0.1", **options)
        self.key.write_bytes(leaf.private_key_pem.bytes())
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "clients.pem")


@dataclass(frozen=True)
class Caller:
    """Whom it trusts, and what it shows."""

    trusts: trustme.CA
    shows: trustme.LeafCert | None = None

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        root = self.trusts.cert_pem.bytes()
        if self.shows is None:
            return grpc.ssl_channel_credentials(root)
        chain = self.shows.cert_chain_pems[0].bytes()
        return grpc.ssl_channel_credentials(root, self.shows.private_key_pem.bytes(), chain)

    def over_grpc(self, server: RunningServer) -> bool:
        """Whether it gets in, and its vectors."""
        channel = grpc.secure_channel(server.target, self.credentials, [("grpc.use_local_subchannel_pool", 1)])
        with channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=3)
            except grpc.FutureTimeoutError:
                return False
        with Client(server.target, credentials=self.credentials) as client:
            return client.encode([[1, 2, 3]]).shape == (1, 32)

    def https(self, server: RunningServer) -> HTTPSConnection:
        context = ssl.create_default_context()
        self.trusts.configure_trust(context)
        if self.shows is not None:
            self.shows.configure_cert(context)
        return HTTPSConnection("127.0.0.1", server.http_port, context=context, timeout=30)

    def over_http(self, server: RunningServer) -> bool:
        connection = self.https(server)
        try:
            connection.request("POST", "/v1/embeddings", b'{"input": [1, 2, 3]}')
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def both(self, server: RunningServer) -> tuple[bool, bool]:
        return self.over_grpc(server), self.over_http(server)


def wait_until(server: RunningServer, event: str) -> None:
    server.wait_until(event, lambda: any(line["event"].startswith(event) for line in server.log))


def test_both_ports_speak_tls_and_only_tls(tiny_models: Path, files: Files) -> None:
    ours, another = trustme.CA(), trustme.CA()
    files.issue(ours)
    with running_server(tiny_models, *files.options) as server:
        assert Caller(ours).both(server) == (True, True)
        assert Caller(another).both(server) == (False, False)
        with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(channel).result(timeout=2)
        # The probe of whoever has no certificates to check it by.
        with grpc.insecure_channel(f"127.0.0.1:{server.health_port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1  # type: ignore[attr-defined]


def test_a_handshake_is_limited_in_time(tiny_models: Path, files: Files) -> None:
    ours = trustme.CA()
    files.issue(ours)
    with running_server(tiny_models, *files.options) as server:
        lines = len(server.log)
        began_s = time.monotonic()
        for port in (server.http_port, server.grpc_port):
            with socket.create_connection(("127.0.0.1", port), timeout=40) as connection, suppress(ConnectionError):
                connection.sendall(b"\x16\x03\x01")
                while connection.recv(4096):
                    pass
        assert time.monotonic() - began_s < 50
        assert Caller(ours).both(server) == (True, True)
        assert [line["event"] for line in server.log[lines:] if "level" in line] == []


def test_with_a_client_ca_nobody_comes_in_without_one_of_its_certificates(tiny_models: Path, files: Files) -> None:
    ours, clients, others = trustme.CA(), trustme.CA(), trustme.CA()
    files.issue(ours)
    files.client_ca.write_bytes(clients.cert_pem.bytes())
    with running_server(tiny_models, *files.mutual) as server:
        assert Caller(ours, clients.issue_cert("a.client")).both(server) == (True, True)
        assert Caller(ours, others.issue_cert("a.client")).both(server) == (False, False)
        assert Caller(ours).both(server) == (False, False)


def test_the_commands_speak_it_too_and_load_over_every_protocol(
    tiny_models: Path, files: Files, tmp_path: Path
) -> None:
    ours, clients = trustme.CA(), trustme.CA()
    files.issue(ours)
    files.client_ca.write_bytes(clients.cert_pem.bytes())
    mine = clients.issue_cert("a.client")
    (tmp_path / "ca.pem").write_bytes(ours.cert_pem.bytes())
    (tmp_path / "my.pem").write_bytes(mine.cert_chain_pems[0].bytes())
    (tmp_path / "my.key").write_bytes(mine.private_key_pem.bytes())
    tls = ("--tls-ca", tmp_path / "ca.pem", "--tls-certificate", tmp_path / "my.pem", "--tls-key", tmp_path / "my.key")
    with running_server(tiny_models, *files.mutual) as server:
        assert "tiny/1" in harken(*tls, "models", "-s", server.target).stdout
        assert harken("models", "-s", server.target, "--timeout", "2").returncode == 1
        for protocol in ("harken", "oip", "openai"):
            web = ("--http", f"https://127.0.0.1:{server.http_port}") if protocol == "openai" else ()
            ran = harken(
                *tls, "load", "-s", server.target, "--protocol", protocol, *web, "--metrics", "none",
                "--concurrency", "1", "--duration", "0.5", "--warmup", "0", "--lengths", "fixed:5",
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr


def test_new_certificates_are_used_without_a_restart_and_under_traffic_nothing_fails(
    tiny_models: Path, files: Files
) -> None:
    before, after = trustme.CA(), trustme.CA()
    files.issue(before)
    with running_server(tiny_models, *files.options) as server:
        stop = threading.Event()
        calls: list[int] = []
        failed: list[BaseException] = []

        def keep_calling() -> None:
            connection = Caller(before).https(server)
            connection.connect()
            opened = connection.sock
            with Client(server.target, credentials=Caller(before).credentials, max_attempts=1) as client:
                try:
                    while not stop.is_set():
                        np.testing.assert_equal(client.encode([[1, 2, 3]]).shape, (1, 32))
                        connection.request("POST", "/v1/embeddings", b'{"input": [1, 2, 3]}')
                        response = connection.getresponse()
                        assert (response.status, len(response.read()) > 0) == (200, True)
                        assert connection.sock is opened
                        calls.append(1)
                except BaseException as error:
                    failed.append(error)
                    raise
                finally:
                    connection.close()

        thread = threading.Thread(target=keep_calling)
        thread.start()
        server.wait_until("calls", lambda: bool(calls or failed))
        files.issue(after)
        wait_until(server, "files read again")
        assert Caller(after).both(server) == (True, True)
        assert Caller(before).both(server) == (False, False)
        so_far = len(calls)
        server.wait_until("later calls", lambda: len(calls) > so_far or bool(failed))
        stop.set()
        thread.join()
        assert failed == []


def test_a_client_ca_that_is_exchanged_lets_the_old_ones_in_no_longer(tiny_models: Path, files: Files) -> None:
    ours, before, after = trustme.CA(), trustme.CA(), trustme.CA()
    files.issue(ours)
    files.client_ca.write_bytes(before.cert_pem.bytes())
    with running_server(tiny_models, *files.mutual) as server:
        old, new = Caller(ours, before.issue_cert("a.client")), Caller(ours, after.issue_cert("a.client"))
        assert (old.both(server), new.both(server)) == ((True, True), (False, False))
        files.client_ca.write_bytes(after.cert_pem.bytes())
        wait_until(server, "files read again")
        assert (old.both(server), new.both(server)) == ((False, False), (True, True))


def test_with_a_client_ca_no_session_is_resumed_and_each_connection_shows_its_certificate(
    tiny_models: Path, files: Files
) -> None:
    ours, clients = trustme.CA(), trustme.CA()
    files.issue(ours)
    files.client_ca.write_bytes(clients.cert_pem.bytes())
    context = ssl.create_default_context()
    # In 1.2 a session is there once the handshake is over.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    ours.configure_trust(context)
    clients.issue_cert("a.client").configure_cert(context)
    for options, resumed in ((files.options, True), (files.mutual, False)):
        with running_server(tiny_models, *options) as server:

            def connect(session: ssl.SSLSession | None, port: int = server.grpc_port) -> ssl.SSLSocket:
                connection = socket.create_connection(("127.0.0.1", port), timeout=30)
                return context.wrap_socket(connection, server_hostname="localhost", session=session)

            with connect(None) as first, connect(first.session) as second:
                assert second.session_reused is resumed


def test_a_renewal_by_a_certificate_that_nobody_would_take_is_refused(tiny_models: Path, files: Files) -> None:
    ours = trustme.CA()
    files.issue(ours)
    with running_server(tiny_models, *files.options) as server:
        now = datetime.now(UTC)
        files.issue(ours, not_before=now - timedelta(days=9), not_after=now - timedelta(days=1))
        server.wait_until("the refusal", lambda: refusals(server) == 1)
        assert Caller(ours).both(server) == (True, True)
        key = ec.generate_private_key(ec.SECP256K1())
        name = x509.Name([])
        of_key = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        files.certificate.write_bytes(of_key.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
        server.wait_until("the refusal", lambda: "of a kind that gRPC cannot use" in server.log[-1].get("why", ""))
        assert Caller(ours).both(server) == (True, True)
        files.issue(ours)
        wait_until(server, "files read again")
        assert Caller(ours).both(server) == (True, True)


def refusals(server: RunningServer) -> int:
    """How often a certificate that has ended was refused."""
    return sum("has ended already" in line.get("why", "") for line in server.log)


def test_a_broken_pair_is_logged_and_the_old_one_serves_on(tiny_models: Path, files: Files) -> None:
    ours = trustme.CA()
    files.issue(ours)
    with running_server(tiny_models, *files.options) as server:
        files.key.write_bytes(ours.issue_cert("localhost").private_key_pem.bytes())
        wait_until(server, "files changed and cannot be used")
        (line,) = [line for line in server.log if "cannot be used" in line["event"]]
        assert f"tls_certificate, tls_key: {files.certificate} and {files.key} are no pair" in line["why"]
        assert Caller(ours).both(server) == (True, True)
        files.issue(ours)
        wait_until(server, "files read again")
        assert Caller(ours).both(server) == (True, True)


Spoil = Callable[[Files], tuple[tuple[str, ...], str]]


def _absent(files: Files) -> tuple[tuple[str, ...], str]:
    files.key.unlink()
    return files.options, f"tls_key: cannot read {files.key}: No such file or directory"


def _no_pem(files: Files) -> tuple[tuple[str, ...], str]:
    files.certificate.write_text("no PEM")
    return files.options, f"tls_certificate, tls_key: {files.certificate} and {files.key} are no pair: "


def _no_ca(files: Files) -> tuple[tuple[str, ...], str]:
    files.client_ca.write_text("no PEM")
    return files.mutual, f"tls_client_ca: {files.client_ca} holds no certificates: "


def _half(files: Files) -> tuple[tuple[str, ...], str]:
    return files.options[:2], "tls_key: is empty, and tls_certificate is not: TLS needs both"


@pytest.mark.parametrize("spoil", [_absent, _no_pem, _no_ca, _half])
def test_files_that_cannot_be_used_at_the_start_are_one_line_and_code_two(
    tiny_models: Path, files: Files, spoil: Spoil
) -> None:
    files.issue(trustme.CA())
    options, told = spoil(files)
    ports = ("--grpc-port", "0", "--metrics-port", "0", "--http-port", "0")
    code, error = failed_start(["--models", str(tiny_models), *ports, *options])
    assert code == 2
    assert f"harken-server: error: {told}" in error
    assert len(error.splitlines()) == 1
