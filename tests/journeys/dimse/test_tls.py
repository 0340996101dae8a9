"""Proves TLS in both directions with DCMTK, Orthanc, pynetdicom and openssl."""

from __future__ import annotations

import gc
import json
import queue
import re
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt

from benchmarks.ingest import free_port
from node.app import Node
from node.config import Peer, TlsSettings, parse
from node.dimse.client import Address, image_identifier, move
from node.dimse.pynetdicom_patches.connection_limits import WAITING
from node.dimse.pynetdicom_patches.entity import ArchiveSocket
from node.dimse.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from node.dimse.tls import CIPHERS, client_context, expiries, server_context
from storage.errors import ConfigError
from tests.conftest import need, settings_for, wait_for
from tests.support import samples
from tests.support.certificates import Authority, Signed
from tests.support.commands import run as run_command
from tests.support.peers import Orthanc, OrthancError, run, storescp

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")


@dataclass(frozen=True)
class Certificates:
    """Certificates that one authority has signed for everybody, and one that another authority has signed."""

    ca: Path
    node: Signed
    modality: Signed
    viewer: Signed
    stranger: Signed
    expired: Signed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    authority = Authority(tmp_path_factory.mktemp("authority"))
    node, modality, viewer = (authority.sign(name) for name in ("localhost", "modality.test", "viewer.test"))
    expired = authority.sign("expired.test", days=-1)
    other = Authority(tmp_path_factory.mktemp("other"), "Another authority")
    return Certificates(authority.file, node, modality, viewer, other.sign("modality.test"), expired)


@dataclass(frozen=True)
class Secured:
    """A node that listens for TLS and for plain DICOM, and the destination of its moves."""

    node: Node
    viewer_port: int
    orthanc_port: int

    @property
    def tls(self) -> Address:
        return Address("127.0.0.1", self.node.server.tls_port, "LATENTPACS")

    @property
    def plain(self) -> Address:
        return Address("127.0.0.1", self.node.server.port, "LATENTPACS")


