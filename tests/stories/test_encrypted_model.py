"""A model that lies on the disk encrypted only: served to callers, refused without its key, put under another key."""

from __future__ import annotations

from collections.abc import Callable

from sealgate.certificate.files import SEALED_WEIGHTS, WEIGHTS
from tests.live import MODEL, Live, run_sealgate


def test_an_encrypted_model_answers_as_before_and_only_with_its_key(fresh: Callable[[], Live]) -> None:
    live = fresh()
    bundle, key = live.root / "models" / MODEL, live.root / "models.key"
    live.start()
    live.ready()
    with live.session() as session:
        before = session.infer(MODEL, live.rows[:3])
    live.stop()

    run_sealgate("models", "new-key", key)
    run_sealgate("models", "encrypt", bundle, "--key", f"file:{key}")
    assert (bundle / SEALED_WEIGHTS).exists()
    assert not (bundle / WEIGHTS).exists()
    settings = live.root / "deployment.toml"
    plain = settings.read_text()
    settings.write_text(f'{plain}\n[models]\nkeys = ["file:models.key"]\nrequire_encryption = true\n')
    live.start()
    live.ready()
    with live.session() as session:
        after = session.infer(MODEL, live.rows[:3])
    assert after.labels == before.labels
    run_sealgate("models", "new-key", live.root / "next.key")
    run_sealgate("models", "rewrap", bundle, "--key", f"file:{key}", "--to", f"file:{live.root / 'next.key'}")
    live.stop()

    refused = [record for record in live.records() if record.kind == "model.refuse"]
    assert refused == []
    live.start()  # with the old key alone: the model is refused, on record, and the host says which key it takes
    live.ready()
    live.stop()
    refused = [record for record in live.records() if record.kind == "model.refuse"]
    assert [(record.model, record.reason) for record in refused] == [(MODEL, "weights-locked")]
    assert "given: local:" in live.said("runtime")
    assert key.read_text().strip() not in live.said("runtime")

    settings.write_text(f'{plain}\n[models]\nkeys = ["file:next.key", "file:models.key"]\nrequire_encryption = true\n')
    live.start()
    live.ready()
    with live.session() as session:
        assert session.infer(MODEL, live.rows[:3]).labels == before.labels
    live.stop()
