"""One training run from CONFIG.toml to a signed bundle; what `sealgate train` and the demo call.

    1  read the configuration; nothing has looked at the data yet
    2  calibrate sigma, and compute what the run costs
    3  audit the trainer with these constants on made-up rows; nothing is trained, or signed, that contradicts the claim
    4  read and check the rows, set the held-out ones aside, commit to the others
    5  train privately
    6  measure on held-out rows, beside the same model without privacy
    7  write, sign, verify and place the bundle

Trusts: the configuration's public constants. Never: tunes anything by the rows it sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import msgspec
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from sealgate.ambient import Clock, Entropy, now_us, random_bytes
from sealgate.certificate.bundle import VerifiedBundle
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.manifest import Manifest, manifest_bytes
from sealgate.certificate.recompute import GaussianSteps
from secure_runtime.models.architectures import build, parts_of
from secure_runtime.models.predictor import Predictor
from training.accountant import calibrate, cost_of
from training.auditing.gate import audit_dp_sgd
from training.auditing.subject import Subject
from training.configuration import Configuration, load_configuration, micro
from training.documents import card_of, certificate_of
from training.examples import Examples
from training.fixed_features import fixed_first
from training.forms import form_of
from training.initialisation import initialise
from training.losses import Loss
from training.manifests import manifest_of
from training.measure import Quality, measure, train_plainly
from training.outputs import Outputs, check_outputs
from training.private_sgd import PrivateSgd, train_privately
from training.publish import require_free, weights_bytes, write_bundle
from training.report import Narrator, Quiet
from training.split import commit, hold_out, write_private


@dataclass(frozen=True, kw_only=True)
class Published:
    """A finished run: the bundle in its place, and how good the model is."""

    bundle: VerifiedBundle
    quality: Quality
    quality_without_privacy: Quality
    rows_trained: int
    rows_held_out: int
    heldout_csv: Path | None


def mechanism_of(configuration: Configuration) -> GaussianSteps:
    """The mechanism to run: sigma as given, or calibrated to the target epsilon."""
    privacy = configuration.privacy
    if privacy.sigma is not None:
        sigma = micro(privacy.sigma, "[privacy] sigma")
        return GaussianSteps(sigma_micro=sigma, rate=configuration.rate, steps=privacy.steps, delta=configuration.delta)
    assert privacy.epsilon is not None
    return calibrate(
        target_micro=micro(privacy.epsilon, "[privacy] epsilon"),
        rate=configuration.rate,
        steps=privacy.steps,
        delta=configuration.delta,
    )


def constants_of(configuration: Configuration, mechanism: GaussianSteps) -> PrivateSgd:
    """The public constants of DP-SGD."""
    return PrivateSgd(
        rate=configuration.rate,
        steps=mechanism.steps,
        divisor=configuration.divisor_micro / MICRO,
        clip_norm=float(configuration.privacy.clip_norm),
        sigma=mechanism.sigma_micro / MICRO,
        learning_rate=float(configuration.optimizer.learning_rate),
        momentum=float(configuration.optimizer.momentum),
        average_steps=configuration.optimizer.average_steps,
    )


def model_space(manifest: Manifest, examples: Examples) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Inputs and targets as the model sees them: clamped and scaled by public constants; tokens as int64."""
    scaler = Predictor(manifest, build(manifest.architecture))
    named = {
        tensor.name: torch.from_numpy(values) for tensor, values in zip(manifest.inputs, examples.inputs, strict=True)
    }
    targets = torch.from_numpy(examples.target)
    if manifest.classes == 0:
        assert manifest.value_range is not None
        low, high = float(manifest.value_range.low), float(manifest.value_range.high)
        targets = (targets.clamp(low, high) - (high + low) / 2) / ((high - low) / 2)
    return scaler.scaled(named), targets


def fresh_module(manifest: Manifest, entropy: Entropy) -> nn.Module:
    """An initialised float64 module, ready to be trained."""
    module = build(manifest.architecture).double()
    initialise(module, entropy)
    return module


