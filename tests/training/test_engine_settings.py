"""From CONFIG.toml to the engine: settings that arrive or are refused, and a run that is cut off and resumed."""

from __future__ import annotations

import contextlib
import hashlib

import numpy as np
import pytest

from sealgate.certificate.bundle import verify_bundle
from sealgate.certificate.publishers import publishers_of
from sealgate.errors import ConfigurationError
from tests.training.conftest import configuration_text, tiny, write_data
from training.configuration import load_configuration
from training.experiment import run_experiment
from training.mechanisms.plans import plan_of
from training.report import Quiet
from training.sweep import Sweep


def written(tmp_path, more: str, *, family: str = "logistic-regression", optimizer: str = ""):
    text = configuration_text("data.csv", family=family)
    path = tmp_path / "config.toml"
    path.write_text(text.replace("momentum = 0.9", optimizer or "momentum = 0.9") + more)
    write_data(tmp_path / "data.csv", tiny())
    return path


def test_settings_arrive_at_the_engine(tmp_path):
    path = written(
        tmp_path,
        '\n[loss]\nkind = "huber"\ntransition = 0.25\n[engine]\ngradients = "vmap"\narithmetic = "float32"\n',
        family="linear-regression",
        optimizer='kind = "adamw"\nweight_decay = 0.1\nschedule = "cosine"\nwarmup_steps = 3\naverage = "ema"\n'
        "average_decay = 0.9\nfirst_decay = 0.8\nsecond_decay = 0.99",
    )
    plan = plan_of(load_configuration(path), classes=0)
    assert (plan.loss.kind, plan.loss.transition) == ("huber", 0.25)
    rule = plan.constants.rule
    assert (rule.optimizer, rule.weight_decay, rule.first_decay, rule.second_decay) == ("adamw", 0.1, 0.8, 0.99)
    assert (rule.schedule, rule.warmup_steps, rule.average, rule.average_decay) == ("cosine", 3, "ema", 0.9)
    assert (plan.constants.gradients, plan.constants.arithmetic) == ("vmap", "float32")


@pytest.mark.parametrize(
    ("more", "optimizer", "said"),
    [
        ('\n[loss]\nkind = "mse"\n', "", "loss"),
        ("\n[augmentation]\nmultiplicity = 2\n", "", "images"),
        ('\n[engine]\ngradients = "magic"\n', "", "gradients"),
        ('\n[engine]\narithmetic = "float16"\n', "", "arithmetic"),
        ("\n[engine]\ncheckpoint_every = -1\n", "", "checkpoint_every"),
        ("", 'kind = "lion"', "kind"),
        ("", 'kind = "adam"\nmomentum = 0.9', "first_decay"),
        ("", 'average = "ema"', "average_decay"),
        ("", "warmup_steps = 41", "warmup_steps"),
        ("", 'schedule = "stairs"', "schedule"),
        ("", "second_decay = 1", "decays"),
    ],
)
def test_what_the_engine_does_not_know_is_refused_by_name(tmp_path, more, optimizer, said):
    with pytest.raises(ConfigurationError, match=said):
        load_configuration(written(tmp_path, more, optimizer=optimizer))


class Cut(Exception):
    pass


