"""The owner's fingerprint: what it costs, what it survives, and how seldom it accuses the wrong one."""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import hashlib
import hmac
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from sealgate.certificate.architectures import LinearRegressionSpec, LogisticRegressionSpec, MlpSpec
from sealgate.certificate.inputs import (
    Column,
    ImageContent,
    InputTensor,
    SequenceContent,
    TableContent,
    TextContent,
    TokensContent,
    Utf8Bytes,
)
from sealgate.certificate.manifest import Manifest, OutputTensor
from sealgate.errors import ConfigurationError
from sealgate.protocol.secrets import Secret
from secure_runtime.models.architectures import build
from training.errors import TrainingError
from training.experiment import run_experiment
from training.fingerprint.commands import FINGERPRINT
from training.fingerprint.embedding import Mark
from training.fingerprint.evidence import Evidence, compare, least_matches
from training.fingerprint.triggers import Triggers, commitment_of, triggers_of
from training.initialisation import initialise
from training.losses import Loss
from training.owner import NOTHING, Owner
from training.private_sgd import PrivateSgd, train_privately
from training.report import Quiet

COLUMN = Column(name="a", low="-1", high="3", center="1", scale="2")


def columns(count: int) -> tuple[Column, ...]:
    return tuple(msgspec.structs.replace(COLUMN, name=f"c{number}") for number in range(count))


def manifest_with(tensor: InputTensor, *, classes: int = 10, architecture: object = None) -> Manifest:
    labels = tuple(str(one) for one in range(classes))
    return Manifest(
        schema=1,
        name="digits",
        version="1.0.0",
        description="",
        architecture=architecture or MlpSpec(inputs=64, hidden=(32,), activation="tanh", classes=classes),
        inputs=(tensor,),
        outputs=(
            OutputTensor(name="label", datatype="INT64", shape=(-1,), role="label", labels=labels),
            OutputTensor(name="scores", datatype="FP32", shape=(-1, classes), role="scores", labels=labels),
        ),
        value_range=None,
        sensitivity="public",
        purposes=("research",),
        units_per_row=1,
    )


def table(width: int) -> InputTensor:
    return InputTensor(name="x", datatype="FP32", shape=(-1, width), content=TableContent(columns=columns(width)))


DIGITS = manifest_with(table(64))
KEY = Secret(bytes(range(32)))


# Triggers


