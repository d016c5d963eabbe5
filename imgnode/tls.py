"""Mutual TLS 1.3 between the nodes: the contexts, and what to say when a handshake fails.

Whoever can speak to a cache can start processes on its node, and whoever can pose as one receives a process's
memory, so both sides prove themselves: each shows a certificate of the same CA, and the client also checks
that the server's names the host it wanted. Own files are checked before anything starts: what is wrong with
them must not be found out with a frozen process in hand. The `ssl` module says why a handshake failed in
OpenSSL's words; `describe_tls_error` says who has to mend what.
"""

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from imgwire.errors import UsageError


def server_context(ca: Path, cert: Path, key: Path) -> ssl.SSLContext:
    """For the side that listens: the peer must show a certificate that `ca` signed.

    UsageError for files that cannot work.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, ca, cert, key)


def client_context(ca: Path, cert: Path, key: Path) -> ssl.SSLContext:
    """For the side that connects: besides, the server's certificate must name the host (or IP) that was
    wanted.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, ca, cert, key)
    context.check_hostname = True
    return context


def _context(protocol: int, ca: Path, cert: Path, key: Path) -> ssl.SSLContext:
    check_files(ca, cert, key)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cafile=str(ca))
    context.load_cert_chain(certfile=str(cert), keyfile=str(key))
    return context


def check_files(ca: Path, cert: Path, key: Path) -> None:
    """Whether the three files exist, can be read, belong together and are valid today.

    UsageError names the one that is not.
    """
    authorities = _certificates(ca, "--tls-cacert")
    chain = _certificates(cert, "--tls-cert")
    for authority in authorities:
        _check_dates(authority, ca, "--tls-cacert")
    for certificate in chain:
        _check_dates(certificate, cert, "--tls-cert")
    _check_key(chain[0], cert, key)
    if not any(_issued(one, authority) for one in chain for authority in authorities):
        raise UsageError(
            f"--tls-cert {cert}: no CA in {ca} signed it: give the files of one set, such as imgproxy certs makes them"
        )


def _certificates(path: Path, option: str) -> list[x509.Certificate]:
    data = _read(path, option)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise UsageError(f"{option} {path}: no PEM certificate in it: give a file with one") from error


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read ({error.strerror}): give a file that can be") from error


def _check_dates(certificate: x509.Certificate, path: Path, option: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    end, start = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if now > end:
        raise UsageError(f"{option} {path}: expired at {end:%Y-%m-%d %H:%M} UTC: make a new set of certificates")
    if now < start:
        raise UsageError(f"{option} {path}: valid only from {start:%Y-%m-%d %H:%M} UTC: set this node's clock, or wait")


def _check_key(certificate: x509.Certificate, cert: Path, key: Path) -> None:
    try:
        private = load_pem_private_key(_read(key, "--tls-key"), password=None)
    except TypeError as error:
        raise UsageError(f"--tls-key {key}: it has a passphrase: give a key without one") from error
    except ValueError as error:
        raise UsageError(f"--tls-key {key}: no PEM private key in it: give the key of {cert}") from error
    encoding = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*encoding) != certificate.public_key().public_bytes(*encoding):
        raise UsageError(f"--tls-key {key}: not the key of {cert}: give the key that was made with it")


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


OURS = "this side refuses the peer"
THEIRS = "the peer refuses this side"

_VERIFY_CODES = {
    9: "the peer's certificate is not valid yet: set the clocks of both nodes",
    10: "the peer's certificate has expired: make a new set of certificates",
    18: "the peer's certificate is self-signed: give both nodes certificates of one CA",
    19: "the peer's certificate comes from another CA: give both nodes certificates of one CA",
    20: "the peer's certificate comes from another CA: give both nodes certificates of one CA",
    21: "the peer's certificate comes from another CA: give both nodes certificates of one CA",
    26: "the peer's certificate is not made for this side of a connection: make a new set of certificates",
    62: "the peer's certificate names other hosts: connect by a name that it holds, or make one with this name",
    64: "the peer's certificate names other addresses: connect by one that it holds, or make one with this one",
}
"""X509_V_ERR_* of OpenSSL (its x509_vfy.h): our own check of the peer failed."""

_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": f"{OURS}: it sent no certificate: start it with --tls-cert and --tls-key",
    "WRONG_VERSION_NUMBER": f"{OURS}: it does not speak TLS: start it with the --tls options too",
    "HTTP_REQUEST": f"{OURS}: it speaks HTTP: check the port",
    "UNSUPPORTED_PROTOCOL": f"{OURS}: it cannot do TLS 1.3: use a newer OpenSSL there",
    "TLSV1_ALERT_PROTOCOL_VERSION": f"{THEIRS}: it cannot do TLS 1.3: use a newer OpenSSL there",
    "TLSV1_ALERT_UNKNOWN_CA": f"{THEIRS}: our certificate comes from another CA than its --tls-cacert",
    "TLSV1_ALERT_DECRYPT_ERROR": f"{THEIRS}: our certificate comes from another CA than its --tls-cacert",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": f"{THEIRS}: we sent no certificate: give --tls-cert and --tls-key",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"{THEIRS}: our certificate has expired there: make a new set, or set its clock",
    "SSLV3_ALERT_BAD_CERTIFICATE": f"{THEIRS}: our certificate does not name the host that it wanted, or is damaged",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": f"{THEIRS}: it does not accept our certificate: see the peer's log",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": f"{THEIRS}: our certificate is not made for this side of a connection",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": f"{THEIRS}: it finds no common settings: see the peer's log",
}
"""OpenSSL's reason codes: alerts come from the peer, the rest is our own verdict."""


def describe_tls_error(error: BaseException) -> str:
    """One line that says what failed in a handshake, on which side, and what to do.

    Takes trio's wrappers too.
    """
    found = _ssl_error(error)
    if isinstance(found, ssl.SSLCertVerificationError):
        known = _VERIFY_CODES.get(found.verify_code)
        return f"TLS: {OURS}: {known or f'its certificate fails the check ({found.verify_message})'}"
    if found is None:
        return (
            "TLS: the peer closed the connection during the handshake: it may not speak TLS; see its log for its reason"
        )
    if isinstance(found, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return "TLS: the peer closed the connection without a reason: it may not speak TLS; see its log"
    reason = getattr(found, "reason", None) or str(found)
    return f"TLS: {_REASONS.get(reason, f'the handshake failed ({reason}): see the logs of both sides')}"


def _ssl_error(error: BaseException | None) -> ssl.SSLError | None:
    """The SSLError behind an exception that was raised from it."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__
    return error
