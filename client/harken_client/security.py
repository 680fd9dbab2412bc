"""What protects a connection and shows who calls: TLS from files, and API keys, which never travel in the open."""

import ipaddress
import os
import re
import secrets
import ssl
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import grpc

ENVIRONMENT = "HARKEN_API_KEY"

_KEY = re.compile(r"[!-~]+")
_NAME = re.compile(r"[!-~]{1,64}")


class BadKey(ValueError):
    """An API key that cannot be sent, or must not be. The message never tells it."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the CA of the server's certificate and, where the server asks for one, the client's own with its key.

    Without a CA there is no TLS. Raises ValueError where one is given that needs another.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client's certificate and its key are given together")
        if self.certificate is not None and self.ca is None:
            raise ValueError("a client's certificate is for TLS, which needs the CA of the server's")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Of a gRPC channel; None is plain text. Raises OSError if a file cannot be read."""
        if self.ca is None:
            return None
        if self.key is None or self.certificate is None:
            return grpc.ssl_channel_credentials(self.ca.read_bytes())
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes())

    def context(self) -> ssl.SSLContext:
        """Of HTTP; without a CA it trusts whom the system does. Raises OSError if a file cannot be used."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


def key_for(address: str, api_key: str | None, *, in_the_open: bool) -> str:
    """The API key to show at `address` (a gRPC target, or an http URL): the given one or, for None, the environment's.

    Raises BadKey if it is none, or would travel in the open.
    """
    key = os.environ.get(ENVIRONMENT, "") if api_key is None else api_key
    if not key:
        return ""
    if not _KEY.fullmatch(key):
        raise BadKey("the API key is not of printable ASCII characters without spaces")
    if in_the_open and not _is_this_machine(address):
        raise BadKey(
            f"the API key would go to {address} in plain text: use TLS, or say that it may (allow_plaintext_key)"
        )
    return key


def bearer(api_key: str) -> tuple[tuple[str, str], ...]:
    """The metadata, or the headers, that show it; none where there is none."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def make_key(name: str) -> tuple[str, str]:
    """A new key of 256 random bits, and its entry for the server's file, which tells only its digest."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"the name of a key is 1 to 64 printable ASCII characters without spaces, not {name!r:.100}")
    key = secrets.token_urlsafe(32)
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return key, f'[[keys]]\nname = "{quoted}"\nsha256 = "{sha256(key.encode()).hexdigest()}"\n'


def _is_this_machine(address: str) -> bool:
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    places = re.sub(r"^(https?://|(dns|ipv4|ipv6):(///)?)", "", address).split("/")[0].split(",")
    return all(_is_loopback(place) for place in places)


def _is_loopback(place: str) -> bool:
    """Of host:port; an address of IPv6 stands in brackets before a port."""
    host = place.rpartition("]")[0].lstrip("[") if place.startswith("[") else place.rsplit(":", 1)[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
