"""Pipelines in memory: what members give to each other, how answers are fused, and what leaves."""

from __future__ import annotations

import shutil
from functools import cache

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from sealgate.certificate.architectures import FrozenEncoderSpec, MlpSpec, ScatterNetSpec
from sealgate.certificate.architectures.pipeline import Fused, Fusion
from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.inputs import Column, HashedWords, ImageContent, InputTensor, TableContent, TextContent
from sealgate.certificate.pipeline_making import make_pipeline
from sealgate.certificate.publishers import publishers_of
from sealgate.certificate.recompute import recompute
from sealgate.certificate.sealed_weights import no_data_key
from sealgate.certificate.weights import frozen_digest
from sealgate.errors import CertificateError
from secure_runtime.errors import BadInput
from secure_runtime.models.architectures import parts_of
from secure_runtime.models.bundle import load_bundle, warm_up
from secure_runtime.models.pipeline import _fused
from secure_runtime.models.tokenizers import tokens_of
from tests.sealgate.certificate.conftest import Forge
from tests.sealgate.certificate.test_claims import audit
from tests.secure_runtime.models.conftest import SPECS, manifest_for, weights_for

_once = cache(recompute)
EYE = ScatterNetSpec(channels=1, height=16, width=16, scales=2, angles=4, classes=3, norm_groups=5)
IMAGE = InputTensor(
    name="image",
    datatype="UINT8",
    shape=(-1, 1, 16, 16),
    content=ImageContent(low="0", high="255", center="128", scale="64"),
)

FUSED = """
name = "fused"
version = "1"
description = "picture and row"
[[member]]
name = "eye"
bundle = "eye"
reads.image = "scan"
[[member]]
name = "table"
bundle = "table"
reads.rows = "row"
[fusion]
how = "{how}"
weights.eye = "0.3"
weights.table = "0.7"
"""
EMBEDDED = """
name = "embedded"
version = "1"
description = "the picture's fixed features, and a classifier on them"
[[member]]
name = "eye"
bundle = "eye"
take = "features"
reads.image = "scan"
[[member]]
name = "judge"
bundle = "judge"
reads.rows = ["eye", "row"]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Bundles of a picture's model, of a table's, and of one that judges features with two columns beside them."""
    monkeypatch.setattr("sealgate.certificate.recompute.recompute", _once)
    forge = Forge()
    width = EYE.feature_count
    columns = tuple(Column(name=f"f{at}", low="-9", high="9", center="0", scale="1") for at in range(width + 2))
    judge = MlpSpec(inputs=width + 2, hidden=(4,), activation="tanh", classes=3)
    specs = {"eye": EYE, "table": SPECS["mlp-3-gelu"], "judge": judge}
    for at, (name, spec) in enumerate(specs.items()):
        base = manifest_for(SPECS["mlp-3-gelu"])
        inputs = {
            "eye": (IMAGE,),
            "table": base.inputs,
            "judge": (
                InputTensor(name="rows", datatype="FP32", shape=(-1, width + 2), content=TableContent(columns=columns)),
            ),
        }[name]
        weights = {key: one * np.float32(0.2) for key, one in weights_for(spec, seed=at).items()}
        made = Forge(
            key=forge.key,
            manifest=msgspec.structs.replace(base, name=name, architecture=spec, inputs=inputs),
            weights=bytes(save(weights)),
            bundle_name=name,
        ).claim(model=name, dataset__commitment=f"{at:064x}")
        made.write(tmp_path / name)
    return tmp_path, forge


def make(folder, text):
    path, forge = folder
    (path / "p.toml").write_text(text)
    out = path / "models" / "whole"
    make_pipeline(path / "p.toml", out, key=forge.key, publishers=forge.publishers, data_key=no_data_key, replace=True)
    return load_bundle(out, forge.publishers)


def rows(count=9):
    generator = np.random.default_rng(1)
    return {
        "scan": torch.from_numpy(generator.integers(0, 256, (count, 1, 16, 16)).astype(np.uint8)),
        "row": torch.from_numpy(generator.normal(size=(count, 5)).astype(np.float32)),
    }


