"""`sealgate token`: every action as a person types it, its one line when something is wrong, and what is on record."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
import threading

import jwt
import pytest

from gateway.limits import MAX_REASON
from sealgate.ambient import now_us
from sealgate.cli import main
from sealgate.client.dpop import DpopKey
from sealgate.protocol import frames
from secure_runtime.host.administration import AdminServer
from tests.gateway.issuer_server import IssuerServer, Signer

ALICE = ("--tenant", "clinic", "--subject", "alice")


class Host:
    """The administration socket as the host serves it, with a record that a test can read."""

    def __init__(self, path):
        self.told = []
        self.answer = frames.Recorded(log="test/log", record=12, receipt=b"")
        self._loop = asyncio.new_event_loop()
        self._server = AdminServer(self)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        path.parent.mkdir(exist_ok=True)
        self._run(self._server.listen(path))

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def administer(self, frame, *, by):
        self.told.append(frame)
        return self.answer

    def fault(self, error):
        raise AssertionError(error)

    def close(self):
        self._run(self._server.close(drain_s=5))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def admin(deployment):
    made = Host(deployment.admin_socket)
    yield made
    made.close()


@pytest.fixture
def say(deployment, capsys):
    """Runs `sealgate token`; STATE stands for the deployment. Gives exit code, output and errors."""

    def run(*words):
        code = main(["token", *(str(deployment.root) if word == "STATE" else str(word) for word in words)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def claims_of(output):
    return jwt.decode(output.strip(), options={"verify_signature": False})


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


# issue and inspect ---------------------------------------------------------------------------------------------------


def test_issuing_with_and_without_its_name_is_the_same(say):
    tokens = [say("STATE", *ALICE), say("issue", "STATE", *ALICE)]
    claims = [claims_of(out) for code, out, _ in tokens if code == 0]
    assert [claim["sub"] for claim in claims] == ["alice", "alice"]


def test_a_purpose_that_the_tenant_does_not_have_is_issued_and_said(say):
    code, out, err = say("issue", "STATE", *ALICE, "--purpose", "marketing")
    assert (code, "marketing" in claims_of(out)["purposes"]) == (0, True)
    assert "no purpose 'marketing', so requests for it are refused; it has: " in err
    assert "note" not in say("issue", "STATE", *ALICE)[2]


@pytest.mark.parametrize("words", [[], ["revoke", "STATE"], ["STATE"], ["inspect"], ["revoke", "STATE", "--jti"]])
def test_wrong_usage_says_how(say, capsys, words):
    with pytest.raises(SystemExit) as caught:
        say(*words)
    assert caught.value.code == 2
    assert "usage: sealgate token" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["revoke", "--help"], ["STATE", "--help"]])
def test_help(say, capsys, words):
    with pytest.raises(SystemExit) as caught:
        say(*words)
    assert caught.value.code == 0
    assert "usage: sealgate token" in capsys.readouterr().out


def test_bound_tokens(say, deployment, tmp_path):
    pem = deployment.pki / "clients" / "integration.pem"
    der = ssl.PEM_cert_to_DER_cert(pem.read_text())
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
    _, out, _ = say("issue", "STATE", *ALICE, "--certificate", pem, "--jkt", "k" * 43)
    assert claims_of(out)["cnf"] == {"x5t#S256": thumbprint, "jkt": "k" * 43}
    key = DpopKey.generate()
    key.write(tmp_path / "dpop.pem")
    _, out, _ = say("issue", "STATE", *ALICE, "--dpop-key", tmp_path / "dpop.pem")
    assert claims_of(out)["cnf"] == {"jkt": key.jkt}
    assert say("issue", "STATE", *ALICE, "--jkt", "short")[0] == 1
    assert say("issue", "STATE", *ALICE, "--certificate", deployment.log_key)[0] == 1


def test_inspecting_says_what_the_gateway_would(say, tmp_path, deployment, monkeypatch):
    file = tmp_path / "token"
    assert say("issue", "STATE", *ALICE, "--purpose", "treatment", "--out", file)[0] == 0
    code, out, _ = say("inspect", "STATE", "--token-file", file)
    assert code == 0
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert (lines["accepted"], lines["subject"], lines["purposes"]) == ("yes", "alice", "treatment")
    assert file.read_text().strip().split(".")[2] not in out

    code, out, _ = say("inspect", "STATE", "--token-file", file, "--json")
    assert json.loads(out)["understood"]["tenant"] == "clinic"

    monkeypatch.setenv("SEALGATE_TOKEN", file.read_text()[:-9] + "AAAAAAAA")
    code, out, _ = say("inspect", "STATE", "--json")
    assert (code, json.loads(out)["reason"]) == (1, "signature-invalid")
    assert json.loads(out)["understood"] is None

    monkeypatch.setenv("SEALGATE_TOKEN", "no token")
    assert "token-malformed" in say("inspect", "STATE")[1]
    monkeypatch.delenv("SEALGATE_TOKEN")
    assert say("inspect", "STATE")[0] == 1


def test_inspecting_fetches_keys_and_says_why_not(say, tmp_path, deployment, monkeypatch):
    server, signer = IssuerServer(tmp_path), Signer("k\x1b[2J")
    try:
        (deployment.tokens / "issuers.toml").write_text(
            f'[[issuer]]\nname = "{server.url}"\njwks_uri = "{server.url}/jwks"\nca = "{server.ca}"\n'
        )
        monkeypatch.setenv("SEALGATE_TOKEN", signer.token(iss=server.url, roles=["\x1b[31m", "client"]))
        code, out, _ = say("inspect", "STATE")
        assert (code, "keys-unavailable" in out, "answered 404" in out) == (1, True, True)
        server.publish(signer)
        code, out, _ = say("inspect", "STATE")
        assert "claims-invalid" in out
        assert "roles is not of its type" in out
        assert "\x1b" not in out, "what a token says cannot act on a terminal"
        monkeypatch.setenv("SEALGATE_TOKEN", signer.token(iss=server.url))
        assert say("inspect", "STATE")[0] == 0
    finally:
        server.close()


# revoke, restore, revocations ----------------------------------------------------------------------------------------


def test_a_revocation_goes_on_record_and_so_does_its_end(say, admin, deployment):
    code, out, err = say("revoke", "STATE", "--jti", "the-one", "--reason", "lost")
    assert (code, err) == (0, "")
    assert "on record as number 12 of test/log" in out
    assert say("revoke", "STATE", "--subject", "alice", "--tenant", "clinic")[0] == 0
    assert say("restore", "STATE", "--subject", "alice", "--tenant", "clinic")[0] == 0
    assert say("revoke", "STATE", "--every", "--issued-before", "2026-01-31T12:00", "--until", "2099-01-01")[0] == 0
    assert [
        (told.what, told.fingerprint or told.subject, told.tenant, told.restored, told.note) for told in admin.told
    ] == [
        ("token", sha256("the-one"), "", False, "lost"),
        ("subject", "alice", "clinic", False, ""),  # the host makes it a pseudonym: a hash of a name can be guessed
        ("subject", "alice", "clinic", True, ""),
        (
            "token",
            sha256("every token issued before 2026-01-31T12:00:00Z"),
            "",
            False,
            "tokens issued before 2026-01-31T12:00:00Z",
        ),
    ]


def test_without_a_host_it_is_in_force_and_says_that_there_is_no_record(say, admin):
    admin.answer = frames.Refused(code="unavailable", status=503)
    code, out, err = say("revoke", "STATE", "--jti", "one")
    assert (code, out.startswith("revoked until")) == (0, True)
    assert err.startswith("in force, but not on record: the runtime host refused")
    assert err.count("\n") == 1
    admin.close = lambda close=admin.close: None
    admin._run(admin._server.close(drain_s=1))
    assert "no runtime host runs" in say("revoke", "STATE", "--jti", "two")[2]
    assert "two" in say("revocations", "STATE")[1]
    admin._loop.call_soon_threadsafe(admin._loop.stop)
    admin._thread.join()
    admin._loop.close()


def test_a_revocation_of_one_token_goes_when_no_such_token_can_live(say):
    say("revoke", "STATE", "--jti", "one")
    (entry,) = json.loads(say("revocations", "STATE", "--json")[1])
    assert (entry["jti"], entry["over"]) == ("one", False)
    assert 24 * 3600 < _seconds(entry["until"]) - now_us() / 1e6 < 25 * 3600
    say("revoke", "STATE", "--subject", "bob", "--tenant", "clinic")
    assert "until" not in json.loads(say("revocations", "STATE", "--json")[1])[1], "a caller may get tokens for ever"


def _seconds(text):
    import datetime

    return datetime.datetime.fromisoformat(text).timestamp()


def test_revoking_again_changes_the_entry_and_adds_none(say):
    say("revoke", "STATE", "--jti", "one")
    say("revoke", "STATE", "--jti", "one", "--until", "2099-01-31", "--reason", "still")
    (entry,) = json.loads(say("revocations", "STATE", "--json")[1])
    assert (entry["until"], entry["reason"]) == ("2099-01-31T00:00:00Z", "still")


def test_the_list_in_words(say):
    assert say("revocations", "STATE")[1] == "nothing is revoked\n"
    assert say("revocations", "STATE", "--json")[1] == "[]\n"
    say("revoke", "STATE", "--subject", "bob", "--tenant", "clinic", "--reason", "left")
    rows = say("revocations", "STATE")[1].splitlines()
    assert rows[2].split("  ") == ["caller bob of tenant clinic", "restored", "left"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--subject", "bob"], "needs its tenant"),
        (["--subject", "bob", "--tenant", "nobody"], "has no tenant 'nobody'"),
        (["--subject", "two words", "--tenant", "clinic"], "subject"),
        (["--every"], "--every needs --issued-before"),
        (["--every", "--issued-before", "soon"], "is not a time"),
        (["--every", "--issued-before", "2020-01-01"], "end before it begins"),
        (["--jti", "x", "--until", "2020-01-01"], "end before it begins"),
        (["--jti", "x", "--until", "99999-01-01"], "is not a time"),
        (["--jti", ""], "jti"),
        (["--jti", "x" * 257], "jti"),
        (["--jti", "é"], "jti"),
        (["--jti", "x", "--reason", "a\nb"], "one line of printable text"),
        (["--jti", "x", "--reason", "\udcff"], "one line of printable text"),
        (["--jti", "x", "--reason", "r" * (MAX_REASON + 1)], "reason"),
        (["--jti", "x", "--issuer", "https://nobody"], "no issuer 'https://nobody'"),
        (["--token-file", "/nonexistent/token"], "cannot be read"),
        (["--token-file", "STATE/deployment.toml"], "holds no token"),
    ],
)
def test_what_cannot_be_revoked_is_one_line_and_changes_nothing(say, admin, deployment, words, says):
    words = [word.replace("STATE/", f"{deployment.root}/") for word in words]
    code, out, err = say("revoke", "STATE", *words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says in err
    assert not (deployment.tokens / "revoked.toml").exists()
    assert admin.told == []


def test_the_longest_reason_fits_into_the_record(say, admin):
    assert say("revoke", "STATE", "--every", "--issued-before", "now", "--reason", "r" * MAX_REASON)[0] == 0
    assert len(admin.told) == 1


def test_a_token_without_an_id_is_revoked_by_its_caller(say, tmp_path):
    file = tmp_path / "token"
    file.write_text(jwt.encode({"iss": "i"}, "k" * 32, algorithm="HS256"))
    code, _, err = say("revoke", "STATE", "--token-file", file)
    assert (code, "has no id" in err) == (1, True)


def test_restoring_takes_the_very_selection(say):
    say("revoke", "STATE", "--subject", "bob", "--tenant", "clinic", "--issued-before", "2099-01-01")
    for words in (
        ["--subject", "bob", "--tenant", "clinic"],
        ["--subject", "ann", "--tenant", "clinic", "--issued-before", "2099-01-01"],
        ["--jti", "bob"],
    ):
        code, _, err = say("restore", "STATE", *words)
        assert (code, "nothing is revoked by exactly this" in err) == (1, True)
        assert "sealgate token revocations" in err
    words = ["--subject", "bob", "--tenant", "clinic", "--issued-before", "2099-01-01"]
    assert say("restore", "STATE", *words)[0] == 0
    assert say("revocations", "STATE")[1] == "nothing is revoked\n"


def test_a_broken_list_is_one_line(say, deployment):
    (deployment.tokens / "revoked.toml").write_text("[[revoked")
    for words in (["revoke", "STATE", "--jti", "x"], ["restore", "STATE", "--jti", "x"], ["revocations", "STATE"]):
        code, _, err = say(*words)
        assert (code, err.count("\n"), "revoked.toml" in err) == (1, 1, True)