class CutOff(Quiet):
    """The process dies (as far as the run can tell) at a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seen: list[int] = []

    @contextlib.contextmanager
    def progress(self, plan):
        def on_step(step: int) -> None:
            self.seen.append(step)
            if step == self.step:
                raise Cut

        yield on_step


def test_a_run_that_was_cut_off_is_resumed_and_published(tmp_path, key):
    path = written(tmp_path, "\n[engine]\ncheckpoint_every = 5\n")
    models = tmp_path / "models"
    with pytest.raises(Cut):
        run_experiment(path, models_dir=models, key=key, audit=False, narrator=CutOff(12))
    kept = models / ".tiny.checkpoint"
    assert kept.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="--resume"):
        run_experiment(path, models_dir=models, key=key, audit=False)
    write_data(tmp_path / "data.csv", tiny(seed=8))
    with pytest.raises(ConfigurationError, match="another run"):
        run_experiment(path, models_dir=models, key=key, audit=False, resume=True)
    write_data(tmp_path / "data.csv", tiny())
    narrator = CutOff(0)
    run_experiment(path, models_dir=models, key=key, audit=False, resume=True, narrator=narrator)
    assert narrator.seen == list(range(11, 41))
    assert not kept.exists()
    verified = verify_bundle(models / "tiny", publishers_of({"p": key.public_key()}))
    assert verified.certificate.mechanism.sampling.steps_executed == 40


def test_exact_noise_does_not_stand_on_float32(tmp_path):
    path = written(tmp_path, '\n[engine]\narithmetic = "float32"\n')
    path.write_text(path.read_text().replace("steps = 40", 'steps = 40\nnoise = "discrete-gaussian"'))
    with pytest.raises(ConfigurationError, match="float64"):
        load_configuration(path)


def test_what_was_seen_of_a_step_is_never_done_again(tmp_path, key):
    """A loss that was shown belongs to a step; were the step lost in a crash, the resumed run would do one more."""
    path = written(tmp_path, "\n[engine]\ncheckpoint_every = 5\n")
    text = path.read_text()
    path.write_text(text.replace("public_population", 'public_rows = "data.csv"\npublic_population'))
    with pytest.raises(ConfigurationError, match="public_rows"):
        load_configuration(path)
    path.write_text(path.read_text().replace("checkpoint_every = 5", "checkpoint_every = 1"))
    load_configuration(path)  # each step is on the disk before its loss is shown
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="sweep"):
        run_experiment(path, models_dir=tmp_path / "models", key=key, sweep=Sweep.of("1", repeats=1))


def test_a_run_for_other_people_is_another_run(tmp_path, key):
    """The same rows on the same sides, but two of the people are one: whose gradients are clipped together differs."""
    path = written(tmp_path, "\n[engine]\ncheckpoint_every = 5\n")
    text = path.read_text().replace("public_population", 'person = "who"\npublic_population')
    path.write_text(text.replace("steps = 40", "steps = 40\nrows_per_person = 4"))
    rows = tiny()
    people = [str(row // 2) for row in range(len(rows["age"]))]

    def trained_on(person: str) -> bool:
        digest = hashlib.sha256(b"sealgate split v1\x001\x00person\x00" + person.encode()).digest()
        return int.from_bytes(digest[:8], "big") >= 2**64 // 4

    one, other = [person for person in dict.fromkeys(people) if trained_on(person)][:2]
    write_data(tmp_path / "data.csv", {**rows, "who": np.array(people)})
    with pytest.raises(Cut):
        run_experiment(path, models_dir=tmp_path / "models", key=key, audit=False, narrator=CutOff(12))
    merged = [one if person == other else person for person in people]
    write_data(tmp_path / "data.csv", {**rows, "who": np.array(merged)})
    with pytest.raises(ConfigurationError, match="another run"):
        run_experiment(path, models_dir=tmp_path / "models", key=key, audit=False, resume=True)


def test_what_cannot_be_resumed_says_so(tmp_path, key):
    path = written(tmp_path, "")
    with pytest.raises(ConfigurationError, match="checkpoint_every"):
        run_experiment(path, models_dir=tmp_path / "models", key=key, audit=False, resume=True)


class Unasked(Quiet):
    """Nothing may begin: neither the announcement nor the audit."""

    def announce(self, configuration, plan, cost):
        raise AssertionError("the checkpoint is looked for first")


def test_a_checkpoint_is_looked_for_before_anything_else(tmp_path, key):
    path = written(tmp_path, "\n[engine]\ncheckpoint_every = 5\n")
    (tmp_path / "data.csv").unlink()
    models = tmp_path / "models"
    with pytest.raises(ConfigurationError, match="there is no checkpoint"):
        run_experiment(path, models_dir=models, key=key, resume=True, narrator=Unasked())
    models.mkdir()
    (models / ".tiny.checkpoint").write_bytes(b"half a file")
    for resume, words in ((True, "cannot be read"), (False, "unfinished run")):
        with pytest.raises(ConfigurationError, match=words):
            run_experiment(path, models_dir=models, key=key, resume=resume, narrator=Unasked())


class Listener(Quiet):
    choice = None

    def gradients(self, choice):
        self.choice = choice


def test_the_way_to_gradients_is_told_and_certified(tmp_path, key):
    path = written(tmp_path, '\n[engine]\ngradients = "vmap"\n')
    listener = Listener()
    published = run_experiment(path, models_dir=tmp_path / "models", key=key, audit=False, narrator=listener)
    assert published.bundle.certificate.environment.gradients == "vmap"
    assert listener.choice.mode == "vmap"
    assert str(listener.choice).startswith("vmap (milliseconds for")
