"""A person's own class is trained and what is published is the declared architecture with its weights."""

from __future__ import annotations

import pytest
import torch

from sealgate.certificate.publishers import publishers_of
from sealgate.errors import ConfigurationError
from secure_runtime.models.bundle import load_bundle
from tests.training import own_models
from tests.training.conftest import configuration_text, tiny, write_data
from training.experiment import run_experiment

HERE = "tests.training.own_models"


def run(tmp_path, key, name):
    write_data(tmp_path / "data.csv", tiny(400))
    path = tmp_path / "config.toml"
    text = configuration_text("data.csv")
    path.write_text(text.replace("[model]\n", f'[model]\nmodule = "{name}"\n', 1))
    return run_experiment(path, models_dir=tmp_path / "models", key=key, audit=False)


def test_an_own_class_is_trained_and_exported(tmp_path, key, monkeypatch):
    called = []
    forward = own_models.Mine.forward
    monkeypatch.setattr(own_models.Mine, "forward", lambda self, rows: (called.append(1), forward(self, rows))[1])
    published = run(tmp_path, key, f"{HERE}:Mine")
    assert len(called) >= 40  # its forward ran at every step
    assert published.quality.value > 0.85
    model = load_bundle(tmp_path / "models" / "tiny", publishers_of({"p": key.public_key()}))
    assert model.manifest.family == "logistic-regression"
    assert b"own_models" not in (tmp_path / "models/tiny/manifest.json").read_bytes()
    found = model.predict({"features": torch.tensor([[80.0, 0.0, 1.0], [20.0, 10.0, -1.0]])})
    assert found["label"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{HERE}:Other", "other answers"),
        (f"{HERE}:Wider", "shapes and order"),
        (f"{HERE}:Normalised", "buffers"),
        (f"{HERE}:Broken", "no such file"),
        (f"{HERE}:not_a_module", "no torch.nn.Module"),
        (f"{HERE}:Nobody", "cannot be made"),
        ("no_such_package:Mine", "cannot be made"),
    ],
)
def test_a_class_that_is_another_model_is_refused(tmp_path, key, name, said):
    with pytest.raises(ConfigurationError, match=said):
        run(tmp_path, key, name)
    assert not (tmp_path / "models" / "tiny").exists()
