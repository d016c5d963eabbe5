"""The set of certificates that the command makes: what is in it, who may read it, what it refuses."""

import datetime
import io
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from imgnode import certs, tls
from imgwire.errors import UsageError

pytestmark = pytest.mark.t0


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_files(tmp_path: Path) -> None:
    certs.make_set(tmp_path / "set", ["node-a.example", "10.0.0.2"], 30)
    names = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "set").iterdir()}
    assert names == {
        "ca.pem": 0o644,
        "node-a.example.pem": 0o644,
        "node-a.example.key": 0o600,
        "10.0.0.2.pem": 0o644,
        "10.0.0.2.key": 0o600,
    }
    assert (tmp_path / "set").stat().st_mode & 0o777 == 0o700


def test_the_certificates(tmp_path: Path) -> None:
    certs.make_set(tmp_path, ["node-a.example", "::1"], 30)
    authority = _load(tmp_path / "ca.pem")
    for name, kind, expected in (
        ("node-a.example", x509.DNSName, "node-a.example"),
        ("::1", x509.IPAddress, ipaddress.ip_address("::1")),
    ):
        certificate = _load(tmp_path / f"{name}.pem")
        certificate.verify_directly_issued_by(authority)
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [one.value for one in san] == [expected]
        assert isinstance(san[0], kind)
        public = certificate.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert public.curve.name == "secp256r1"
        life = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        assert datetime.timedelta(days=29) < life <= datetime.timedelta(days=30)


def test_no_key_of_the_ca_is_written(tmp_path: Path) -> None:
    certs.make_set(tmp_path, ["a"], 1)
    ca = tmp_path / "ca.pem"
    assert b"PRIVATE" not in ca.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.key")) == ["a.key"]


def test_the_set_passes_our_own_checks_and_strict_ones(tmp_path: Path) -> None:
    certs.make_set(tmp_path, ["a", "b"], 1)
    for node in ("a", "b"):
        context = tls.server_context(tmp_path / "ca.pem", tmp_path / f"{node}.pem", tmp_path / f"{node}.key")
        assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("existing", ["ca.pem", "a.key", "b.pem"])
def test_never_overwrites_and_leaves_nothing_behind(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(UsageError, match=existing):
        certs.make_set(tmp_path, ["a", "b"], 1)
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("")
    with pytest.raises(UsageError, match="set: exists"):
        certs.make_set(tmp_path / "set", ["a"], 1)


@pytest.mark.parametrize(
    ("nodes", "days", "reason"),
    [
        ([], 1, "no node"),
        (["a", "b", "a"], 1, "named twice"),
        (["../a"], 1, "cannot name a node"),
        ([".a"], 1, "cannot name a node"),
        (["ca"], 1, "cannot name a node"),
        (["a" * 64], 1, "cannot name a node"),
        (["a\n"], 1, "cannot name a node"),
        (["a"], 0, "0 days"),
        (["a"], 10_000, "10000 days"),
    ],
)
def test_refusals(tmp_path: Path, nodes: list[str], days: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        certs.make_set(tmp_path, nodes, days)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_which_file_goes_where(tmp_path: Path) -> None:
    out = io.StringIO()
    certs.run(tmp_path, ["a", "b"], out=out)
    first, second = out.getvalue().splitlines()
    assert first == (f"a: --tls-cacert {tmp_path}/ca.pem --tls-cert {tmp_path}/a.pem --tls-key {tmp_path}/a.key")
    assert second.startswith("b: ")
