"""TLS for both ports: one certificate, and with a client CA nobody without one; exchanged while it serves."""

import ssl
import time
from typing import Final

import grpc

from harken_server.rpc.expiry import first_end_s, grpc_can_use, own_end_s
from harken_server.rpc.files import BadFile, Contents, read
from harken_server.settings import Settings

CERTIFICATE: Final = "tls_certificate"
KEY: Final = "tls_key"
CLIENT_CA: Final = "tls_client_ca"


class Certificates:
    """What handshakes use from now on; connections that are open keep what they began with."""

    def __init__(self, settings: Settings) -> None:
        """Raises BadFile."""
        given = {name: getattr(settings, name) for name in (CERTIFICATE, KEY, CLIENT_CA)}
        self.paths: Final[dict[str, str]] = {name: path for name, path in given.items() if path}
        for needed in (CERTIFICATE, KEY):
            if needed not in self.paths:
                raise BadFile(f"{needed}: is empty, and {next(iter(self.paths))} is not: TLS needs both")
        self._taken: grpc.ServerCertificateConfiguration | None = None
        self._end_s: float | None = None
        self.contents: Final = read(self.paths)
        self.use(self.contents)

    def use(self, contents: Contents) -> None:
        """Take what the files hold now. Raises BadFile if it does not go together; then nothing has changed."""
        context = self._checked()
        if read(self.paths) != contents:
            raise BadFile(f"{CERTIFICATE}: the files changed while they were read")
        if not grpc_can_use(contents[CERTIFICATE]):
            raise BadFile(
                f"{CERTIFICATE}: {self.paths[CERTIFICATE]} has a key of a kind that gRPC cannot use; "
                "it can RSA, EC on P-256, P-384 and P-521, and Ed25519"
            )
        end_s, now_s = own_end_s(contents[CERTIFICATE]), time.time()
        if end_s is not None and end_s <= now_s and self._end_s is not None and self._end_s > now_s:
            raise BadFile(f"{CERTIFICATE}: {self.paths[CERTIFICATE]} has ended already, and the one before has not")
        self._end_s = end_s
        self._context = context
        ends_s = {name: first_end_s(contents[name]) for name in (CERTIFICATE, CLIENT_CA) if name in contents}
        self.ends_s = {name: end_s for name, end_s in ends_s.items() if end_s is not None}
        """By the setting that names the file: when the first certificate in it ends, in seconds since 1970."""
        self._configuration = grpc.ssl_server_certificate_configuration(
            [(contents[KEY], contents[CERTIFICATE])], contents.get(CLIENT_CA)
        )

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC's port; asks at each handshake whether there is something new."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._take,  # type: ignore[arg-type]  # None is for no change, which the stubs do not know
            require_client_authentication=CLIENT_CA in self.paths,
        )

    def context(self) -> ssl.SSLContext:
        """For the HTTP port: it hands each handshake over to what is in use then."""
        context = self._checked()

        def hand_over(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            connection.context = self._context

        # To load another certificate into a context that is in use would leave half of a bad pair in it, and a CA can
        # never be taken out again. OpenSSL asks here for connections without a server's name as well.
        context.sni_callback = hand_over
        return context

    def _take(self) -> grpc.ServerCertificateConfiguration | None:
        """In gRPC's own thread."""
        configuration = self._configuration
        # What is new has new keys for its sessions. With a client CA each handshake shall have them: a session that is
        # resumed shows no certificate again, not even one that has ended.
        if configuration is self._taken and CLIENT_CA not in self.paths:
            return None
        self._taken = configuration
        return configuration

    def _checked(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        certificate, key = self.paths[CERTIFICATE], self.paths[KEY]
        try:
            # Without a password the library would ask for one on the terminal.
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ValueError) as error:
            raise BadFile(f"{CERTIFICATE}, {KEY}: {certificate} and {key} are no pair: {_why(error)}") from None
        if CLIENT_CA in self.paths:
            context.verify_mode = ssl.CERT_REQUIRED
            # A session that is resumed shows no certificate again, not even one whose CA is no longer trusted.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0
            try:
                context.load_verify_locations(self.paths[CLIENT_CA])
            except (OSError, ValueError) as error:
                raise BadFile(f"{CLIENT_CA}: {self.paths[CLIENT_CA]} holds no certificates: {_why(error)}") from None
        return context


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "it is no PEM"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