@pytest.fixture(scope="module")
def secured(made: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    viewer_port, orthanc_port, ask = free_port(), free_port(), ["echo", "find", "move", "get"]
    local = {"host": "127.0.0.1", "tls": True}
    named = {**local, "tls_name": "viewer.test"}
    peers = [
        {"ae_title": "MODALITY", "allow": ["echo", "store"], "tls": True, "tls_name": "modality.test"},
        {"ae_title": "VIEWER", "allow": [*ask, "store", "commit"], "port": viewer_port, **named},
        {"ae_title": "WRONGNAME", "allow": ask, "port": viewer_port, "tls_name": "elsewhere.test", **local},
        {"ae_title": "ORTHANC", "allow": [*ask, "store"], "port": orthanc_port, "tls_name": "viewer.test", **local},
        {"ae_title": "PLAIN", "allow": ["echo", "move"]},
        {"ae_title": "NAMED", "allow": ["echo"], "tls_name": "viewer.test"},
    ]
    tls = {"certificate": str(made.node.certificate), "key": str(made.node.key), "ca": str(made.ca), "port": 0}
    root = tmp_path_factory.mktemp("node") / "archive"
    with Node(settings_for(root, peers=peers, tls=tls, archivist={"enabled": False})) as node:
        yield Secured(node, viewer_port, orthanc_port)
    gc.collect()


def tls_options(made: Certificates, own: Signed) -> list[object]:
    return ["+tls", own.key, own.certificate, "+cf", made.ca]


def echo(made: Certificates, own: Signed, to: Address, *options: object, calling: str) -> int:
    return run(
        *("echoscu", *tls_options(made, own), *options, "-aet", calling, "-aec", to.ae_title, to.host, to.port)
    ).code


def image(path: Path) -> tuple[Path, str]:
    ds = samples.mammogram(samples.breast(256, 256))
    return samples.write(ds, path), str(ds.StudyInstanceUID)


@pytest.mark.slow
def test_dcmtk_stores_finds_moves_and_gets_over_tls(made: Certificates, secured: Secured, tmp_path: Path) -> None:
    file, study = image(tmp_path / "image.dcm")
    to, modality, viewer = secured.tls, tls_options(made, made.modality), tls_options(made, made.viewer)
    where = ("-aec", to.ae_title, to.host, to.port)
    ran = run("storescu", "-d", *modality, "-aet", "MODALITY", *where, file)
    assert (ran.code, ran.status) == (0, 0), ran.said
    key = ("-k", f"StudyInstanceUID={study}", "-k", "QueryRetrieveLevel=STUDY")
    ran = run("findscu", "-d", "-S", *viewer, "-aet", "VIEWER", *key, *where)
    assert ran.statuses == [0xFF00, 0], ran.said
    with storescp(tmp_path / "moved", secured.viewer_port, *viewer) as destination:
        final = move(image_identifier(study), secured.plain, calling="PLAIN", destination="VIEWER")
        assert (final.Status, final.NumberOfCompletedSuboperations) == (0, 1)
        assert destination.only().read_bytes().endswith(file.read_bytes()[-1000:])


def test_pynetdicom_gets_over_tls(made: Certificates, secured: Secured, tmp_path: Path) -> None:
    """DCMTK 3.6.7 has no TLS in movescu and getscu."""
    file, study = image(tmp_path / "image.dcm")
    to = secured.tls
    run("storescu", *tls_options(made, made.modality), "-aet", "MODALITY", "-aec", to.ae_title, to.host, to.port, file)
    context = ssl.create_default_context(cafile=str(made.ca))
    context.load_cert_chain(made.viewer.certificate, made.viewer.key)
    entity, got = AE("VIEWER"), []
    entity.add_requested_context("1.2.840.10008.5.1.4.1.2.2.3")
    entity.add_requested_context(samples.MAMMOGRAPHY, ExplicitVRLittleEndian)

    def keep(event: Any) -> int:
        got.append(event.encoded_dataset(include_meta=False))
        return 0

    assoc = entity.associate(
        *(to.host, to.port),
        tls_args=(context, "localhost"),
        ext_neg=[build_role(samples.MAMMOGRAPHY, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )
    assert assoc.is_established
    answers = list(assoc.send_c_get(image_identifier(study), "1.2.840.10008.5.1.4.1.2.2.3"))
    assoc.release()
    assert answers[-1][0].Status == 0
    assert [file.read_bytes().endswith(one) for one in got] == [True]


def test_a_destination_without_tls_or_of_another_name_gets_nothing(
    made: Certificates, secured: Secured, tmp_path: Path
) -> None:
    file, study = image(tmp_path / "image.dcm")
    to = secured.tls
    run("storescu", *tls_options(made, made.modality), "-aet", "MODALITY", "-aec", to.ae_title, to.host, to.port, file)
    with storescp(tmp_path / "named", secured.viewer_port, *tls_options(made, made.viewer)) as destination:
        final = move(image_identifier(study), secured.plain, calling="PLAIN", destination="WRONGNAME")
        assert (final.Status, final.NumberOfFailedSuboperations) == (0xA702, 1)
        assert destination.files() == []
    with storescp(tmp_path / "plain", secured.viewer_port) as destination:
        final = move(image_identifier(study), secured.plain, calling="PLAIN", destination="VIEWER")
        assert (final.Status, final.NumberOfFailedSuboperations) == (0xA702, 1)
        assert destination.files() == []


def test_who_may_come_in(made: Certificates, secured: Secured) -> None:
    assert echo(made, made.modality, secured.tls, calling="MODALITY") == 0
    assert echo(made, made.stranger, secured.tls, calling="MODALITY") != 0, "signed by another authority"
    assert echo(made, made.viewer, secured.tls, calling="MODALITY") != 0, "a certificate of another peer"
    assert echo(made, made.viewer, secured.tls, calling="PLAIN") == 0, "a peer without tls_name"
    assert echo(made, made.viewer, secured.tls, calling="NAMED") == 0, "the certificate of its entry"
    anonymous = run("echoscu", "+tla", "-ic", "-aet", "MODALITY", secured.tls.host, secured.tls.port)
    assert anonymous.code != 0, "no certificate"
    for title, code in (("MODALITY", 1), ("NAMED", 1), ("PLAIN", 0), ("NOBODY", 0)):
        ran = run("echoscu", "-aet", title, "-aec", "LATENTPACS", secured.plain.host, secured.plain.port)
        assert bool(ran.code) == bool(code), f"{title} without TLS"


@pytest.mark.parametrize(("version", "spoken"), [("1", False), ("1_1", False), ("1_2", True), ("1_3", True)])
def test_versions(made: Certificates, secured: Secured, version: str, spoken: bool) -> None:
    said = s_client(made, secured.tls.port, f"-tls{version}", "-cipher", "ALL:@SECLEVEL=0")
    assert ("Verify return code: 0 (ok)" in said and "Cipher is (NONE)" not in said) == spoken, said


@pytest.mark.parametrize(
    ("cipher", "spoken"),
    [
        ("ECDHE-RSA-AES256-GCM-SHA384", True),
        ("ECDHE-RSA-AES128-GCM-SHA256", True),
        ("AES256-GCM-SHA384", False),
        ("ECDHE-RSA-AES256-SHA384", False),
        ("DHE-RSA-AES256-GCM-SHA384", False),
    ],
)
def test_ciphers_of_tls_1_2(made: Certificates, secured: Secured, cipher: str, spoken: bool) -> None:
    said = s_client(made, secured.tls.port, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
    found = re.search(r"Cipher is (\S+)", said)
    assert found is not None, said
    assert (found[1] == cipher) == spoken
    assert (cipher in CIPHERS) == spoken


def s_client(made: Certificates, port: int, *options: str) -> str:
    """The output of openssl's client about a handshake."""
    need("openssl")
    own = ("-cert", made.modality.certificate, "-key", made.modality.key, "-CAfile", made.ca)
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *map(str, own), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=False,
    )
    return done.stdout.decode() + done.stderr.decode()


def test_a_silent_caller_locks_nobody_out(made: Certificates, secured: Secured) -> None:
    """The TLS handshake of one caller must not delay the others."""
    with (
        socket.create_connection((secured.tls.host, secured.tls.port)),
        socket.create_connection((secured.tls.host, secured.tls.port)) as talks_nonsense,
    ):
        talks_nonsense.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert echo(made, made.modality, secured.tls, calling="MODALITY") == 0


def test_a_handshake_gives_way_to_a_new_connection(made: Certificates, secured: Secured, caplog: Any) -> None:
    """Callers that begin a handshake and stop do not keep others out."""
    entity = secured.node.server.entity
    most, entity.maximum_associations = entity.maximum_associations, 2 + WAITING
    try:
        with (
            socket.create_connection((secured.tls.host, secured.tls.port)) as first,
            socket.create_connection((secured.tls.host, secured.tls.port)) as second,
        ):
            first.sendall(b"\x16\x03\x01")
            assert echo(made, made.modality, secured.tls, calling="MODALITY") == 0
            first.settimeout(20)
            assert first.recv(1) == b""
            assert not select.select([second], [], [], 0)[0]
    finally:
        entity.maximum_associations = most
    lines = [one.getMessage() for one in caplog.records]
    assert [line for line in lines if "no TLS" in line] == []
    assert "which had asked for nothing for" in lines[0]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("nothing", None),
        ("DICOM", "it does not speak TLS"),
        ("half a handshake", "it closed the connection during the handshake"),
        ("no certificate", "it has no certificate (tls.clients)"),
        ("another authority", "its certificate is refused: unable to get local issuer certificate"),
        ("an expired certificate", "its certificate is refused: certificate has expired"),
        ("an old version", "it offers no version of TLS that tls.minimum allows"),
        ("distrust", "it refused the handshake: unknown ca"),
    ],
)
def test_a_handshake_that_fails_is_one_line_with_its_cause(
    made: Certificates, secured: Secured, caplog: pytest.LogCaptureFixture, what: str, says: str | None
) -> None:
    """OpenSSL's messages, such as "wrong version number", do not say which side failed. A port scan logs nothing, as
    without TLS."""
    own = {"another authority": made.stranger, "an expired certificate": made.expired, "no certificate": None}
    if what == "an old version":
        s_client(made, secured.tls.port, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    with socket.create_connection((secured.tls.host, secured.tls.port)) as raw:
        if what in ("nothing", "an old version", "DICOM", "half a handshake"):
            raw.sendall({"DICOM": b"\1\0\0\0\0\x44\0\1", "half a handshake": b"\x16\x03\x01\1"}.get(what, b""))
        else:
            calling = ssl.create_default_context(cafile=None if what == "distrust" else str(made.ca))
            calling.set_ciphers("ALL:@SECLEVEL=0")
            signed = own.get(what, made.modality)
            if signed is not None:
                calling.load_cert_chain(signed.certificate, signed.key)
            with suppress(OSError), calling.wrap_socket(raw, server_hostname="localhost") as wrapped:
                wrapped.recv(1)
    assert echo(made, made.modality, secured.tls, calling="MODALITY") == 0
    wait_for(lambda: not secured.node.server._listeners[1]._opening, what="the handshake has ended")
    lines = [one.getMessage() for one in caplog.records if "TLS" in one.getMessage()]
    assert lines == ([] if says is None else [f"no TLS with 127.0.0.1: {says}"])


def test_a_session_ticket_is_no_pdu(made: Certificates) -> None:
    """After a handshake of TLS 1.3 the server sends tickets, and the client's socket is readable without any data."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(made.node.certificate, made.node.key)
    calling = ssl.create_default_context(cafile=str(made.ca))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wrapped: list[ssl.SSLSocket] = []
        shaking = threading.Thread(target=lambda: wrapped.append(serving.wrap_socket(theirs, server_side=True)))
        shaking.start()
        client = calling.wrap_socket(ours, server_hostname="localhost")
        shaking.join()
        assert client.version() == "TLSv1.3"
        ends = SimpleNamespace(maximum_length=0)
        dul = SimpleNamespace(event_queue=queue.Queue())
        entity = SimpleNamespace(network_timeout=10)
        assoc: Any = SimpleNamespace(dul=dul, ae=entity, is_acceptor=True, is_established=True, acceptor=ends)
        bounded = ArchiveSocket(assoc, client_socket=client)
        assert select.select([client], [], [], 10)[0], "tickets have arrived"
        assert not bounded.ready
        wrapped[0].sendall(b"PDUPDU")
        wait_for(lambda: bounded.ready, what="a PDU has begun")
        assert bounded.ready
        assert bounded.recv(4) == b"PDUP"
        assert bounded.recv(2) == b"DU"
        wrapped[0].close()
        wait_for(lambda: bounded.ready, what="the end of the connection")
        assert bounded.recv(6) == b""
        client.close()


def test_a_commitment_is_reported_over_tls(made: Certificates, secured: Secured, tmp_path: Path) -> None:
    file, _ = image(tmp_path / "image.dcm")
    context = ssl.create_default_context(cafile=str(made.ca))
    context.load_cert_chain(made.viewer.certificate, made.viewer.key)
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(made.viewer.certificate, made.viewer.key)
    listening.load_verify_locations(made.ca)
    listening.verify_mode = ssl.CERT_REQUIRED
    heard: queue.Queue[int] = queue.Queue()

    def report(event: Any) -> tuple[int, None]:
        heard.put(event.event_type)
        return 0, None

    entity = AE("VIEWER")
    entity.add_requested_context(STORAGE_COMMITMENT)
    entity.add_requested_context(samples.MAMMOGRAPHY, ExplicitVRLittleEndian)
    entity.add_supported_context(STORAGE_COMMITMENT, scu_role=False, scp_role=True)
    server: Any = entity.start_server(
        ("127.0.0.1", secured.viewer_port),
        block=False,
        ssl_context=listening,
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)],
    )
    assoc = entity.associate(secured.tls.host, secured.tls.port, tls_args=(context, "localhost"))
    assert assoc.is_established
    assert assoc.send_c_store(dcmread(file)).Status == 0
    information, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID = samples.MAMMOGRAPHY
    item.ReferencedSOPInstanceUID = dcmread(file).SOPInstanceUID
    information.TransactionUID, information.ReferencedSOPSequence = generate_uid(), [item]
    status, _ = assoc.send_n_action(information, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
    assoc.release()
    assert status.Status == 0
    assert heard.get(timeout=300) == 1
    server.shutdown()


def test_orthanc_over_tls_both_ways(made: Certificates, secured: Secured, tmp_path: Path) -> None:
    """Orthanc stores to us, queries and moves images to itself, each over TLS with its certificate."""
    file, study = image(tmp_path / "image.dcm")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(made.ca.read_bytes())
    own = {"DicomTlsCertificate": str(made.viewer.certificate), "DicomTlsPrivateKey": str(made.viewer.key)}
    settings = {"DicomTlsEnabled": True, "DicomTlsTrustedCertificates": str(trusted), **own}
    with Orthanc(tmp_path, dicom_port=secured.orthanc_port, **settings) as orthanc:
        know = {"AET": "LATENTPACS", "Host": "127.0.0.1", "Port": secured.tls.port, "LocalAet": "ORTHANC"}
        orthanc.call("PUT", "/modalities/us", {**know, "UseDicomTls": True})
        orthanc.call("PUT", "/modalities/plain", {**know, "Port": secured.plain.port, "UseDicomTls": False})
        sent = orthanc.call("POST", "/instances", file.read_bytes())["ID"]
        with pytest.raises(OrthancError):
            orthanc.post("/modalities/plain/store", [sent])
        assert orthanc.post("/modalities/us/store", [sent])["FailedInstancesCount"] == 0
        orthanc.clear()
        asked = orthanc.post("/modalities/us/query", {"Level": "Study", "Query": {"StudyInstanceUID": study}})
        orthanc.post(f"{asked['Path']}/answers/0/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
        assert len(orthanc.instances()) == 1


def test_tls_only_listens_nowhere_else(made: Certificates, tmp_path: Path) -> None:
    tls = {"certificate": str(made.node.certificate), "key": str(made.node.key), "port": 0}
    more = {"only": True, "clients": "optional", "minimum": "1.3"}
    peers = [{"ae_title": "MODALITY", "allow": ["echo"]}, {"ae_title": "NAMED", "allow": ["echo"], "tls_name": "*"}]
    settings = settings_for(tmp_path / "archive", tls={**tls, **more}, peers=peers, archivist={"enabled": False})
    with Node(settings) as node:
        assert node.server.ports == f"{node.server.tls_port} (TLS)"
        context = ssl.create_default_context(cafile=str(made.ca))
        assoc = _echo_association(node.server.tls_port, context)
        assert assoc.is_established
        assert assoc.send_c_echo().Status == 0
        assoc.release()
        assert _echo_association(node.server.tls_port, context, "NAMED").is_rejected  # any name, but it shows none
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert not _echo_association(node.server.tls_port, context).is_established
    gc.collect()


def test_a_taken_tls_port_is_said_and_leaves_nothing_open(made: Certificates, tmp_path: Path) -> None:
    plain = free_port()
    tls = {"certificate": str(made.node.certificate), "key": str(made.node.key), "clients": "optional"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = settings_for(tmp_path / "archive", tls={**tls, "port": taken.getsockname()[1]}, node={"port": plain})
        node = Node(settings)
        with pytest.raises(ConfigError, match=r"tls\.port"):
            node.start()
    with socket.create_server(("127.0.0.1", plain)):
        pass


def _echo_association(port: int, context: ssl.SSLContext, calling: str = "MODALITY") -> Any:
    entity = AE(calling)
    entity.add_requested_context("1.2.840.10008.1.1")
    return entity.associate("127.0.0.1", port, tls_args=(context, "localhost"))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"tls": {"certificate": "a.pem"}}, "certificate and key belong together"),
        ({"tls": {"certificate": "a.pem", "key": "b.pem"}}, "clients: required needs ca"),
        ({"tls": {"only": True}}, "only: true needs certificate"),
        ({"tls": {"minimum": "1.1"}}, "tls.minimum"),
        ({"peers": [{"ae_title": "A", "tls": True}]}, "A has tls: true"),
        ({"peers": [{"ae_title": "A", "from": ["10.0.0.1/8"]}]}, "is not a network"),
        ({"peers": [{"ae_title": "A", "form": []}]}, "did you mean from?"),
    ],
)
def test_mistakes(raw: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(raw, "test.yaml")
    assert says in str(error.value)


def test_files_that_cannot_be_used(made: Certificates, tmp_path: Path) -> None:
    own = {"certificate": str(made.node.certificate), "key": str(made.node.key), "clients": "optional"}
    with pytest.raises(ConfigError, match=r"tls\.certificate"):
        server_context(TlsSettings(**{**own, "key": str(made.viewer.key)}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tls\.ca"):
        server_context(TlsSettings(**own, ca=str(tmp_path / "none.pem")))  # type: ignore[arg-type]
    locked = tmp_path / "locked.pem"
    encrypt = ("openssl", "pkey", "-in", made.node.key, "-aes256", "-passout", "pass:secret", "-out", locked)
    subprocess.run(list(map(str, encrypt)), check=True, capture_output=True, timeout=300)
    with pytest.raises(ConfigError, match="encrypted"):
        server_context(TlsSettings(**{**own, "key": str(locked)}))  # type: ignore[arg-type]


def test_certificates_that_expire_are_named(made: Certificates, tmp_path: Path) -> None:
    tls = {"certificate": str(made.node.certificate), "key": str(made.node.key), "ca": str(made.ca)}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"tls": tls, "storage": {"root": str(tmp_path / "archive")}}))
    done = run_command("config", "check", "--config", str(file), "--json")
    assert (done.returncode, json.loads(done.stdout)["problems"]) == (0, [])
    day = f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}"
    assert json.loads(done.stdout)["warnings"] == [
        f"{key} {path} expires on {day}; renew it and restart the node"
        for key, path in (("tls.certificate", made.node.certificate), ("tls.ca", made.ca))
    ]
    tls |= {"certificate": str(made.expired.certificate), "key": str(made.expired.key)}
    file.write_text(yaml.safe_dump({"tls": tls, "storage": {"root": str(tmp_path / "archive")}}))
    done = run_command("config", "check", "--config", str(file))
    assert done.returncode == 2
    assert f"tls.certificate {made.expired.certificate} expired on " in done.stdout
    assert expiries(TlsSettings()) == []


def test_a_certificate_whose_end_cannot_be_read_is_used(made: Certificates, tmp_path: Path) -> None:
    """Formerly, the node ended with a traceback at its start."""
    trusted = tmp_path / "trusted.pem"
    form = ("openssl", "x509", "-trustout", "-in", str(made.node.certificate), "-out", str(trusted))
    subprocess.run(form, check=True, capture_output=True, timeout=300)
    settings = TlsSettings(certificate=str(trusted), key=str(made.node.key), ca=str(made.ca))
    assert server_context(settings)
    assert [one.key for one in expiries(settings)] == ["tls.ca"]


def test_names_of_those_we_call() -> None:
    def asked(tls_name: str) -> tuple[bool, str]:
        context, name = client_context(TlsSettings(), Peer(ae_title="A", host="h.test", port=1, tls_name=tls_name))
        return context.check_hostname, name

    assert asked("") == (True, "h.test")
    assert asked("other.test") == (True, "other.test")
    assert asked("*") == (False, "h.test")
