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
from sealgate.certificate.architectures import FrozenEncoderSpec
from sealgate.certificate.bundle import VerifiedBundle
from sealgate.certificate.manifest import Manifest, manifest_bytes
from sealgate.certificate.schema import Measured
from sealgate.errors import ConfigurationError
from secure_runtime.models.architectures import build, parts_of
from secure_runtime.models.predictor import Predictor
from training.accountant import Cost, cost_of
from training.auditing.plans import audit_plan
from training.card import card_of
from training.configuration import Configuration, load_configuration
from training.documents import certificate_of
from training.dp_sgd.checkpoint import identity_of, require_checkpoint
from training.examples import Examples
from training.fixed_features import fixed_first
from training.forms import form_of
from training.initialisation import initialise
from training.losses import Loss
from training.manifests import manifest_of
from training.measure import Quality, measure, train_plainly
from training.mechanisms.gap import GapPlan
from training.mechanisms.plan import Plan
from training.mechanisms.plans import on_network, plan_of, with_checkpoints
from training.mechanisms.sgd import SgdPlan
from training.outputs import Outputs, check_outputs
from training.own_module import own_module, transfer
from training.owner import NOTHING, Owner
from training.preprocessing.ready import masked_of, ready
from training.preprocessing.statistics import Spending, spending_of
from training.pretrained import fill_frozen
from training.publish import require_free, weights_bytes, write_bundle
from training.report import Narrator, Quiet
from training.split import commit, hold_out, write_private
from training.sweep import Sweep
from training.watching import PublicLoss, public_examples, require_watchable


@dataclass(frozen=True, kw_only=True)
class Published:
    """A finished run: the bundle in its place, and how good the model is."""

    bundle: VerifiedBundle
    quality: Quality
    quality_without_privacy: Quality
    rows_trained: int
    rows_held_out: int
    heldout_csv: Path | None


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


def fresh_module(configuration: Configuration, manifest: Manifest, entropy: Entropy) -> nn.Module:
    """An initialised module, ready to be trained in float64; what is fixed is in the arithmetic of the manifest."""
    module = build(manifest.architecture).double()
    initialise(module, entropy)
    if isinstance(manifest.architecture, FrozenEncoderSpec):
        fill_frozen(module, configuration)
    fixed, _ = parts_of(module)
    if fixed is not None and manifest.arithmetic == "float32":
        fixed.float()
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
    resume: bool = False,
    sweep: Sweep | None = None,
    owner: Owner = NOTHING,
    narrator: Narrator | None = None,
    clock: Clock = now_us,
    entropy: Entropy = random_bytes,
) -> Published:
    """Run the seven steps; raises ConfigurationError, TrainingError or CertificateError and then leaves nothing behind.

    `protected` are files that must not be written over, besides the configuration and the rows. Without `replace`
    nothing that exists is. With `resume` a run of DP-SGD that was cut off goes on from its checkpoint. Without `audit`
    the certificate says that there was none, and loaders may refuse it. A `sweep` is run before the certified model, so
    that its figures stand in the certificate.
    `owner` says how the model is protected for whom it belongs to.
    `entropy` is a seam for tests of failure: any other source than the operating system's makes a certificate that
    every verifier refuses.
    """
    narrator = narrator or Quiet()
    if resume and sweep is not None:
        raise ConfigurationError(
            "--resume goes on with one run, and a --sweep would be run anew; leave one of them out"
        )
    configuration = load_configuration(path)  # 1
    if sweep is not None and configuration.engine.checkpoint_every:
        raise ConfigurationError(
            "--sweep: a run that is resumed would not know of the sweep before it; leave [engine] checkpoint_every out"
        )
    require_free(models_dir / configuration.model.name, replace=replace)
    unfinished = models_dir / f".{configuration.model.name}.checkpoint"
    require_checkpoint(unfinished, every=configuration.engine.checkpoint_every, resume=resume)
    outputs = Outputs(heldout_csv=_heldout_path(heldout_csv, configuration, path.parent), commitment_key=commitment_key)
    check_outputs(
        outputs,
        models_dir=models_dir,
        inputs=(path, *_read(configuration, path.parent), *protected),
        replace=replace,
    )
    manifest = manifest_of(configuration)
    encoded = manifest_bytes(manifest)
    spending, plan, cost = planned(configuration, manifest)  # 2
    masked = masked_of(configuration)
    require_watchable(configuration, plan)
    owner.check(manifest)
    narrator.announce(configuration, plan, cost)
    findings = None
    if audit:  # 3
        _, audited = parts_of(fresh_module(configuration, manifest, entropy))
        spec = manifest.architecture.trained_part()
        findings = audit_plan(plan, spec, audited, delta=configuration.delta, entropy=entropy)
        findings.require(epsilon_micro=cost.epsilon_micro)
    narrator.audited(findings)
    form = form_of(configuration)
    filled = ready(configuration, spending, folder=path.parent, entropy=entropy)  # 4
    configuration, manifest = filled.configuration, manifest_of(filled.configuration)
    encoded = manifest_bytes(manifest)
    narrator.remarks(filled.remarks)
    examples = form.read_examples(configuration, folder=path.parent)
    kept, held = hold_out(examples, fraction=Fraction(configuration.data.held_out), word=configuration.data.split)
    plan = on_network(plan, configuration, kept)
    narrator.rows(trained=len(kept), held_out=len(held))
    opening = entropy(32)
    commitment = commit(kept, key=opening)
    inputs, targets = model_space(manifest, kept)
    module = fresh_module(configuration, manifest, entropy)  # 5
    trained, inputs = fixed_first(module, inputs)
    others: tuple[Measured, ...] = ()
    if sweep is not None:

        def again(other: Configuration) -> Measured:
            return _thrown_away(other, manifest, inputs, targets, kept=kept, held=held, entropy=entropy)

        others = sweep.measured(configuration, again, told=narrator.swept)
    if spending.centering:
        population = configuration.data.public_population
        inputs = (spending.centering.centre(module, *inputs, population=population, entropy=entropy),)
    own, people = configuration.model.module, () if (groups := kept.groups()) is None else (groups,)
    plan, checkpoints = with_checkpoints(
        plan,
        configuration,
        path=unfinished,
        resume=resume,
        identity=lambda: identity_of(
            *(repr(plan).encode(), encoded, own.encode()), inputs=(*inputs, *people), targets=targets
        ),
    )
    loss = Loss.usual(manifest.classes)
    learner = own_module(own, trained, inputs, loss=loss) if own else trained
    mark = owner.mark(manifest, module)
    public = _public_loss(configuration, manifest, module, learner, loss=loss, folder=path.parent)
    with narrator.progress(plan) as on_step:
        if public is not None:
            on_step = public.around(on_step, steps=plan.steps, told=narrator.public_loss)
        if mark is not None and isinstance(plan, SgdPlan):
            on_step = mark.around(on_step, learner)
        executed = plan.train(learner, inputs, targets, groups=groups, entropy=entropy, on_step=on_step)
    if isinstance(plan, SgdPlan) and plan.chosen:
        narrator.gradients(plan.chosen[-1])
    if own:
        transfer(learner, trained)
    if mark is not None:
        narrator.marked(mark.finish(trained))
    quality = measure(manifest, module, held)  # 6
    if isinstance(plan, GapPlan):
        compared = plan.train_openly(fresh_module(configuration, manifest, entropy), inputs, targets, entropy=entropy)
    else:
        compared = train_plainly(manifest, inputs, targets, fixed=parts_of(module)[0])
    plain = measure(manifest, compared, held)
    narrator.compare(quality, plain)
    weights = weights_bytes(module)  # 7
    certificate = certificate_of(
        configuration,
        plan=plan,
        cost=cost,
        coordinates=sum(one.numel() for one in trained.parameters() if one.requires_grad),
        steps_executed=executed,
        fresh=entropy is random_bytes,
        commitment=commitment,
        weights=weights,
        manifest=encoded,
        issued_us=clock(),
        measured=(quality.measured(epsilon_micro=cost.epsilon_micro), *others),
    )
    certificate = msgspec.structs.replace(certificate, preprocessing=spending.preprocessing(masked))
    if mark is not None:
        certificate = msgspec.structs.replace(certificate, releases=(*certificate.releases, mark.release()))
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
        owner=owner,
    )
    if checkpoints is not None:
        checkpoints.discard()
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


