"""Each claim that cannot carry an epsilon is refused with its own code, even under a valid signature."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate.audits import PROBES
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.claims import check_claims
from sealgate.certificate.mechanisms import Rate
from sealgate.certificate.refusals import REFUSALS, refusal
from sealgate.certificate.schema import Audit, AuditProbe
from sealgate.certificate.statement import CERTIFICATE_PREDICATE, _statement, parse_certificate_statement
from sealgate.errors import CertificateError
from tests.sealgate.certificate.conftest import a_certificate


def filled(certificate):
    return msgspec.structs.replace(certificate, weights_digest="a" * 64, manifest_digest="b" * 64)


def probes(**verdicts):
    names = PROBES["lanes-and-replay"]
    return tuple(AuditProbe(name=name, verdict=verdicts.get(name, "held"), found="0 of 1") for name in names)


def audit(**changes):
    base = {
        "method": "lanes-and-replay",
        "epsilon_lower_micro": 1_000,
        "confidence_ppm": 999_000,
        "canaries": 20_000,
        "steps": 60,
        "probes": probes(),
        "code_digest": "cd" * 32,
    }
    return Audit(**{**base, **changes})


REFUSED = [
    ("mechanism", {"unit": "user"}),
    ("mechanism", {"adjacency": "replace-one"}),
    ("mechanism", {"mechanism__clipping__kind": "adaptive"}),
    ("mechanism", {"mechanism__clipping__norm_micro": 0}),
    ("mechanism", {"mechanism__noise__transform": "ziggurat"}),
    ("mechanism", {"mechanism__noise__arithmetic": "float16"}),
    ("sampler", {"mechanism__sampling__sampler": "shuffle"}),
    ("sampler", {"mechanism__sampling__sampler": "full-batch"}),
    ("sampler", {"mechanism__sampling__sampler": "random-allocation"}),
    ("sampler-constants", {"mechanism__sampling__constants": "from-data"}),
    ("sampler-constants", {"mechanism__sampling__divisor_micro": 249_999_999}),
    ("sampler-constants", {"dataset__public_population": 0}),
    ("sampler-constants", {"dataset__public_population": 999}),
    ("fixed-seed", {"mechanism__noise__seed": "fixed"}),
    ("fixed-seed", {"mechanism__noise__seed": "0"}),
    ("fixed-seed", {"mechanism__noise__source": "torch-global-generator"}),
    ("private-statistics", {"preprocessing__statistics": "mean-and-std-of-training-rows"}),
    ("private-statistics", {"preprocessing__epsilon_micro": 1}),
    ("selection-unaccounted", {"selection__how": "grid-search"}),
    ("selection-unaccounted", {"selection__how": "dp-selected"}),
    ("steps", {"mechanism__sampling__steps_executed": 61}),
    ("steps", {"mechanism__sampling__steps_executed": 0}),
    ("parameters-out-of-range", {"mechanism__sampling__rate": Rate(numerator=2, denominator=8)}),
    ("parameters-out-of-range", {"mechanism__sampling__rate": Rate(numerator=1, denominator=0)}),
    ("parameters-out-of-range", {"mechanism__noise__sigma_micro": 1}),
    ("parameters-out-of-range", {"mechanism__noise__sigma_micro": -4_000_000}),
    ("parameters-out-of-range", {"mechanism__sampling__steps_declared": 10**9}),
    ("delta", {"delta": "0.001"}),
    ("delta", {"delta": "1e-5"}),
    ("delta", {"delta": "0"}),
    ("delta", {"delta": "-0.1"}),
    ("delta", {"delta": "0.0000000000001"}),
    ("accountant", {"accounting__accountant": "opacus-gdp"}),
    ("accountant", {"accounting__second_accountant": ""}),
    ("accountant", {"accounting__second_accountant": "dp-accounting-pld"}),
    ("accountants-disagree", {"accounting__second_epsilon_micro": 300_000}),
    ("audit-contradicts", {"audit": audit(epsilon_lower_micro=90_000_000)}),
    ("audit-contradicts", {"audit": audit(probes=probes(clipping="failed"))}),
    ("audit-contradicts", {"audit": audit(probes=probes(lanes=""))}),
    ("audit-contradicts", {"audit": audit(code_digest="e" * 64)}),  # of other code than what trained
    ("certificate-malformed", {"audit": audit(canaries=0)}),
    ("certificate-malformed", {"audit": audit(canaries=1)}),
    ("certificate-malformed", {"audit": audit(confidence_ppm=1)}),
    ("certificate-malformed", {"audit": audit(steps=0)}),
    ("certificate-malformed", {"audit": audit(confidence_ppm=1_000_000)}),
    ("certificate-malformed", {"audit": audit(method="black-box")}),
    ("certificate-malformed", {"audit": audit(method="repeated-runs")}),
    ("certificate-malformed", {"audit": audit(code_digest="none")}),
    ("certificate-malformed", {"audit": audit(probes=probes()[1:])}),
    ("certificate-malformed", {"audit": audit(probes=(*probes(), probes()[0]))}),
    ("certificate-malformed", {"audit": audit(probes=())}),
    ("certificate-malformed", {"schema": 1}),
    ("certificate-malformed", {"issued": "20260102"}),
    ("certificate-malformed", {"issued": "soon"}),
    ("certificate-malformed", {"epsilon_micro": 0}),
    ("certificate-malformed", {"dataset__commitment": "short"}),
    ("certificate-malformed", {"environment__code_digest": "AB" * 32}),
    ("certificate-malformed", {"not_protected": ()}),
]


@pytest.mark.parametrize(("code", "change"), REFUSED, ids=[f"{code}-{next(iter(c))}" for code, c in REFUSED])
def test_a_claim_that_cannot_carry_an_epsilon(forge, code, change):
    with pytest.raises(CertificateError) as caught:
        check_claims(filled(forge.claim(**change).certificate))
    assert caught.value.code == code


def test_the_checks_stand_between_a_signed_bundle_and_its_use(forge, tmp_path):
    forge.claim(mechanism__sampling__sampler="shuffle")
    with pytest.raises(CertificateError) as caught:
        verify_bundle(forge.write(tmp_path / "toy"), forge.publishers)
    assert caught.value.code == "sampler"


def test_too_little_noise_over_too_many_steps_is_refused_at_once(forge):
    forge.claim(mechanism__noise__sigma_micro=300_000, mechanism__sampling__steps_declared=1_000_000)
    with pytest.raises(CertificateError) as caught:
        check_claims(filled(forge.certificate))
    assert caught.value.code == "epsilon-out-of-range"


def test_an_audit_below_the_claim_is_accepted(forge):
    assert check_claims(filled(forge.claim(audit=audit()).certificate)).steps == 60


def test_fewer_steps_than_declared_are_charged_as_declared(forge):
    assert check_claims(filled(forge.claim(mechanism__sampling__steps_executed=10).certificate)).steps == 60


def test_a_refusal_needs_an_entry_in_the_table():
    with pytest.raises(KeyError):
        refusal("not-a-code", "text")
    assert refusal("sampler", "text").code == "sampler"


@given(data=st.data())
@settings(max_examples=300)
def test_any_value_of_a_certificate_replaced_is_judged_or_refused_but_never_trips(data):
    value = msgspec.to_builtins(filled(a_certificate()))
    place: object = value
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        if isinstance(place[key], dict | list) and place[key]:
            place = place[key]
            continue
        numbers = st.sampled_from([0, 1, -1, 2**53 - 1, -(2**53) + 1, 10**6]) | st.integers(-(10**12), 10**12)
        place[key] = data.draw(st.none() | numbers | st.text(max_size=6) | st.just([]) | st.just({}))
        break
    code = ""
    try:
        certificate, _ = parse_certificate_statement(_statement(CERTIFICATE_PREDICATE, value, {}))
        check_claims(certificate)
    except CertificateError as error:
        code = error.code
    assert code in {"", *REFUSALS}


def test_every_code_in_the_table_is_raised_somewhere_and_described():
    from pathlib import Path

    import sealgate.certificate
    import secure_runtime.models

    source = "".join(
        path.read_text()
        for package in (sealgate.certificate, secure_runtime.models)
        for path in Path(package.__path__[0]).rglob("*.py")
        if path.name != "refusals.py"
    )
    for code, meaning in REFUSALS.items():
        assert f'"{code}"' in source, code
        assert len(meaning) > 15
