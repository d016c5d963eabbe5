"""`imgproxy certs`: a working set of certificates for mutual TLS between two or more nodes.

One CA signs one certificate per node, good for both ends of a connection. The CA's key is never written:
nobody can sign another node's way in later, and to add a node one makes a new set. The keys are EC P-256,
which every OpenSSL with TLS 1.3 can do. What the extensions must be: RFC 5280, section 4.2.
"""

import datetime
import ipaddress
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from imgwire.errors import UsageError

CA_FILE = "ca.pem"

DEFAULT_DAYS = 365

MAX_DAYS = 3650
"""Ten years: longer is a slip of the finger, and runs past 2049, where the dates' encoding changes."""

CLOCK_SKEW = datetime.timedelta(minutes=5)
"""Certificates are valid from a little earlier, for nodes whose clocks are behind."""

_NODE = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]{0,62}")
"""A host name or address that is also a plain file name; a certificate's common name has at most 64
characters.
"""


def run(directory: Path, nodes: Sequence[str], days: int = DEFAULT_DAYS, out: TextIO = sys.stdout) -> None:
    """The command: make the set and say where it lies and which files go to which node."""
    make_set(directory, nodes, days)
    for node in nodes:
        print(
            f"{node}: --tls-cacert {directory / CA_FILE} --tls-cert {directory / f'{node}.pem'} "
            f"--tls-key {directory / f'{node}.key'}",
            file=out,
        )


def make_set(directory: Path, nodes: Sequence[str], days: int) -> None:
    """Write ca.pem, and NODE.pem and NODE.key (mode 0600) for each host name or IP, valid for `days` from
    now.

    All or nothing: UsageError if a name is no good or a file is already there; on any error no file stays
    behind.
    """
    _check(nodes, days)
    contents = _contents(nodes, days)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_all(directory, contents)
    except FileExistsError as error:
        raise UsageError(f"{error.filename}: exists, and is not overwritten: name a new directory") from error


def _check(nodes: Sequence[str], days: int) -> None:
    if not nodes:
        raise UsageError("certs: no node named: give the host name or IP of each node")
    if not 0 < days <= MAX_DAYS:
        raise UsageError(f"certs: {days} days is no time to be valid for: give 1 to {MAX_DAYS}")
    for node in nodes:
        if not _NODE.fullmatch(node) or node == "ca":
            raise UsageError(f"certs: {node!r} cannot name a node: give a host name or an IP")
        if nodes.count(node) > 1:
            raise UsageError(f"certs: {node} is named twice: name each node once")


def _contents(nodes: Sequence[str], days: int) -> dict[str, bytes]:
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _authority(authority_key, days)
    contents = {CA_FILE: authority.public_bytes(Encoding.PEM)}
    for node in nodes:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _node(node, key, authority, authority_key)
        contents[f"{node}.key"] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        contents[f"{node}.pem"] = certificate.public_bytes(Encoding.PEM)
    return contents


def _authority(key: ec.EllipticCurvePrivateKey, days: int) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"imgproxy CA {os.urandom(4).hex()}")])
    now = datetime.datetime.now(datetime.UTC)
    builder = _builder(name, name, key, now - CLOCK_SKEW, now + datetime.timedelta(days=days))
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, SHA256())
    )


def _node(
    node: str,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    start, end = authority.not_valid_before_utc, authority.not_valid_after_utc
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    both_ends = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder(name, authority.subject, key, start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(both_ends, critical=False)
        .add_extension(signer, critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(node)]), critical=False)
        .sign(authority_key, SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    start: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(node: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(node))
    except ValueError:
        return x509.DNSName(node)


def _write_all(directory: Path, contents: dict[str, bytes]) -> None:
    made: list[Path] = []
    try:
        for name, data in contents.items():
            path = directory / name
            mode = 0o600 if name.endswith(".key") else 0o644
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
                made.append(path)
                file.write(data)
    except OSError:
        for path in made:
            path.unlink()
        raise