def planned(configuration: Configuration, manifest: Manifest) -> tuple[Spending, Plan, Cost]:
    """What will be done and what it costs, from public constants alone; raises ConfigurationError."""
    spending = spending_of(configuration)
    plan = plan_of(spending.left(configuration), classes=manifest.classes)
    return (
        spending,
        plan,
        cost_of(spending.account(plan.account, delta=configuration.delta)),
    )


def _thrown_away(
    configuration: Configuration,
    manifest: Manifest,
    features: tuple[torch.Tensor, ...],
    targets: torch.Tensor,
    *,
    kept: Examples,
    held: Examples,
    entropy: Entropy,
) -> Measured:
    """One run of a sweep, measured on the same held-out rows. features: of the part that is trained, not centred."""
    spending, plan, cost = planned(configuration, manifest)
    plan = on_network(plan, configuration, kept)
    module = fresh_module(configuration, manifest, entropy)
    _, trained = parts_of(module)
    if spending.centering:
        population = configuration.data.public_population
        features = (spending.centering.centre(module, *features, population=population, entropy=entropy),)
    own = configuration.model.module
    learner = own_module(own, trained, features, loss=Loss.usual(manifest.classes)) if own else trained
    plan.train(learner, features, targets, groups=kept.groups(), entropy=entropy, on_step=lambda _step: None)
    if own:
        transfer(learner, trained)
    return measure(manifest, module, held).measured(epsilon_micro=cost.epsilon_micro)


def _public_loss(
    configuration: Configuration,
    manifest: Manifest,
    module: nn.Module,
    learner: nn.Module,
    *,
    loss: Loss,
    folder: Path,
) -> PublicLoss | None:
    """What follows the loss of public rows, if there are any. `module` has its centre already."""
    if not configuration.data.public_rows:
        return None
    inputs, targets = model_space(manifest, public_examples(configuration, folder=folder))
    return PublicLoss(learner, fixed_first(module, inputs)[1], targets, loss=loss)


def _read(configuration: Configuration, folder: Path) -> tuple[Path, ...]:
    """The files that the run reads rows from."""
    return tuple(folder / name for name in (configuration.data.source, configuration.data.public_rows) if name)


def _heldout_path(given: Path | None, configuration: Configuration, folder: Path) -> Path | None:
    """The path that was given, else the one in the configuration (relative to it), else none."""
    return given or (folder / configuration.data.heldout_csv if configuration.data.heldout_csv else None)