@pytest.mark.parametrize("how", ["mean", "log-mean"])
def test_a_picture_and_a_row_are_fused_as_a_plain_calculation_says(folder, how):
    whole = make(folder, FUSED.format(how=how))
    warm_up(whole)
    path, forge = folder
    eye, table = (load_bundle(path / name, forge.publishers) for name in ("eye", "table"))
    given_rows = rows()
    first = eye.predict({"image": given_rows["scan"]})["chances"].double().numpy()
    second = table.predict({"rows": given_rows["row"]})["chances"].double().numpy()
    if how == "mean":
        wanted = 0.3 * first + 0.7 * second
    else:
        wanted = first**0.3 * second**0.7
        wanted /= wanted.sum(axis=1, keepdims=True)
    found = whole.predict(given_rows)
    np.testing.assert_allclose(found["scores"].numpy(), wanted, rtol=1e-6, atol=1e-7)
    assert set(found) == {"scores", "label"}
    assert (found["label"].numpy() == wanted.argmax(axis=1)).all()
    alone = torch.cat(
        [whole.predict({n: one[at : at + 1] for n, one in given_rows.items()})["scores"] for at in range(9)]
    )
    assert torch.equal(alone, found["scores"])


def test_a_pipeline_that_was_signed_before_a_transforms_work_was_counted_still_loads(folder, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(ScatterNetSpec, "row_work", ScatterNetSpec.weight_count)
        older = make(folder, FUSED.format(how="mean")).manifest.architecture.work
    path, forge = folder
    assert load_bundle(path / "models" / "whole", forge.publishers).manifest.architecture.work == older
    assert make(folder, FUSED.format(how="mean")).manifest.architecture.work > older


def test_features_of_a_fixed_part_are_read_and_do_not_leave(folder):
    whole = make(folder, EMBEDDED)
    path, forge = folder
    eye, judge = (load_bundle(path / name, forge.publishers) for name in ("eye", "judge"))
    given_rows = rows()
    row = given_rows["row"][:, :2]
    fixed, _ = parts_of(eye.predictor.module)
    with torch.inference_mode():
        features = fixed(*eye.predictor.scaled({"image": given_rows["scan"]})).float()
    wanted = judge.predict({"rows": torch.cat([features, row], dim=1)})
    found = whole.predict({"scan": given_rows["scan"], "row": row})
    assert torch.equal(found["scores"], wanted["chances"])
    assert set(found) == {"scores", "label"}
    assert [one.name for one in whole.manifest.inputs] == ["scan", "row"]
    assert whole.facts.epsilon_micro == 2 * eye.facts.epsilon_micro


TEXT = """
name = "classified"
version = "1"
description = "tokenise, embed, classify"
[[member]]
name = "embed"
bundle = "embed"
take = "features"
reads.text = "mail"
[[member]]
name = "classify"
bundle = "classify"
reads.rows = ["embed"]
"""


def test_a_text_is_tokenised_embedded_and_classified_as_one_model(tmp_path, monkeypatch):
    monkeypatch.setattr("sealgate.certificate.recompute.recompute", _once)
    forge = Forge()
    tokenizer = HashedWords(buckets=20, length=6)
    spec = FrozenEncoderSpec(
        length=6, tokens=21, width=8, heads=2, layers=1, feed_forward=12, positions=6,
        pretraining="public", frozen_digest="00" * 32, classes=3,
    )  # fmt: skip
    weights = bytes(save(weights_for(spec)))
    spec = msgspec.structs.replace(spec, frozen_digest=frozen_digest(weights, prefix="features."))
    columns = tuple(Column(name=f"v{at}", low="-1", high="1", center="0", scale="1") for at in range(8))
    text = InputTensor(name="text", datatype="BYTES", shape=(-1,), content=TextContent(tokenizer=tokenizer))
    row = InputTensor(name="rows", datatype="FP32", shape=(-1, 8), content=TableContent(columns=columns))
    head = MlpSpec(inputs=8, hidden=(4,), activation="tanh", classes=3)
    for name, one, tensor, data in (
        ("embed", spec, text, weights),
        ("classify", head, row, bytes(save(weights_for(head)))),
    ):
        manifest = msgspec.structs.replace(
            manifest_for(SPECS["mlp-3-gelu"]), name=name, architecture=one, inputs=(tensor,)
        )
        made = Forge(key=forge.key, manifest=manifest, weights=data, bundle_name=name).claim(
            model=name, initialisation__pretraining=f"public {spec.frozen_digest}"
        )
        made.write(tmp_path / name)
    whole = make((tmp_path, forge), TEXT)
    warm_up(whole)
    assert (whole.manifest.inputs[0].name, whole.manifest.inputs[0].datatype) == ("mail", "BYTES")
    tokens = tokens_of(["buy now", "see you at the meeting", ""], tokenizer)
    embed, classify = (load_bundle(tmp_path / name, forge.publishers) for name in ("embed", "classify"))
    fixed, _ = parts_of(embed.predictor.module)
    with torch.inference_mode():
        vectors = fixed(tokens).float()
    wanted = classify.predict({"rows": vectors})["chances"]
    assert torch.equal(whole.predict({"mail": tokens})["scores"], wanted)


def test_wrong_inputs_name_the_input_of_the_whole(folder):
    whole = make(folder, FUSED.format(how="mean"))
    given_rows = rows()
    with pytest.raises(BadInput, match="'scan'"):
        whole.predict({**given_rows, "scan": given_rows["scan"][:, :, :8]})
    with pytest.raises(BadInput, match="numbers of rows"):
        whole.predict({**given_rows, "row": given_rows["row"][:3]})


@pytest.mark.parametrize(
    ("demand", "code"),
    [
        ("require_audit", "audit-missing"),
        ("require_encryption", "encryption-missing"),
        ("require_model_signature", "model-signature-missing"),
    ],
)
def test_what_is_demanded_of_bundles_is_demanded_of_members(folder, demand, code):
    make(folder, FUSED.format(how="mean"))
    path, forge = folder
    with pytest.raises(CertificateError) as caught:
        load_bundle(path / "models" / "whole", forge.publishers, **{demand: True})
    assert caught.value.code == code


def test_where_audits_are_demanded_a_pipeline_of_audited_members_loads(folder):
    """And one of audited members and one that was not audited does not."""
    path, forge = folder
    text = FUSED.format(how="mean")
    for name, code in (("eye", "audit-missing"), ("table", "")):
        audited(path / name, forge.key)
        make(folder, text)
        found = ""
        try:
            whole = load_bundle(path / "models" / "whole", forge.publishers, require_audit=True)
            assert whole.facts.audited
            assert whole.predict(rows())["scores"].shape == (9, 3)
        except CertificateError as error:
            found = error.code
        assert found == code


def audited(directory, key):
    """The same bundle, with a certificate that states an audit of its training."""
    bundle = verify_bundle(directory, publishers_of({"tests": key.public_key()}))
    again = Forge(
        key=key,
        manifest=bundle.manifest,
        certificate=bundle.certificate,
        weights=bundle.weights,
        bundle_name=bundle.facts.name,
    )
    shutil.rmtree(directory)
    again.claim(audit=audit(code_digest=bundle.certificate.environment.code_digest)).write(directory)


@given(
    st.lists(st.integers(0, 1000), min_size=6, max_size=6), st.integers(0, 10), st.sampled_from(["mean", "log-mean"])
)
@settings(max_examples=60, deadline=None)
def test_what_comes_out_is_a_probability_whatever_goes_in(numbers, tenths, how):
    first, second = (torch.tensor([part], dtype=torch.float32) for part in (numbers[:3], numbers[3:]))
    answers = {
        name: {"scores": one / one.sum() if one.sum() else torch.full((1, 3), 1 / 3), "label": one.argmax(1)}
        for name, one in (("a", first), ("b", second))
    }
    parts = (Fused(member="a", weight=str(tenths / 10)), Fused(member="b", weight=str(1 - tenths / 10)))
    scores = _fused(Fusion(how=how, parts=parts), answers)["scores"]
    assert bool((scores >= 0).all())
    assert abs(float(scores.sum()) - 1) < 1e-5


def test_values_are_averaged():
    answers = {"a": {"value": torch.tensor([1.0, 3.0])}, "b": {"value": torch.tensor([3.0, 7.0])}}
    parts = (Fused(member="a", weight="0.25"), Fused(member="b", weight="0.75"))
    assert _fused(Fusion(how="mean", parts=parts), answers)["value"].tolist() == [2.5, 6.0]
