"""Real proxies before a real gateway, by the very configurations of `deploy/proxies` with paths and ports put in."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from gateway import pki as ours
from gateway.authentication.authorities import fingerprint_of
from sealgate.ambient import now_us, random_bytes
from sealgate.protocol import frames
from tests.gateway.conftest import Running, hosted, post_sealed, sealed_request
from tests.gateway.issuing import Ca, install, key_pem, pem
from tests.gateway.test_certificates import authority_of, bound_token, der_of

EXAMPLES = Path(__file__).parents[2] / "deploy" / "proxies"
REFUSED = (httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)
OVER_UNIX, OVER_TLS = (tuple(f"{program}-{way}" for program in ("haproxy", "nginx")) for way in ("unix", "tls"))


def needed(program):
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip(f"NOT TESTED behind {program}: it is not installed (apt install {program})")
    return found


class Behind(Running):
    """A gateway behind a proxy: clients of this one reach the proxy."""

    proxy_port = 0

    def client(self, *, token=None, certificate=None, direct=False):
        made = super().client(token=token, certificate=certificate)
        if not direct:
            made.base_url = f"https://localhost:{self.proxy_port}"
        return made


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prepare(folder, deployment):
    """The files that the examples name in /etc/sealgate/proxy."""
    folder.mkdir()
    now = {"now_us": now_us(), "entropy": random_bytes}
    own = authority_of(deployment)
    server, server_key = ours.make_server(own, ("localhost",), **now)
    proxy, proxy_key = ours.make_client(own, "proxy", **now)
    install(deployment.pki, "proxy", (proxy, proxy_key))
    for name, leaf, key in (("server", server, server_key), ("proxy", proxy, proxy_key)):
        (folder / f"{name}.pem").write_bytes(pem(leaf))
        (folder / f"{name}.key").write_bytes(key_pem(key))
        (folder / f"{name}-and-key.pem").write_bytes(pem(leaf) + key_pem(key))
    shutil.copy(deployment.pki / "ca.pem", folder / "authorities.pem")
    shutil.copy(deployment.pki / "ca.pem", folder / "gateway-ca.pem")
    return proxy


def configured(kind, folder, *, port, gateway_port, socket_path):
    """The example with this machine's paths and ports; every one that it names must be there to be replaced."""
    program, way = kind.split("-")
    text = (EXAMPLES / f"{kind}.{'cfg' if program == 'haproxy' else 'conf'}").read_text()
    changes = {"/etc/sealgate/proxy/": f"{folder}/"}
    changes |= {"bind :8443": f"bind 127.0.0.1:{port}"} if program == "haproxy" else {"listen 8443": f"listen {port}"}
    changes |= {"/run/sealgate/gateway.sock": str(socket_path)} if way == "unix" else {}
    changes |= {"127.0.0.1:9443": f"127.0.0.1:{gateway_port}"} if way == "tls" else {}
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    path = folder / "example.conf"
    path.write_text(text)
    if program == "haproxy":
        return [needed("haproxy"), "-db", "-f", str(path)]
    whole = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    spools = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole.write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {spools} include {path}; }}\n"
    )
    return [needed("nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(whole)]


@contextlib.contextmanager
def started(command, port):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while True:
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < end
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)


def changed(deployment, **settings):
    import msgspec

    from sealgate.deployment import Deployment

    section = msgspec.structs.replace(deployment.settings.gateway, **settings)
    return Deployment(deployment.root, msgspec.structs.replace(deployment.settings, gateway=section))


@contextlib.contextmanager
def behind(kind, deployment):
    folder = deployment.root / "proxy"
    proxy = prepare(folder, deployment)
    settings = {"unix_socket": "run/gateway.sock"} if kind.endswith("unix") else {}
    settings |= {"trusted_proxies": (fingerprint_of(proxy),)} if kind.endswith("tls") else {}
    with hosted(deployment) as host:
        gateway = Behind(changed(deployment, **settings), host)
        gateway.proxy_port = free_port()
        try:
            command = configured(
                kind,
                folder,
                port=gateway.proxy_port,
                gateway_port=gateway.port,
                socket_path=deployment.root / "run" / "gateway.sock",
            )
            with started(command, gateway.proxy_port):
                yield gateway
        finally:
            gateway.close()


@pytest.fixture(params=[*OVER_UNIX, *OVER_TLS])
def proxied(request, deployment):
    needed(request.param.split("-")[0])
    with behind(request.param, deployment) as gateway:
        yield gateway


def field(der):
    return f":{base64.b64encode(der).decode()}:"


def raw_request(gateway, *lines, certificate=None, body=b""):
    """What a client that keeps to no rule sends; gives the status line."""
    context = gateway.tls(certificate)
    request = ["POST /sealed/wine HTTP/1.1", "Host: localhost", "Purpose: treatment", *lines]
    with (
        socket.create_connection(("127.0.0.1", gateway.proxy_port), timeout=60) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secure,
    ):
        secure.sendall("\r\n".join(request).encode() + b"\r\n\r\n" + body)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            return secure.recv(4096).split(b"\r\n")[0]
    return b""


def test_the_client_behind_the_proxy_is_the_caller(proxied):
    assert post_sealed(proxied.client(certificate="integration")).status_code == 200
    caller = proxied.host.heard(frames.Submit)[0].caller
    assert (caller.authn, caller.tenant, caller.subject) == ("mtls", "clinic", "hospital-integration")
    assert post_sealed(proxied.client()).status_code == 401
    assert proxied.host.heard(frames.AuthFailed)[0].reason == "no-credential"
    token = proxied.token()
    assert post_sealed(proxied.client(token=token)).status_code == 200
    assert post_sealed(proxied.client(token=token, certificate="integration")).status_code == 200
    assert [frame.caller.authn for frame in proxied.host.heard(frames.Submit, 3)] == ["mtls", "jwt", "jwt+mtls"]


def test_a_token_bound_to_a_certificate_is_bound_behind_the_proxy_too(proxied):
    import hashlib

    thumbprint = hashlib.sha256(der_of(proxied, "integration")).digest()
    token = bound_token(proxied, base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode())
    assert post_sealed(proxied.client(token=token, certificate="integration")).status_code == 200
    assert post_sealed(proxied.client(token=token, certificate="auditor")).status_code == 401
    forged = {"Client_Cert": field(der_of(proxied, "integration"))}
    assert post_sealed(proxied.client(token=token), **forged).status_code == 401


def test_a_forged_field_does_not_pass(proxied):
    der = der_of(proxied, "integration")
    client = proxied.client()
    for name in ("Client-Cert", "client-cert", "CLIENT-CERT"):
        answer = client.post("/sealed/wine", content=b"x", headers={name: field(der), "Purpose": "treatment"})
        assert answer.status_code == 401
    twice = [("Client-Cert", field(der)), ("Client-Cert", field(der)), ("Client-Cert-Chain", field(der))]
    assert client.post("/sealed/wine", content=b"x", headers=twice).status_code == 401
    stolen = proxied.client(certificate="auditor")
    answer = post_sealed(stolen, Client_Cert=field(der), Client_Cert_Chain=field(der))
    assert answer.status_code == 403  # the auditor it is, who may not
    assert proxied.host.heard(frames.Deny)[0].caller.subject == "auditor"
    assert proxied.host.bodies() == []


@pytest.mark.parametrize(
    "lines",
    [
        ("Client-Cert : {}", "Content-Length: 0"),
        ("Client_Cert: {}", "Content-Length: 0"),
        ("X: y\r\n Client-Cert: {}", "Content-Length: 0"),
        ("X: y\nClient-Cert: {}", "Content-Length: 0"),
        ("\tClient-Cert: {}", "Content-Length: 0"),
        ("Connection: Client-Cert", "Client-Cert: {}", "Content-Length: 0"),
        ("Transfer-Encoding: chunked", "Trailer: Client-Cert", "", "1", "x", "0", "Client-Cert: {}"),
        ("Content-Length: 0", "Transfer-Encoding: chunked", "", "0", "", "GET /x HTTP/1.1", "Client-Cert: {}"),
    ],
)
def test_a_field_that_is_smuggled_does_not_pass(proxied, lines):
    forged = field(der_of(proxied, "integration"))
    status = raw_request(proxied, *(line.format(forged) for line in lines))
    assert status.split(b" ")[1:2] in ([b"401"], [b"400"], []), status
    assert proxied.host.bodies() == []


def test_a_request_in_the_body_of_an_upgrade_does_not_pass(proxied):
    """The proxy sees one request with a body. A gateway that took what follows such a head for another protocol, and
    what follows that for the next request, would let the body say who is calling: certificates are no secret."""
    raw, media_type = sealed_request()
    inside = (
        f"POST /sealed/wine HTTP/1.1\r\nHost: localhost\r\nPurpose: treatment\r\nContent-Type: {media_type}\r\n"
        f"Client-Cert: {field(der_of(proxied, 'integration'))}\r\nContent-Length: {len(raw)}\r\n\r\n"
    ).encode() + raw
    body = b"\r\n" * 10_000 + inside
    lines = ("Connection: Upgrade", "Upgrade: other", f"Content-Length: {len(body)}")
    assert raw_request(proxied, *lines, body=body).split(b" ")[1:2] in ([b"401"], [b"400"], [])
    assert post_sealed(proxied.client()).status_code == 401
    assert proxied.host.bodies() == []


def test_a_revocation_is_in_force_on_a_connection_that_is_open_to_the_proxy(proxied):
    client = proxied.client(certificate="integration")
    assert post_sealed(client).status_code == 200
    leaf = x509.load_der_x509_certificate(der_of(proxied, "integration"))
    (proxied.deployment.pki / "revoked.txt").write_text(fingerprint_of(leaf) + "\n")
    assert post_sealed(client).status_code == 401
    assert proxied.host.heard(frames.AuthFailed)[0].reason == "certificate-revoked"


@pytest.mark.parametrize("proxied", OVER_UNIX, indirect=True)  # over TLS the proxy itself would be a stranger then
def test_who_passes_the_proxy_still_has_to_pass_the_gateway(proxied):
    """The proxy knows an authority that the gateway does not, or not any more."""
    (proxied.deployment.pki / "ca.pem").write_bytes(pem(Ca("Another").certificate))
    with httpx.Client(verify=trusting(proxied, "integration")) as client:
        client.base_url = f"https://localhost:{proxied.proxy_port}"
        assert post_sealed(client).status_code == 401
    assert proxied.host.heard(frames.AuthFailed)[0].reason == "certificate-untrusted"


def trusting(gateway, certificate):
    context = ssl.create_default_context(cafile=gateway.deployment.root / "client" / "ca.pem")
    clients = gateway.deployment.pki / "clients"
    context.load_cert_chain(clients / f"{certificate}.pem", clients / f"{certificate}.key")
    return context


def test_a_stranger_does_not_pass_the_proxy(proxied):
    install(proxied.deployment.pki, "stranger", Ca().client("URI:urn:sealgate:client:integration"))
    with contextlib.suppress(*REFUSED):
        assert post_sealed(proxied.client(certificate="stranger")).status_code == 400  # nginx says it in words
    assert proxied.host.told == []


@pytest.mark.parametrize("proxied", OVER_TLS, indirect=True)  # over the UNIX socket the proxy has no certificate
def test_the_proxys_own_certificate_is_nobodys(proxied):
    direct = proxied.client(certificate="proxy", direct=True)
    assert post_sealed(direct).status_code == 401
    assert post_sealed(proxied.client(certificate="proxy")).status_code == 401
    assert [frame.reason for frame in proxied.host.heard(frames.AuthFailed, 2)] == [
        "no-credential",
        "certificate-of-proxy",
    ]
    (proxied.deployment.pki / "revoked.txt").write_text(
        fingerprint_of(x509.load_der_x509_certificate(der_of(proxied, "proxy"))) + "\n"
    )
    assert (
        post_sealed(proxied.client(certificate="integration")).status_code == 401
    )  # a revoked proxy speaks for nobody
    assert proxied.host.heard(frames.AuthFailed, 3)[2].reason == "certificate-revoked"


@pytest.mark.parametrize("names", [1, 90])
def test_large_certificates(proxied, names):
    """Behind nginx what does not fit is left out, and then nobody is calling."""
    sans = (
        "URI:urn:sealgate:client:integration",
        *(f"DNS:a-long-name-{n}.department.hospital.example" for n in range(names)),
    )
    leaf = ours.make_client(
        authority_of(proxied.deployment), "large", names=sans, now_us=now_us(), entropy=random_bytes
    )
    install(proxied.deployment.pki, "large", leaf)
    lines = pem(leaf[0]).count(b"\n") - 2
    assert lines > 80 or names == 1
    answer = post_sealed(proxied.client(certificate="large"))
    nginx = (proxied.deployment.root / "proxy" / "nginx.conf").exists()
    assert answer.status_code == (401 if nginx and names > 1 else 200)