def run_experiment(
    path: Path,
    *,
    models_dir: Path,
    key: Ed25519PrivateKey,
    heldout_csv: Path | None = None,
    commitment_key: Path | None = None,
    protected: tuple[Path, ...] = (),
    replace: bool = False,
    audit: bool = True,
    narrator: Narrator | None = None,
    clock: Clock = now_us,
    entropy: Entropy = random_bytes,
) -> Published:
    """Run the seven steps; raises ConfigurationError, TrainingError or CertificateError and then leaves nothing behind.

    `protected` are files that must not be written over, besides the configuration and the rows. Without `replace`
    nothing that exists is. Without `audit` the certificate says that there was none, and loaders may refuse it.
    `entropy` is a seam for tests of failure: any other source than the operating system's makes a certificate that
    every verifier refuses.
    """
    narrator = narrator or Quiet()
    configuration = load_configuration(path)  # 1
    require_free(models_dir / configuration.model.name, replace=replace)
    outputs = Outputs(heldout_csv=_heldout_path(heldout_csv, configuration, path.parent), commitment_key=commitment_key)
    check_outputs(
        outputs,
        models_dir=models_dir,
        inputs=(path, path.parent / configuration.data.source, *protected),
        replace=replace,
    )
    manifest = manifest_of(configuration)
    encoded = manifest_bytes(manifest)
    mechanism = mechanism_of(configuration)  # 2
    cost = cost_of(mechanism)
    narrator.announce(configuration, mechanism, cost)
    constants, loss = constants_of(configuration, mechanism), Loss.usual(manifest.classes)
    findings = None
    if audit:  # 3
        subject = Subject(constants=constants, loss=loss, delta=configuration.delta)
        module = fresh_module(manifest, entropy)
        findings = audit_dp_sgd(subject, manifest.architecture, module, entropy=entropy)
        findings.require(epsilon_micro=cost.epsilon_micro)
    narrator.audited(findings)
    form = form_of(configuration)
    examples = form.read_examples(configuration, folder=path.parent)  # 4
    kept, held = hold_out(examples, fraction=Fraction(configuration.data.held_out), word=configuration.data.split)
    narrator.rows(trained=len(kept), held_out=len(held))
    opening = entropy(32)
    commitment = commit(kept, key=opening)
    inputs, targets = model_space(manifest, kept)
    module = fresh_module(manifest, entropy)  # 5
    trained, inputs = fixed_first(module, inputs)
    with narrator.progress(mechanism) as on_step:
        executed = train_privately(
            trained,
            inputs,
            targets,
            constants=constants,
            loss=loss,
            entropy=entropy,
            on_step=on_step,
        )
    quality = measure(manifest, module, held)  # 6
    plain = measure(manifest, train_plainly(manifest, inputs, targets, fixed=parts_of(module)[0]), held)
    narrator.compare(quality, plain)
    weights = weights_bytes(module)  # 7
    certificate = certificate_of(
        configuration,
        mechanism=mechanism,
        cost=cost,
        steps_executed=executed,
        fresh=entropy is random_bytes,
        commitment=commitment,
        weights=weights,
        manifest=encoded,
        issued_us=clock(),
    )
    if findings is not None:
        part = findings.certified(code_digest=certificate.environment.code_digest)
        certificate = msgspec.structs.replace(certificate, audit=part)
    bundle = write_bundle(
        models_dir,
        key=key,
        weights=weights,
        manifest=encoded,
        certificate=certificate,
        card=card_of(manifest, certificate, quality),
        replace=replace,
    )
    if outputs.commitment_key is not None:
        write_private(outputs.commitment_key, opening.hex() + "\n")
    if outputs.heldout_csv is not None:
        form.write_heldout(outputs.heldout_csv, held, configuration)
    narrator.published(bundle, outputs.heldout_csv)
    return Published(
        bundle=bundle,
        quality=quality,
        quality_without_privacy=plain,
        rows_trained=len(kept),
        rows_held_out=len(held),
        heldout_csv=outputs.heldout_csv,
    )


def _heldout_path(given: Path | None, configuration: Configuration, folder: Path) -> Path | None:
    """The path that was given, else the one in the configuration (relative to it), else none."""
    return given or (folder / configuration.data.heldout_csv if configuration.data.heldout_csv else None)
