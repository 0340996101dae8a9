"""TLS contexts by the BCP 195 RFC 8996, 9325 profile (PS3.15 B.12)."""

from __future__ import annotations

import _ssl
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from node.config import Peer, TlsSettings
from storage.errors import ConfigError

CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
)
"""TLS 1.2 cipher suites that RFC 9325 section 4.2 recommends: ephemeral keys and authenticated encryption. All suites
of TLS 1.3 have both."""

ANY_NAME = "*"
"""``tls_name`` of a peer whose certificate may have any name."""


_SOON = 30
"""Days before a certificate expires from which warnings name it. Chosen, not measured."""


@dataclass(frozen=True)
class Expiry:
    """When the certificate in a file expires; for several authorities, the last expiry. ``key``: of config.yaml."""

    key: str
    file: str
    at: datetime

    @property
    def days(self) -> int:
        """Whole days until the expiry, below 0 after it."""
        return (self.at - datetime.now(UTC)).days

    @property
    def soon(self) -> bool:
        return self.days < _SOON

    def __str__(self) -> str:
        when = "expired" if self.days < 0 else "expires"
        return f"{self.key} {self.file} {when} on {self.at:%Y-%m-%d}; renew it and restart the node"


def expiries(settings: TlsSettings) -> list[Expiry]:
    """When our certificate and the authorities expire. Raises ConfigError if a file cannot be used."""
    authorities = _context(ssl.PROTOCOL_TLS_CLIENT, settings).get_ca_certs()
    own = []
    with suppress(AttributeError, ssl.SSLError):  # a private function, which does not read every PEM file
        own = [_ssl._test_decode_cert(settings.certificate)] if settings.certificate else []  # type: ignore[attr-defined]
    files = (("tls.certificate", settings.certificate, own), ("tls.ca", settings.ca, authorities))
    ends = [
        (key, file, [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in found]) for key, file, found in files
    ]
    return [Expiry(key, file, datetime.fromtimestamp(max(of), UTC)) for key, file, of in ends if of]


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """The context for peers that call us. Raises ConfigError if a file cannot be used."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings)
    if settings.ca:
        required = settings.clients == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def client_context(settings: TlsSettings, peer: Peer) -> tuple[ssl.SSLContext, str]:
    """The context for a peer that we call, and the name that its certificate must have. Raises ConfigError."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings)
    if not settings.ca:
        context.load_default_certs()
    if peer.tls_name == ANY_NAME:
        context.check_hostname = False
        return context, peer.host
    return context, peer.tls_name or peer.host


def names_in(certificate: dict[str, Any]) -> set[str]:
    """Alternative names and common name of a verified certificate, as ``SSLSocket.getpeercert`` returns it."""
    names = {value.lower() for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")}
    for part in certificate.get("subject", ()):
        names |= {value.lower() for key, value in part if key == "commonName"}
    return names


def _context(protocol: Any, settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if settings.minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(CIPHERS))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    if settings.certificate:
        try:
            context.load_cert_chain(settings.certificate, settings.key, password=_no_password)
        except OSError as error:  # SSLError is one
            raise ConfigError(f"tls.certificate {settings.certificate} with tls.key cannot be used: {error}") from error
    if settings.ca:
        try:
            context.load_verify_locations(settings.ca)
        except OSError as error:
            raise ConfigError(f"tls.ca {settings.ca} cannot be used: {error}") from error
    return context


def _no_password() -> NoReturn:
    raise ConfigError("tls.key is encrypted; the node cannot ask for a password: use a key without one, with mode 0600")
