"""When a PEM file's first certificate ends, and what its key is, held against an independent reader of certificates."""

from datetime import UTC, datetime
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from harken_server.rpc.expiry import first_end_s, grpc_can_use, own_end_s

ENDS = [
    datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC),
    datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),  # the last that is written with two digits of its year
    datetime(2050, 1, 1, tzinfo=UTC),
    datetime(2999, 1, 1, tzinfo=UTC),
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("key_type", trustme.KeyType)
def test_it_is_what_the_library_reads(end: datetime, key_type: trustme.KeyType) -> None:
    pem = trustme.CA(key_type=key_type).issue_cert("localhost", not_after=end).cert_chain_pems[0].bytes()
    assert first_end_s(pem) == x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp() == end.timestamp()


def test_of_a_chain_or_a_list_the_first_to_end_counts() -> None:
    ca = trustme.CA()
    pems = [ca.issue_cert("localhost", not_after=end).cert_chain_pems[0].bytes() for end in reversed(ENDS)]
    assert first_end_s(b"# a comment\n" + b"".join([ca.cert_pem.bytes(), *pems])) == ENDS[0].timestamp()
    assert own_end_s(b"# a comment\n" + b"".join(pems)) == ENDS[-1].timestamp()


def self_signed(key: Any) -> bytes:
    """A certificate of this key."""
    name = x509.Name([])
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, ENDS[0], ENDS[1])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    return built.sign(key, algorithm).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("key", "can"),
    [
        (rsa.generate_private_key(65537, 2048), True),
        (ec.generate_private_key(ec.SECP256R1()), True),
        (ec.generate_private_key(ec.SECP384R1()), True),
        (ec.generate_private_key(ec.SECP521R1()), True),
        (ed25519.Ed25519PrivateKey.generate(), True),
        (ed448.Ed448PrivateKey.generate(), False),
        (ec.generate_private_key(ec.SECP256K1()), False),
        (ec.generate_private_key(ec.BrainpoolP256R1()), False),
        (dsa.generate_private_key(2048), False),
    ],
    ids=["RSA", "P-256", "P-384", "P-521", "Ed25519", "Ed448", "secp256k1", "brainpool", "DSA"],
)
def test_keys_that_grpc_cannot_use_are_known(key: Any, can: bool) -> None:
    assert grpc_can_use(self_signed(key)) is can


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no certificate",
        b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMIIBgg==\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_cannot_be_read_has_no_end_and_passes(pem: bytes) -> None:
    assert first_end_s(pem) is None
    assert own_end_s(pem) is None
    assert grpc_can_use(pem)
