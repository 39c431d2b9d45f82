"""Bundles that must not load: each is refused with its reason on record, and the good one beside them serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import msgspec

from secure_runtime.host.key_files import load_ed25519
from tests.conftest import Template
from tests.live import MODEL, Live
from tests.sealgate.certificate.conftest import Forge


def test_bad_bundles_are_refused_on_record_and_the_good_one_serves(
    fresh: Callable[[], Live], template: Template
) -> None:
    live = fresh()
    models = live.root / "models"
    good = models / MODEL

    def copy(name: str) -> object:
        shutil.copytree(good, models / name)
        return models / name

    (copy("with-pickle") / "model.pkl").write_bytes(b"\x80\x04\x95")  # type: ignore[operator]
    weights = copy("other-weights") / "model.safetensors"  # type: ignore[operator]
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    signature = copy("other-signature") / "bundle.sig"  # type: ignore[operator]
    document = msgspec.json.decode(signature.read_bytes())
    text = document["signatures"][0]["sig"]
    document["signatures"][0]["sig"] = ("B" if text[0] == "A" else "A") + text[1:]
    signature.write_bytes(msgspec.json.encode(document, order="sorted"))
    shutil.copytree(good, models / "name-taken")
    # Signed by the trusted publisher, every digest right, and an epsilon that the mechanism does not give.
    liar = Forge(key=load_ed25519(template.folder / "publisher.key"), bundle_name="toy")
    liar.claim(epsilon_micro=liar.certificate.epsilon_micro - 1).write(models / "toy")

    live.start()
    live.ready()
    with live.session() as session:
        assert session.infer(MODEL, live.rows[:1]).labels
    live.stop()
    refused = {record.model: record.reason for record in live.records() if record.kind == "model.refuse"}
    assert refused == {
        "with-pickle": "pickle-in-bundle",
        "other-weights": "weights-digest",
        "other-signature": "bundle-signature",
        "name-taken": refused["name-taken"],
        "toy": "epsilon-mismatch",
    }
