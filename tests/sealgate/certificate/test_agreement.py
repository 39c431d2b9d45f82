"""A certificate covers only a model that its mechanism can have made, and all that was taken from the rows is paid."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sealgate.certificate.agreement import CENTRE, check_agreement
from sealgate.certificate.architectures import (
    GraphSpec,
    LinearRegressionSpec,
    LogisticRegressionSpec,
    MlpSpec,
    ScatterNetSpec,
)
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.inputs import GraphEdgesContent, InputTensor
from sealgate.certificate.schema import Preprocessing, Statistic
from sealgate.errors import CertificateError
from tests.sealgate.certificate.accounting.test_described import ADASSP, GAP, OBJECTIVE, SGD, stated
from tests.sealgate.certificate.conftest import a_manifest


def manifest(architecture: Any, **changes: Any):
    return msgspec.structs.replace(a_manifest(), architecture=architecture, **changes)


def code_of(model, certificate) -> str:
    with pytest.raises(CertificateError) as caught:
        check_agreement(model, certificate)
    return caught.value.code


@pytest.mark.parametrize(
    ("mechanism", "right", "wrong"),
    [
        (ADASSP, LinearRegressionSpec(inputs=3), LogisticRegressionSpec(inputs=3, classes=2)),
        (ADASSP, LinearRegressionSpec(inputs=3), MlpSpec(inputs=3, hidden=(4,), activation="relu")),
        (OBJECTIVE, LogisticRegressionSpec(inputs=3, classes=2), LogisticRegressionSpec(inputs=3, classes=3)),
        (OBJECTIVE, LogisticRegressionSpec(inputs=3, classes=2), LinearRegressionSpec(inputs=3)),
    ],
)
def test_a_mechanism_that_solves_for_one_layer_makes_no_other_model(mechanism, right, wrong):
    check_agreement(manifest(right), stated(mechanism))
    assert code_of(manifest(wrong), stated(mechanism)) == "mechanism"
    check_agreement(manifest(wrong), stated(SGD))


def test_a_bundle_whose_mechanism_cannot_have_made_it_is_refused(forge, tmp_path):
    forge.certificate = stated(ADASSP)  # over a logistic regression
    with pytest.raises(CertificateError) as caught:
        verify_bundle(forge.write(tmp_path / "other"), forge.publishers)
    assert caught.value.code == "mechanism"


def test_a_centre_that_nobody_paid_for():
    centred = manifest(ScatterNetSpec(channels=1, height=8, width=8, scales=1, norm_groups=0, classes=2, centred=True))
    part = Statistic(
        what=CENTRE,
        mechanism="gaussian",
        multiplier_micro=10_000_000,
        epsilon_micro=430_000,
        epsilon_replace_one_micro=900_000,
        delta="0.000001",
    )

    def with_parts(*parts: Statistic):
        return stated(SGD, preprocessing=Preprocessing(statistics="dp", epsilon_micro=1, parts=parts))

    check_agreement(centred, with_parts(part))
    for unpaid in (
        stated(SGD),
        with_parts(msgspec.structs.replace(part, what="mean of age")),
        with_parts(msgspec.structs.replace(part, mechanism="stated")),
    ):
        assert code_of(centred, unpaid) == "private-statistics"
    check_agreement(manifest(ScatterNetSpec(channels=1, height=8, width=8, classes=2)), stated(SGD))


def test_edges_are_not_protected_where_a_model_reads_them():
    edges = InputTensor(name="edges", datatype="FP32", shape=(-1, 4, 4), content=GraphEdgesContent())
    spec = GraphSpec(nodes=4, features=3, layer="convolution", hidden=(2,), classes=2)
    reads = manifest(spec, inputs=(*a_manifest().inputs, edges))
    assert code_of(reads, stated(GAP)) == "serving-leaks"
    check_agreement(reads, stated(SGD, unit="graph"))
