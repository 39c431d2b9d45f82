"""Each check of step 1 refuses alone, with a transcript that names it; what passes is graded claim by claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealgate.errors import EvidenceError
from sealgate.evidence.claims import Claims, encode_claims
from sealgate.evidence.token import Endorsement, bind_payload, endorse_software, sign_token
from sealgate.evidence.transcript import EvidenceRefused
from sealgate.evidence.trust import Trust
from sealgate.evidence.verify import VerifiedEvidence, verify_evidence
from sealgate.protocol import cbor
from sealgate.protocol.frames import Layer, ModelFacts
from sealgate.transparency.notes import Checkpoint, NoteSigner, sign_checkpoint
from secure_runtime.attestation.software import SoftwareAttester
from tests.sealgate.evidence.conftest import LOG

NONCE = b"n" * 32
MakeClaims = Callable[..., Claims]
MakeTrust = Callable[..., Trust]
Judge = Callable[..., VerifiedEvidence]


@pytest.fixture
def judge(make_claims: MakeClaims, make_trust: MakeTrust, operator: Ed25519PrivateKey, now_us: int) -> Judge:
    """Verify evidence of changed claims, under a changed trust file, at another time, as asked."""

    def verify(
        *, evidence: bytes | None = None, trust: Trust | None = None, late_us: int = 0, **changes: Any
    ) -> VerifiedEvidence:
        claims = make_claims(**changes)
        data = SoftwareAttester(operator).attest(claims) if evidence is None else evidence
        return verify_evidence(
            data, trust or make_trust(), now_us=now_us + late_us, nonce=NONCE, published=make_claims().key_configs
        )

    return verify


def refused(judge: Judge, code: str, **options: Any) -> EvidenceRefused:
    with pytest.raises(EvidenceRefused) as failure:
        judge(**options)
    assert failure.value.code == code, failure.value.transcript
    assert failure.value.transcript[-1].outcome == "fail"
    assert all(check.outcome != "fail" for check in failure.value.transcript[:-1])
    return failure.value


def test_good_evidence_yields_the_keys_and_a_graded_transcript(judge: Judge, now_us: int) -> None:
    evidence = judge()
    assert [config.key_id for config in evidence.key_configs] == [2, 1]
    assert evidence.grade == "software"
    assert evidence.expires_us == now_us + 3600 * 1_000_000
    assert evidence.checkpoint.size == 7
    assert {check.outcome for check in evidence.transcript} == {"pass", "skipped"}
    assert all(check.anchor and check.detail for check in evidence.transcript)
    assert evidence.grades["key_configs"] == "software"
    for claim in ("layers", "probes", "models.epsilon", "measurements"):
        assert evidence.grades[claim] == "self-asserted"


def test_evidence_is_not_current_from_the_moment_that_it_expires(judge: Judge) -> None:
    evidence = judge()
    evidence.require_current(evidence.expires_us - 1)
    with pytest.raises(EvidenceError) as failure:
        evidence.require_current(evidence.expires_us)
    assert failure.value.code == "evidence-expired"


def test_a_model_that_is_not_served_is_an_error(judge: Judge, model: ModelFacts) -> None:
    assert judge().model("toy") == model
    with pytest.raises(EvidenceError) as failure:
        judge().model("other")
    assert failure.value.code == "model-not-served"


def test_software_evidence_needs_the_clients_consent(judge: Judge, make_trust: MakeTrust) -> None:
    error = refused(judge, "grade", trust=make_trust(accept_software="false"))
    assert "accept_software" in str(error)
    refused(judge, "grade", trust=make_trust(accept_software=""))


def test_another_operators_signature_does_not_count(judge: Judge, make_claims: MakeClaims) -> None:
    other = Ed25519PrivateKey.generate()
    refused(judge, "signature", evidence=SoftwareAttester(other).attest(make_claims()))


def test_no_part_can_be_moved_to_other_evidence(
    judge: Judge, make_claims: MakeClaims, operator: Ed25519PrivateKey
) -> None:
    """Payload, signature and endorsement of one are exchanged, one at a time, for those of another."""
    mine = cbor.decode(SoftwareAttester(operator).attest(make_claims()))
    theirs = cbor.decode(SoftwareAttester(operator).attest(make_claims(instance="another")))
    for at, code in ((1, "endorsement"), (2, "signature"), (3, "signature")):
        parts = list(mine.value.value)  # type: ignore[union-attr,arg-type]
        parts[at] = theirs.value.value[at]  # type: ignore[union-attr,index]
        refused(judge, code, evidence=cbor.encode(cbor.Tag(61, cbor.Tag(18, parts))))


def test_a_signature_without_an_endorsement_vouches_for_nothing(
    judge: Judge, make_claims: MakeClaims, operator: Ed25519PrivateKey
) -> None:
    refused(judge, "grade", evidence=sign_token(make_claims(), operator, ()))


def test_an_endorsement_of_an_unknown_kind_is_skipped_and_counts_for_nothing(
    judge: Judge, make_claims: MakeClaims, make_trust: MakeTrust, operator: Ed25519PrivateKey
) -> None:
    claims = make_claims()
    quote = Endorsement("tdx", b"", b"quote")
    refused(judge, "grade", evidence=sign_token(claims, operator, (quote,)))
    both = (quote, endorse_software(bind_payload(encode_claims(claims)), operator))
    evidence = judge(evidence=sign_token(claims, operator, both))
    assert (evidence.grade, evidence.transcript[2].outcome) == ("software", "skipped")
    refused(judge, "endorsement", evidence=sign_token(claims, operator, both), trust=make_trust().strictly())


@pytest.mark.parametrize("assurance", ["hardware", "tpm", "", "military"])
def test_claims_of_more_assurance_than_was_given_are_refused(
    judge: Judge, make_claims: MakeClaims, operator: Ed25519PrivateKey, assurance: str
) -> None:
    claims = make_claims(assurance=assurance)
    endorsement = endorse_software(bind_payload(encode_claims(claims)), operator)
    refused(judge, "grade", evidence=sign_token(claims, operator, (endorsement,)))


@pytest.mark.parametrize("nonce", [b"", b"m" * 32, b"n" * 31])
def test_another_nonce_is_refused(judge: Judge, nonce: bytes) -> None:
    refused(judge, "nonce", nonce=nonce)


def test_an_empty_expectation_is_an_error_not_a_pass(
    make_claims: MakeClaims, make_trust: MakeTrust, operator: Ed25519PrivateKey, now_us: int
) -> None:
    data = SoftwareAttester(operator).attest(make_claims(nonce=b""))
    for nonce, published in ((b"", b"keys"), (b"short", b"keys"), (NONCE, b"")):
        with pytest.raises(EvidenceError) as failure:
            verify_evidence(data, make_trust(), now_us=now_us, nonce=nonce, published=published)
        assert failure.value.code == "no-expectation"


def test_times_are_checked_to_the_second(judge: Judge, now_us: int) -> None:
    hour = 3600 * 1_000_000
    refused(judge, "time", late_us=hour)
    judge(late_us=hour - 1)
    judge(late_us=-60 * 1_000_000)
    refused(judge, "time", late_us=-60 * 1_000_000 - 1)
    refused(judge, "time", expires_at_us=now_us + hour + 1_000_000)
    refused(judge, "time", issued_at_us=now_us + 30_000_000, expires_at_us=now_us + 20_000_000)


def test_another_audience_is_refused(judge: Judge) -> None:
    refused(judge, "audience", audience="elsewhere.test:8443")


def test_keys_that_are_not_the_published_ones_are_refused(judge: Judge, make_claims: MakeClaims) -> None:
    keys = make_claims().key_configs
    first = 2 + int.from_bytes(keys[:2], "big")
    refused(judge, "key-configs", key_configs=keys[first:] + keys[:first])
    refused(judge, "key-configs", key_configs=keys + keys[:first])
    refused(judge, "key-configs", key_configs=keys[:-1])
    refused(judge, "key-configs", key_configs=b"")
    refused(judge, "key-configs", key_configs=b"garbage")


def test_the_published_list_may_hold_other_workers_keys_too(judge: Judge, make_claims: MakeClaims) -> None:
    keys = make_claims().key_configs
    first = 2 + int.from_bytes(keys[:2], "big")
    seen = judge(key_configs=keys[first:])
    said = next(check.detail for check in seen.transcript if check.name == "key-configs")
    assert "which has 1 of other workers" in said
    refused(judge, "key-configs", key_configs=keys[first:-1] + b"x")


def test_versions_of_a_model_are_served_side_by_side_and_pinned_each(
    judge: Judge, make_trust: MakeTrust, model: ModelFacts
) -> None:
    other = msgspec.structs.replace(model, version="2", model_digest="e" * 64, certificate_digest="f" * 64)
    both = judge(models=(model, other))
    assert both.versions(model.name) == (model, other)
    assert both.versions(model.name, "2") == (other,)
    assert both.model(model.name) == other
    assert both.model(model.name, certificate_digest=model.certificate_digest) == model
    with pytest.raises(EvidenceError):
        both.versions(model.name, "3")
    pinned = f'[models."{model.name}"]\nmodel_digest = "{model.model_digest}"\n'
    refused(judge, "pins", trust=make_trust(pinned), models=(model, other))
    own = f'[models."{model.name}/2"]\nmodel_digest = "{"e" * 64}"\n'
    judge(trust=make_trust(pinned + own), models=(model, other))
    refused(judge, "pins", trust=make_trust(own), models=(msgspec.structs.replace(other, model_digest="a" * 64),))


def test_the_log_must_be_the_one_that_the_trust_file_knows(judge: Judge) -> None:
    other = NoteSigner.from_seed("example.test/log", b"\x0a" * 32)
    refused(judge, "log", log_checkpoint=sign_checkpoint(Checkpoint(other.name, 7, b"\x09" * 32), other))
    refused(judge, "log", log_checkpoint=b"")
    refused(judge, "log", log_origin="another.test/log")
    shard = f"{LOG.name}/2031h1"
    turned = sign_checkpoint(Checkpoint(shard, 7, b"\x09" * 32), LOG.under(shard))
    judge(log_checkpoint=turned)
    refused(judge, "log", log_checkpoint=turned, log_origin=f"{LOG.name}/x")


def test_profiles_are_accepted_by_name_only(judge: Judge, make_trust: MakeTrust) -> None:
    strict_only, any_profile = make_trust(profiles='["strict"]'), make_trust(profiles='["strict", "dev"]')
    judge(trust=strict_only)
    refused(judge, "profile", trust=strict_only, profile="container")
    refused(judge, "profile", trust=strict_only, degraded=True)
    judge(trust=any_profile, profile="dev", degraded=True)


@pytest.mark.parametrize(
    ("pin", "holds"),
    [
        (f'model_digest = "{"a" * 64}"', True),
        (f'model_digest = "{"0" * 64}"', False),
        (f'certificate_digest = "{"b" * 64}"', True),
        (f'certificate_digest = "{"0" * 64}"', False),
        ('max_epsilon = "2.5"', True),
        ('max_epsilon = "2.499999"', False),
    ],
)
def test_pins_hold_or_refuse(judge: Judge, make_trust: MakeTrust, pin: str, holds: bool) -> None:
    trust = make_trust(f"[models.toy]\n{pin}\n")
    if holds:
        assert judge(trust=trust)
    else:
        refused(judge, "pins", trust=trust)


def test_a_negative_epsilon_is_not_below_the_limit(judge: Judge, make_trust: MakeTrust, model: ModelFacts) -> None:
    trust = make_trust('[models.toy]\nmax_epsilon = "3"\n')
    refused(judge, "pins", trust=trust, models=(msgspec.structs.replace(model, epsilon_micro=-1),))


def test_a_model_named_twice_is_refused(judge: Judge, model: ModelFacts) -> None:
    refused(judge, "pins", models=(model, msgspec.structs.replace(model, model_digest="0" * 64)))


def test_a_ceiling_holds_for_every_model(judge: Judge, make_trust: MakeTrust, model: ModelFacts) -> None:
    other = msgspec.structs.replace(model, name="other", epsilon_micro=3_000_000)
    judge(trust=make_trust(max_epsilon='"3"'), models=(model, other))
    error = refused(judge, "pins", trust=make_trust(max_epsilon='"2.9"'), models=(model, other))
    assert "other" in str(error)


def test_only_a_policy_that_is_named_may_be_in_force(judge: Judge, make_trust: MakeTrust) -> None:
    judge(trust=make_trust(policy_digests=f'["{"0" * 64}", "{"d" * 64}"]'))
    refused(judge, "policy", trust=make_trust(policy_digests=f'["{"0" * 64}"]'))


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        ({"code": "c" * 64}, True),
        ({"code": "c" * 64, "worker.code": "c" * 64, "environment": "0" * 64}, True),
        ({"code": "0" * 64}, False),
        ({"code": "c" * 64, "worker.code": "0" * 64}, False),  # host and worker run other code
        ({"worker.code": "c" * 64}, False),
        ({}, False),
    ],
)
def test_pinned_measurements_hold_or_refuse(
    judge: Judge, make_trust: MakeTrust, measured: dict[str, str], holds: bool
) -> None:
    trust = make_trust(f'[measurements]\ncode = ["{"e" * 64}", "{"c" * 64}"]\n')
    if holds:
        assert judge(trust=trust, measurements=measured)
    else:
        refused(judge, "measurements", trust=trust, measurements=measured)


@pytest.mark.parametrize("state", ["off", "failed", "disabled", "not-needed", "ON", ""])
def test_a_required_layer_that_is_not_on_is_refused(judge: Judge, make_trust: MakeTrust, state: str) -> None:
    trust = make_trust(required_layers='["seccomp"]')
    judge(trust=trust)
    refused(judge, "layers", trust=trust, layers={"seccomp": Layer(state=state)})
    refused(judge, "layers", trust=trust, layers={})
    if state:
        refused(judge, "layers", trust=trust, host_layers={"seccomp": Layer(state=state)})
    refused(judge, "layers", trust=make_trust(required_layers='["seccomp", "pid-namespace"]'))


def test_strict_means_that_nothing_is_skipped(judge: Judge, make_trust: MakeTrust) -> None:
    models = f'[models.toy]\nmodel_digest = "{"a" * 64}"\ncertificate_digest = "{"b" * 64}"\nmax_epsilon = "3"\n'
    named = f'policy_digests = ["{"d" * 64}"]\nrequired_layers = ["landlock"]\n'
    full = f'{named}[measurements]\ncode = ["{"c" * 64}"]\n{models}'
    refused(judge, "measurements", trust=make_trust(named + models, profiles='["strict"]', strict="true"))
    without = full.replace('required_layers = ["landlock"]\n', "")
    refused(judge, "layers", trust=make_trust(without, profiles='["strict"]', strict="true"))
    without = full.replace(f'policy_digests = ["{"d" * 64}"]\n', "")
    refused(judge, "policy", trust=make_trust(without, profiles='["strict"]', strict="true"))
    evidence = judge(trust=make_trust(full, profiles='["strict"]', strict="true"))
    assert {check.outcome for check in evidence.transcript} == {"pass"}
    refused(judge, "profile", trust=make_trust(full, strict="true"))
    refused(judge, "pins", trust=make_trust(profiles='["strict"]', strict="true"))
    partial = '[models.toy]\nmax_epsilon = "3"\n'
    refused(judge, "pins", trust=make_trust(partial, profiles='["strict"]', strict="true"))
    absent = full + '[models.other]\nmax_epsilon = "3"\n'
    refused(judge, "pins", trust=make_trust(absent, profiles='["strict"]', strict="true"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 100_000), change=st.integers(1, 255))
def test_any_altered_byte_is_noticed(
    judge: Judge, make_claims: MakeClaims, operator: Ed25519PrivateKey, place: int, change: int
) -> None:
    evidence = bytearray(SoftwareAttester(operator).attest(make_claims()))
    evidence[place % len(evidence)] ^= change
    with pytest.raises(EvidenceRefused):
        judge(evidence=bytes(evidence))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=300))
def test_garbage_is_refused(judge: Judge, data: bytes) -> None:
    refused(judge, "form", evidence=data)
