"""Bundles that must not load: each is refused with its reason on record, and the good one beside them serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import msgspec

from tests.live import MODEL, Live


def test_bad_bundles_are_refused_on_record_and_the_good_one_serves(fresh: Callable[[], Live]) -> None:
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

    live.start()
    live.ready()
    with live.session() as session:
        assert session.infer(MODEL, live.rows[:1]).labels
    live.stop()
    refused = {record.model: record.reason for record in live.records() if record.kind == "model.refuse"}
    assert set(refused) == {"with-pickle", "other-weights", "other-signature", "name-taken"}
    assert all(refused.values())
    assert len(set(refused.values())) == 4, f"reasons do not tell the cases apart: {refused}"