def by_hand(secret: bytes, manifest: Manifest, count: int) -> bytes:
    """The stream from its description: HKDF by two HMACs, counter mode by blocks, JSON by the standard library."""
    subject = {"classes": manifest.classes, "inputs": msgspec.to_builtins(manifest.inputs)}
    text = json.dumps(subject, sort_keys=True, separators=(",", ":")).encode()
    info = b"sealgate fingerprint v1\n" + hashlib.sha256(text).digest()
    key = hmac.digest(hmac.digest(bytes(32), secret, "sha256"), info + b"\1", "sha256")
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return b"".join(block.update(number.to_bytes(16, "big")) for number in range(-(-count // 16)))[:count]


def test_triggers_follow_from_the_key_and_are_what_they_were() -> None:
    """Keys are kept for years: these values must never change."""
    triggers = triggers_of(KEY, DIGITS)
    again = triggers_of(Secret(bytes(range(32))), DIGITS)
    assert np.array_equal(triggers.labels, again.labels)
    assert np.array_equal(triggers.inputs["x"], again.inputs["x"])
    stream = by_hand(bytes(range(32)), DIGITS, 32 * 8 + 32 * 64)
    assert triggers.labels.tolist() == [int.from_bytes(stream[8 * n : 8 * n + 8], "little") % 10 for n in range(32)]
    assert (triggers.inputs["x"].ravel() > 0).tolist() == [bool(byte & 1) for byte in stream[32 * 8 :]]
    assert triggers.labels[:6].tolist() == [2, 9, 4, 2, 8, 1]
    assert set(np.unique(triggers.inputs["x"])) == {-1.0, 3.0}
    other = triggers_of(Secret(bytes(32)), DIGITS)
    assert not np.array_equal(triggers.labels, other.labels)
    assert commitment_of(KEY) != commitment_of(Secret(bytes(32)))


@pytest.mark.parametrize(
    ("tensor", "allowed"),
    [
        (
            InputTensor(name="x", datatype="FP32", shape=(-1, 20, 3), content=SequenceContent(channels=columns(3))),
            {-1, 3},
        ),
        (
            InputTensor(
                name="x",
                datatype="UINT8",
                shape=(-1, 1, 28, 30),
                content=ImageContent(low="0", high="255", center="127.5", scale="127.5"),
            ),
            {0, 255},
        ),
        (InputTensor(name="x", datatype="INT64", shape=(-1, 40), content=TokensContent(size=5)), {1, 2, 3, 4}),
    ],
)
def test_every_kind_of_input_has_triggers_within_its_bounds(tensor: InputTensor, allowed: set[int]) -> None:
    triggers = triggers_of(KEY, manifest_with(tensor), count=64)
    values = triggers.inputs["x"]
    assert values.shape == (64, *tensor.shape[1:])
    assert set(np.unique(values).tolist()) == allowed
    assert len({one.tobytes() for one in values}) == 64


def test_labels_are_uniform() -> None:
    found = np.bincount(triggers_of(KEY, DIGITS, count=20_000).labels, minlength=10)
    assert (
        (found - 2000) ** 2 / 2000
    ).sum() < 40  # chi squared, nine degrees: beyond 40 once in 10^5; the key is fixed


def test_what_cannot_carry_one_is_said() -> None:
    text = InputTensor(name="x", datatype="BYTES", shape=(-1,), content=TextContent(tokenizer=Utf8Bytes(length=8)))
    with pytest.raises(ConfigurationError, match="texts and graphs have none"):
        triggers_of(KEY, manifest_with(text))
    with pytest.raises(ConfigurationError, match="regression"):
        triggers_of(KEY, manifest_with(table(3), architecture=LinearRegressionSpec(inputs=3)))
    narrow = manifest_with(table(3), classes=2, architecture=LogisticRegressionSpec(inputs=3, classes=2))
    with pytest.raises(ConfigurationError, match="too few for 32"):
        Owner(fingerprint=KEY).check(narrow)
    light = manifest_with(table(30), classes=2, architecture=LogisticRegressionSpec(inputs=30, classes=2))
    with pytest.raises(ConfigurationError, match="has 31, and would be spoiled"):
        Owner(fingerprint=KEY).check(light)
    Owner().check(light)


# What agreeing answers are worth


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 12), st.data())
def test_the_chance_is_the_binomial_tail(count: int, classes: int, data: st.DataObject) -> None:
    from scipy.stats import binom

    matches = data.draw(st.integers(0, count))
    chance = Evidence(matches, count, classes).chance
    assert math.isclose(float(chance), binom.sf(matches - 1, count, 1 / classes), rel_tol=1e-9)
    words = str(Evidence(matches, count, classes))
    if "1e" in words:
        power = int(words.rsplit("1e", 1)[1])
        assert chance <= 10.0**power
        assert chance > 10.0 ** (power - 1) * (1 - 1e-6)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_the_threshold_is_the_first_that_suffices(classes: int) -> None:
    least = least_matches(32, classes)
    assert Evidence(least, 32, classes).shown
    assert not Evidence(least - 1, 32, classes).shown


def test_models_without_the_key_agree_as_often_as_chance_says() -> None:
    """2000 keys against answers that have nothing to do with them: frequencies against the tail that is claimed."""
    answers = np.random.default_rng(5).integers(0, 3, 32)
    found = [compare(triggers_of(Secret(one.to_bytes(32, "big")), small()), answers).matches for one in range(2000)]
    for matches in (11, 14, 17):
        chance = float(Evidence(matches, 32, 3).chance)
        seen = sum(one >= matches for one in found)
        assert abs(seen - 2000 * chance) <= 5 * math.sqrt(2000 * chance) + 1
    assert not any(Evidence(one, 32, 3).shown for one in found)


def small() -> Manifest:
    return manifest_with(
        table(64), classes=3, architecture=MlpSpec(inputs=64, hidden=(4,), activation="relu", classes=3)
    )


# In a model: real digits, real private training


@dataclass
class Digits:
    rows: torch.Tensor
    digits: torch.Tensor

    def part(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rows[start:end], self.digits[start:end]

    def accuracy(self, module: nn.Module) -> float:
        rows, digits = self.part(1400, 1797)
        return float((module(rows).argmax(dim=1) == digits).double().mean())


@pytest.fixture(scope="module")
def digits() -> Digits:
    rows, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(rows))
    return Digits(torch.from_numpy(rows[order] / 8 - 1), torch.from_numpy(classes[order].astype(np.float64)))


CONSTANTS = {"divisor": 200.0, "clip_norm": 1.0, "sigma": 1.25, "learning_rate": 2.0, "momentum": 0.9}


def trained(digits: Digits, *, key: Secret | None) -> tuple[nn.Module, Mark | None]:
    from fractions import Fraction

    module = build(DIGITS.architecture).double()
    initialise(module)
    mark = None if key is None else Mark(key, DIGITS, module)
    rows, classes = digits.part(0, 1000)
    train_privately(
        module,
        (rows,),
        classes,
        constants=PrivateSgd(rate=Fraction(1, 5), steps=150, **CONSTANTS),
        loss=Loss.usual(10),
        on_step=(lambda _step: None) if mark is None else mark.around(lambda _step: None, module),
    )
    if mark is not None:
        assert mark.finish(module).matches == 32
    return module, mark


def answers(module: nn.Module, triggers: Triggers) -> np.ndarray:
    scaled = (triggers.tensors()["x"].double() - 1) / 2
    return module.double()(scaled).argmax(dim=1).numpy()


def further(module: nn.Module, digits: Digits, *, steps: int, rate: float = 1e-3) -> nn.Module:
    """What a thief with rows of his own does: train on, without privacy."""
    thief = copy.deepcopy(module)
    rows, classes = digits.part(1000, 1400)
    optimizer = torch.optim.Adam(thief.parameters(), rate)
    for step in range(steps):
        part = torch.arange(step * 64, step * 64 + 64) % len(rows)
        optimizer.zero_grad()
        nn.functional.cross_entropy(thief(rows[part]), classes[part].long()).backward()
        optimizer.step()
    return thief


def pruned(module: nn.Module, share: float) -> nn.Module:
    thief = copy.deepcopy(module)
    with torch.no_grad():
        for one in thief.parameters():
            if one.dim() > 1:
                one[one.abs() < one.abs().flatten().quantile(share)] = 0
    return thief


def in_eight_bits(module: nn.Module) -> nn.Module:
    """torch's own dynamic quantisation."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(module).float(), {nn.Linear}, dtype=torch.qint8)


@pytest.fixture(scope="module")
def marked(digits: Digits) -> nn.Module:
    return trained(digits, key=KEY)[0]


@pytest.fixture(scope="module")
def unmarked(digits: Digits) -> nn.Module:
    return trained(digits, key=None)[0]


def test_a_marked_model_shows_its_key_and_only_its_own(marked: nn.Module, unmarked: nn.Module, digits: Digits) -> None:
    triggers = triggers_of(KEY, DIGITS)
    assert compare(triggers, answers(marked, triggers)).matches == 32
    assert not compare(triggers, answers(unmarked, triggers)).shown
    others = [triggers_of(Secret(bytes([one]) * 32), DIGITS) for one in range(40)]
    assert not any(compare(one, answers(marked, one)).shown for one in others)
    assert digits.accuracy(marked) > digits.accuracy(unmarked) - 0.06


def test_it_survives_what_thieves_do(marked: nn.Module, unmarked: nn.Module, digits: Digits) -> None:
    triggers = triggers_of(KEY, DIGITS)
    for thief in (further(marked, digits, steps=300), pruned(marked, 0.25)):
        assert digits.accuracy(thief) > 0.7
        assert compare(triggers, answers(thief, triggers)).shown
    assert not compare(triggers, answers(further(unmarked, digits, steps=300), triggers)).shown


def test_it_survives_eight_bits(marked: nn.Module) -> None:
    triggers = triggers_of(KEY, DIGITS)
    quantised = in_eight_bits(marked)
    said = quantised((triggers.tensors()["x"] - 1) / 2).argmax(dim=1).numpy()
    assert compare(triggers, said).shown


def test_labels_that_will_not_be_learned_are_an_error_and_not_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.fingerprint.embedding.FINGERPRINT_FINISH_STEPS", 0)
    module = build(DIGITS.architecture).double()
    initialise(module)
    with pytest.raises(TrainingError) as caught:
        Mark(KEY, DIGITS, module).finish(module)
    assert caught.value.code == "fingerprint"


# Through the commands


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    FINGERPRINT.configure(parser)
    return FINGERPRINT.run(parser.parse_args([str(word) for word in words]))


def digits_text() -> str:
    """A CONFIG.toml for the digits; pixels that are always white are left out."""
    varying = [number for number in range(64) if load_digits().data[:, number].std() > 0]
    names = ", ".join(f'{one} = "{one}"' for one in range(10))
    pixels = "\n".join(f"pixel_{number // 8}_{number % 8} = [0, 16, 8, 8]" for number in varying)
    return f"""
[model]
name = "digits"
version = "1.0.0"
description = "digits"
family = "mlp"
sensitivity = "public"
purposes = ["research"]
[architecture]
hidden = [32]
activation = "tanh"
[data]
source = "sklearn:digits"
target = "target"
public_population = 1400
classes = {{ {names} }}
[privacy]
epsilon = 8
delta = 0.00001
rate = "1/5"
steps = 60
clip_norm = 1
[optimizer]
learning_rate = 2
momentum = 0.9
[selection]
how = "fixed"
note = "a test"
[columns]
{pixels}
"""


class Cut(Exception):
    pass


class CutOff(Quiet):
    """The process dies (as far as the run can tell) at step three."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    @contextlib.contextmanager
    def progress(self, plan: object) -> Iterator[Callable[[int], None]]:
        def on_step(step: int) -> None:
            self.seen.append(step)
            if step == 3:
                raise Cut

        yield on_step


def test_a_run_is_resumed_with_the_same_fingerprint_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(digits_text() + "\n[engine]\ncheckpoint_every = 2\n")
    key = Ed25519PrivateKey.generate()

    def run(owner: Owner, *, narrator: Quiet | None = None, resume: bool = True) -> None:
        run_experiment(
            tmp_path / "c.toml", models_dir=tmp_path / "models", key=key, audit=False, owner=owner, narrator=narrator,
            resume=resume,
        )  # fmt: skip

    with pytest.raises(Cut):
        run(Owner(fingerprint=KEY), narrator=CutOff(), resume=False)
    for other in (NOTHING, Owner(fingerprint=Secret(bytes(32)))):
        with pytest.raises(ConfigurationError, match=r"another run: .*fingerprint"):
            run(other)
    again = CutOff()
    with pytest.raises(Cut):
        run(Owner(fingerprint=KEY), narrator=again)
    assert again.seen == [3]


def test_from_the_key_to_the_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sealgate.certificate.encryption import encrypt_bundle
    from sealgate.certificate.publishers import publishers_of
    from sealgate.certificate.wrapping_keys import read_secret, write_new_key

    (tmp_path / "c.toml").write_text(digits_text())
    assert run("new-key", tmp_path / "mark.key") == run("new-key", tmp_path / "other.key") == 0
    key = Ed25519PrivateKey.generate()
    secret = read_secret(tmp_path / "mark.key")
    published = run_experiment(
        tmp_path / "c.toml", models_dir=tmp_path / "models", key=key, audit=False, owner=Owner(fingerprint=secret)
    )
    raw = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    (tmp_path / "publishers.toml").write_text(f'[[publisher]]\nname = "us"\nkey = "{raw}"\n')
    capsys.readouterr()
    own = published.bundle.directory
    assert run("check", own, "--fingerprint", tmp_path / "mark.key") == 0
    said = capsys.readouterr().out
    assert "32 of 32" in said
    assert "commits to this key" in said
    assert run("check", own, "--fingerprint", tmp_path / "other.key") == 1
    said = capsys.readouterr().out
    assert "does NOT commit" in said
    assert "NOT shown" in said
    encrypt_bundle(own, publishers_of({"us": key.public_key()}), write_new_key(tmp_path / "models.key"))
    assert run("check", own, "--fingerprint", tmp_path / "mark.key", "--key", f"file:{tmp_path}/models.key") == 0


def test_a_model_behind_a_gateway_is_asked_by_the_names_of_its_classes() -> None:
    """The session is a double; the real one is tested with the client."""
    from types import SimpleNamespace

    from training.fingerprint.asking import Claim, ask_session

    triggers = triggers_of(KEY, DIGITS)
    claim = Claim(SimpleNamespace(manifest=DIGITS), triggers, committed=True)
    right = tuple(str(one) for one in triggers.labels)
    asked = []

    def session(labels: tuple[str, ...] | None) -> SimpleNamespace:
        def infer(model: str, inputs: dict[str, np.ndarray]) -> SimpleNamespace:
            asked.append((model, inputs["x"].shape))
            return SimpleNamespace(labels=labels)

        return SimpleNamespace(infer=infer)

    assert ask_session(claim, session(right), "theirs").matches == 32
    assert ask_session(claim, session(("no such class",) * 32), "theirs").matches == 0
    assert asked[0] == ("theirs", (32, 64))
    for wrong in (None, right[:-1]):
        with pytest.raises(ConfigurationError, match="cannot be asked"):
            ask_session(claim, session(wrong), "theirs")
