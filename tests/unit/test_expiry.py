"""When a PEM file's first certificate ends, held against an independent reader of certificates."""

from datetime import UTC, datetime

import pytest
import trustme
from cryptography import x509
from harken_server.rpc.expiry import first_end_s

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
def test_what_cannot_be_read_has_no_end(pem: bytes) -> None:
    assert first_end_s(pem) is None
