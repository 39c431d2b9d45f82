"""The manifest: only canonical bytes, only consistent contents, bounded before anything is built."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate.architectures import LinearRegressionSpec, LogisticRegressionSpec, MlpSpec
from sealgate.certificate.decimals import decimal_text, micro_text, parse_decimal
from sealgate.certificate.inputs import TableContent
from sealgate.certificate.manifest import ValueRange, manifest_bytes, parse_manifest
from sealgate.errors import CertificateError, DecodeError
from sealgate.protocol.canonical import canonical_json

replace = msgspec.structs.replace


def code_of(data: bytes) -> str:
    with pytest.raises(CertificateError) as caught:
        parse_manifest(data)
    return caught.value.code


def test_round_trip(forge):
    assert parse_manifest(manifest_bytes(forge.manifest)) == forge.manifest
    assert forge.manifest.family == "logistic-regression"


def test_shapes_of_every_family():
    assert LinearRegressionSpec(inputs=4).tensors() == {"layers.0.weight": (1, 4), "layers.0.bias": (1,)}
    assert LogisticRegressionSpec(inputs=4, classes=3).tensors()["layers.0.weight"] == (3, 4)
    mlp = MlpSpec(inputs=4, hidden=(8, 2), activation="relu", classes=0)
    assert mlp.tensors() == {
        "layers.0.weight": (8, 4),
        "layers.0.bias": (8,),
        "layers.1.weight": (2, 8),
        "layers.1.bias": (2,),
        "layers.2.weight": (1, 2),
        "layers.2.bias": (1,),
    }
    assert mlp.weight_count() == 32 + 8 + 16 + 2 + 2 + 1


def with_column(manifest, **changes):
    (tensor,) = manifest.inputs
    return replace(
        manifest,
        inputs=(
            replace(tensor, content=TableContent(columns=(replace(tensor.columns[0], **changes), *tensor.columns[1:]))),
        ),
    )


def of_role(manifest, role, datatype):
    return replace(
        manifest,
        outputs=tuple(replace(one, datatype=datatype) if one.role == role else one for one in manifest.outputs),
    )


CHANGES = [
    ("schema", lambda m: replace(m, schema=2)),
    ("name", lambda m: replace(m, name="../etc")),
    ("name-empty", lambda m: replace(m, name="")),
    ("name-long", lambda m: replace(m, name="a" * 200)),
    ("version", lambda m: replace(m, version="1 0")),
    ("description", lambda m: replace(m, description="x" * 5000)),
    ("sensitivity", lambda m: replace(m, sensitivity="secret")),
    ("purposes", lambda m: replace(m, purposes=())),
    ("purposes-twice", lambda m: replace(m, purposes=("a", "a"))),
    ("units", lambda m: replace(m, units_per_row=0)),
    ("inputs", lambda m: replace(m, inputs=())),
    ("two-inputs", lambda m: replace(m, inputs=m.inputs * 2)),
    ("width", lambda m: replace(m, architecture=LogisticRegressionSpec(inputs=4, classes=2))),
    ("no-classes", lambda m: replace(m, architecture=LogisticRegressionSpec(inputs=3, classes=0))),
    ("one-class", lambda m: replace(m, architecture=LogisticRegressionSpec(inputs=3, classes=1))),
    ("huge", lambda m: replace(m, architecture=MlpSpec(inputs=3, hidden=(16384,) * 3, activation="relu", classes=2))),
    ("deep", lambda m: replace(m, architecture=MlpSpec(inputs=3, hidden=(4,) * 99, activation="relu", classes=2))),
    ("no-hidden", lambda m: replace(m, architecture=MlpSpec(inputs=3, hidden=(), activation="relu", classes=2))),
    ("zero-width", lambda m: replace(m, architecture=MlpSpec(inputs=3, hidden=(0,), activation="relu", classes=2))),
    ("activation", lambda m: replace(m, architecture=MlpSpec(inputs=3, hidden=(4,), activation="exec", classes=2))),
    ("regression", lambda m: replace(m, architecture=LinearRegressionSpec(inputs=3))),
    ("range", lambda m: replace(m, value_range=ValueRange(low="0", high="1"))),
    ("outputs", lambda m: replace(m, outputs=m.outputs[:1])),
    ("same-role", lambda m: replace(m, outputs=(m.outputs[0], m.outputs[0]))),
    ("same-name", lambda m: replace(m, outputs=(m.outputs[0], replace(m.outputs[1], name="label")))),
    ("labels", lambda m: replace(m, outputs=(replace(m.outputs[0], labels=("no",)), m.outputs[1]))),
    ("same-labels", lambda m: replace(m, outputs=tuple(replace(o, labels=("no", "no")) for o in m.outputs))),
    ("datatype", lambda m: of_role(m, "label", "FP32")),
    ("scores-as-text", lambda m: of_role(m, "scores", "BYTES")),
    ("unknown-datatype", lambda m: of_role(m, "label", "TEXT")),
    ("column-range", lambda m: with_column(m, low="1", high="1")),
    ("column-scale", lambda m: with_column(m, scale="0")),
    ("column-number", lambda m: with_column(m, low="-1e400")),
    ("column-nan", lambda m: with_column(m, center="nan")),
    ("column-twice", lambda m: with_column(m, name="b")),
    ("column-empty", lambda m: with_column(m, name="")),
]


@pytest.mark.parametrize("change", [c for _, c in CHANGES], ids=[n for n, _ in CHANGES])
def test_a_manifest_that_contradicts_itself_or_a_bound(forge, change):
    changed = change(forge.manifest)
    assert code_of(canonical_json(changed)) == "manifest-inconsistent"
    with pytest.raises(CertificateError):
        manifest_bytes(changed)


def test_a_label_may_come_as_its_class_name_and_scores_may_not(forge):
    named = of_role(forge.manifest, "label", "BYTES")
    assert parse_manifest(manifest_bytes(named)) == named
    assert code_of(canonical_json(of_role(named, "scores", "BYTES"))) == "manifest-inconsistent"


def test_other_spellings_are_refused(forge):
    good = manifest_bytes(forge.manifest)
    for other in (good + b"\n", good.replace(b'{"', b'{ "', 1), good.replace(b'"schema":1', b'"schema":1.0')):
        assert code_of(other) == "manifest-malformed"
    assert code_of(good.replace(b'"units_per_row":1', b'"units_per_row":1,"x":2')) == "manifest-malformed"
    assert code_of(b" " * 2_000_000) == "manifest-malformed"


@given(st.binary(max_size=200))
@settings(max_examples=150)
def test_garbage(data):
    assert code_of(data) == "manifest-malformed"


@given(data=st.data())
@settings(max_examples=150)
def test_any_leaf_of_the_json_replaced(data):
    """Whatever stands at any place, the answer is a manifest or a typed refusal."""
    from tests.sealgate.certificate.conftest import a_manifest

    value = msgspec.to_builtins(a_manifest())
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(
            st.none() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5) | st.just([]) | st.just({})
        )
        break
    code = ""
    try:
        parse_manifest(canonical_json(value))
    except CertificateError as error:
        code = error.code
    assert code in {"", "manifest-malformed", "manifest-inconsistent"}


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9), max_value=10**9))
@settings(max_examples=100)
def test_decimals_have_one_spelling(value):
    text = decimal_text(value)
    assert parse_decimal(text) == value
    assert decimal_text(parse_decimal(text)) == text


@pytest.mark.parametrize(
    "text", ["", "1.", ".5", "1.0", "01", "+1", "-0", "1e3", "nan", "inf", " 1", "1\n", "1" * 41, "١"]
)
def test_other_spellings_of_numbers(text):
    with pytest.raises(DecodeError):
        parse_decimal(text)


def test_millionths_for_people():
    assert [micro_text(n) for n in (0, 1, 3_000_000, 2_999_990)] == ["0", "0.000001", "3", "2.99999"]
