"""One training run from CONFIG.toml to a signed bundle; what `sealgate train` and the demo call.

    1  read the configuration; nothing has looked at the data yet
    2  calibrate sigma, and compute what the run costs
    3  audit the trainer with these constants on made-up rows; nothing is trained, or signed, that contradicts the claim
    4  read and check the rows, set the held-out ones aside, commit to the others
    5  train privately
    6  measure on held-out rows, beside the same model without privacy
    7  write, sign, verify and place the bundle

Trusts: the configuration's public constants. Never: tunes anything by the rows it sees. Long, because each of the seven
is a function here, in the order of reading.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from sealgate.certificate.schema import Certificate, Masked, Measured
from sealgate.errors import ConfigurationError
from secure_runtime.models.architectures import build, parts_of
from secure_runtime.models.predictor import Predictor
from training.accountant import Cost, cost_of
from training.auditing.gate import Findings
from training.auditing.plans import audit_plan
from training.auditing.statistics import audit_statistics
from training.card import card_of
from training.configuration import Configuration, load_configuration
from training.documents import certificate_of
from training.dp_sgd.checkpoint import Checkpoints, identity_of, require_checkpoint
from training.examples import Examples
from training.fingerprint.embedding import Mark
from training.fixed_features import fixed_first
from training.forms import form_of
from training.initialisation import initialise
from training.losses import Loss
from training.manifests import manifest_of
from training.measure import Quality, measure, train_plainly
from training.mechanisms.gap import GapPlan
from training.mechanisms.plan import Plan
from training.mechanisms.plans import on_network, plan_of, with_checkpoints
from training.mechanisms.sgd import SgdPlan, on_processes
from training.outputs import Outputs, check_outputs, require_space
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


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The arguments of `run_experiment`, which explains them."""

    path: Path
    models_dir: Path
    key: Ed25519PrivateKey
    heldout_csv: Path | None
    commitment_key: Path | None
    protected: tuple[Path, ...]
    replace: bool
    audit: bool
    resume: bool
    processes: int
    sharded: bool
    sweep: Sweep | None
    owner: Owner
    narrator: Narrator
    clock: Clock
    entropy: Entropy

    @property
    def folder(self) -> Path:
        """Where the configuration lies: its paths are relative to it."""
        return self.path.parent


@dataclass(frozen=True, kw_only=True)
class _Settled:
    """Steps 1 and 2: all that is decided before anything looks at the data."""

    configuration: Configuration
    manifest: Manifest
    spending: Spending
    masked: tuple[Masked, ...]
    plan: Plan
    cost: Cost
    outputs: Outputs
    unfinished: Path  # where a run that is cut off is kept


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Step 4: the rows as the model sees them; configuration and manifest with what was released of them filled in."""

    configuration: Configuration
    manifest: Manifest
    plan: Plan
    kept: Examples
    held: Examples
    opening: bytes
    inputs: tuple[torch.Tensor, ...]
    targets: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """Step 5: the module with its weights, and how it came to them."""

    module: nn.Module
    part: nn.Module  # of the module: what was trained
    inputs: tuple[torch.Tensor, ...]  # of that part
    plan: Plan
    executed: int
    others: tuple[Measured, ...]
    mark: Mark | None
    checkpoints: Checkpoints | None


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
    processes: int = 1,
    sharded: bool = False,
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
    `owner` says how the model is protected for whom it belongs to. With `processes` above one the steps of DP-SGD are
    shared by so many, and with `sharded` the weights; the audit attacks the engine in this one.
    `entropy` is a seam for tests of failure: any other source than the operating system's makes a certificate that
    every verifier refuses.
    """
    asked = _Asked(
        path=path,
        models_dir=models_dir,
        key=key,
        heldout_csv=heldout_csv,
        commitment_key=commitment_key,
        protected=protected,
        replace=replace,
        audit=audit,
        resume=resume,
        processes=processes,
        sharded=sharded,
        sweep=sweep,
        owner=owner,
        narrator=narrator or Quiet(),
        clock=clock,
        entropy=entropy,
    )
    settled = _plan(asked)  # 1, 2
    findings = _audit(asked, settled)  # 3
    rows = _read_rows(asked, settled)  # 4
    trained = _train(asked, settled, rows)  # 5
    quality, plain = _measure(asked, rows, trained)  # 6
    return _publish(asked, settled, rows, trained, findings=findings, quality=quality, plain=plain)  # 7


def _plan(asked: _Asked) -> _Settled:
    if asked.resume and asked.sweep is not None:
        raise ConfigurationError(
            "--resume goes on with one run, and a --sweep would be run anew; leave one of them out"
        )
    configuration = load_configuration(asked.path)
    if asked.sweep is not None and configuration.engine.checkpoint_every:
        raise ConfigurationError(
            "--sweep: a run that is resumed would not know of the sweep before it; leave [engine] checkpoint_every out"
        )
    require_free(asked.models_dir / configuration.model.name, replace=asked.replace)
    unfinished = asked.models_dir / f".{configuration.model.name}.checkpoint"
    require_checkpoint(unfinished, every=configuration.engine.checkpoint_every, resume=asked.resume)
    heldout_csv = _heldout_path(asked.heldout_csv, configuration, asked.folder)
    outputs = Outputs(heldout_csv=heldout_csv, commitment_key=asked.commitment_key)
    check_outputs(
        outputs,
        models_dir=asked.models_dir,
        inputs=(asked.path, *_read(configuration, asked.folder), *asked.protected),
        replace=asked.replace,
    )
    manifest = manifest_of(configuration)
    manifest_bytes(manifest)  # what no verifier would accept is refused now
    require_space(asked.models_dir, manifest, checkpoints=bool(configuration.engine.checkpoint_every))
    with asked.narrator.busy(f"computing the noise that {configuration.model.name} needs"):
        spending, plan, cost = planned(configuration, manifest)
    plan = _shared(plan, asked, configuration)
    masked = masked_of(configuration)
    require_watchable(configuration, plan)
    asked.owner.check(manifest)
    _require_sources(configuration, asked)  # last: what is wrong with the configuration itself is said before
    asked.narrator.announce(configuration, plan, cost)
    return _Settled(
        configuration=configuration,
        manifest=manifest,
        spending=spending,
        masked=masked,
        plan=plan,
        cost=cost,
        outputs=outputs,
        unfinished=unfinished,
    )


def _shared(plan: Plan, asked: _Asked, configuration: Configuration) -> Plan:
    return on_processes(
        plan,
        asked.processes,
        sharded=asked.sharded,
        fingerprint=asked.owner.fingerprint is not None,
    )


def _audit(asked: _Asked, settled: _Settled) -> Findings | None:
    findings = None
    if asked.audit:
        _, part = parts_of(fresh_module(settled.configuration, settled.manifest, asked.entropy))
        spec = settled.manifest.architecture.trained_part()
        with asked.narrator.busy("attacking the trainer on made-up rows, before any row is read"):
            findings = audit_plan(settled.plan, spec, part, delta=settled.configuration.delta, entropy=asked.entropy)
            beside = audit_statistics(settled.spending, settled.configuration, entropy=asked.entropy)
        findings = replace(findings, probes=(*findings.probes, *beside))
        findings.require(epsilon_micro=settled.cost.epsilon_micro)
    asked.narrator.audited(findings)
    return findings


def _read_rows(asked: _Asked, settled: _Settled) -> _Rows:
    filled = ready(settled.configuration, settled.spending, folder=asked.folder, entropy=asked.entropy)
    configuration, manifest = filled.configuration, manifest_of(filled.configuration)
    asked.narrator.remarks(filled.remarks)
    examples = form_of(configuration).read_examples(configuration, folder=asked.folder)
    kept, held = hold_out(examples, fraction=Fraction(configuration.data.held_out), word=configuration.data.split)
    plan = on_network(settled.plan, configuration, kept)
    asked.narrator.rows(trained=len(kept), held_out=len(held))
    opening = asked.entropy(32)
    inputs, targets = model_space(manifest, kept)
    return _Rows(
        configuration=configuration,
        manifest=manifest,
        plan=plan,
        kept=kept,
        held=held,
        opening=opening,
        inputs=inputs,
        targets=targets,
    )


def _train(asked: _Asked, settled: _Settled, rows: _Rows) -> _Trained:
    configuration, manifest, groups = rows.configuration, rows.manifest, rows.kept.groups()
    module = fresh_module(configuration, manifest, asked.entropy)
    part, inputs = fixed_first(module, rows.inputs)
    others = _swept(asked, rows, inputs)
    if settled.spending.centering:
        population = configuration.data.public_population
        centre = settled.spending.centering.centre
        inputs = (centre(module, *inputs, population=population, entropy=asked.entropy),)
    own, people = configuration.model.module, () if groups is None else (groups,)
    plan, checkpoints = with_checkpoints(
        rows.plan,
        configuration,
        path=settled.unfinished,
        resume=asked.resume,
        identity=lambda: identity_of(
            *(repr(rows.plan).encode(), manifest_bytes(manifest), own.encode()),
            *asked.owner.identity,
            inputs=(*inputs, *people),
            targets=rows.targets,
        ),
    )
    loss = Loss.usual(manifest.classes)
    learner = own_module(own, part, inputs, loss=loss) if own else part
    mark = asked.owner.mark(manifest, module)
    public = _public_loss(configuration, manifest, module, learner, loss=loss, folder=asked.folder)
    with asked.narrator.progress(plan) as on_step:
        if public is not None:
            on_step = public.around(on_step, steps=plan.steps, told=asked.narrator.public_loss)
        if mark is not None and isinstance(plan, SgdPlan):
            on_step = mark.around(on_step, learner)
        executed = plan.train(learner, inputs, rows.targets, groups=groups, entropy=asked.entropy, on_step=on_step)
    if isinstance(plan, SgdPlan) and plan.chosen:
        asked.narrator.gradients(plan.chosen[-1])
    if own:
        transfer(learner, part)
    if mark is not None:
        asked.narrator.marked(mark.finish(part))
    return _Trained(
        module=module,
        part=part,
        inputs=inputs,
        plan=plan,
        executed=executed,
        others=others,
        mark=mark,
        checkpoints=checkpoints,
    )


def _measure(asked: _Asked, rows: _Rows, trained: _Trained) -> tuple[Quality, Quality]:
    """Of the private model, and of the same model without privacy."""
    configuration, manifest, plan = rows.configuration, rows.manifest, trained.plan
    quality = measure(manifest, trained.module, rows.held)
    if isinstance(plan, GapPlan):
        fresh = fresh_module(configuration, manifest, asked.entropy)
        compared = plan.train_openly(fresh, trained.inputs, rows.targets, entropy=asked.entropy)
    else:
        compared = train_plainly(manifest, trained.inputs, rows.targets, fixed=parts_of(trained.module)[0])
    plain = measure(manifest, compared, rows.held)
    asked.narrator.compare(quality, plain)
    return quality, plain


def _certified(
    asked: _Asked,
    settled: _Settled,
    rows: _Rows,
    trained: _Trained,
    *,
    weights: bytes,
    findings: Findings | None,
    quality: Quality,
) -> Certificate:
    certificate = certificate_of(
        rows.configuration,
        plan=trained.plan,
        cost=settled.cost,
        coordinates=sum(one.numel() for one in trained.part.parameters() if one.requires_grad),
        steps_executed=trained.executed,
        fresh=asked.entropy is random_bytes,
        commitment=commit(rows.kept, key=rows.opening),
        weights=weights,
        manifest=manifest_bytes(rows.manifest),
        issued_us=asked.clock(),
        measured=(quality.measured(epsilon_micro=settled.cost.epsilon_micro), *trained.others),
    )
    preprocessing = settled.spending.preprocessing(settled.masked)
    releases = certificate.releases if trained.mark is None else (*certificate.releases, trained.mark.release())
    audit = None if findings is None else findings.certified(code_digest=certificate.environment.code_digest)
    return msgspec.structs.replace(certificate, preprocessing=preprocessing, releases=releases, audit=audit)


def _publish(
    asked: _Asked,
    settled: _Settled,
    rows: _Rows,
    trained: _Trained,
    *,
    findings: Findings | None,
    quality: Quality,
    plain: Quality,
) -> Published:
    weights, outputs = weights_bytes(trained.module), settled.outputs
    certificate = _certified(asked, settled, rows, trained, weights=weights, findings=findings, quality=quality)
    bundle = write_bundle(
        asked.models_dir,
        key=asked.key,
        weights=weights,
        manifest=manifest_bytes(rows.manifest),
        certificate=certificate,
        card=card_of(rows.manifest, certificate, quality),
        replace=asked.replace,
        owner=asked.owner,
    )
    if trained.checkpoints is not None:
        trained.checkpoints.discard()
    if outputs.commitment_key is not None:
        write_private(outputs.commitment_key, rows.opening.hex() + "\n")
    if outputs.heldout_csv is not None:
        form_of(rows.configuration).write_heldout(outputs.heldout_csv, rows.held, rows.configuration)
    asked.narrator.published(bundle, outputs.heldout_csv)
    return Published(
        bundle=bundle,
        quality=quality,
        quality_without_privacy=plain,
        rows_held_out=len(rows.held),
        heldout_csv=outputs.heldout_csv,
    )


def _swept(asked: _Asked, rows: _Rows, features: tuple[torch.Tensor, ...]) -> tuple[Measured, ...]:
    """What the runs of a sweep came to, if one was asked for. features: of the part that is trained, not centred."""
    if asked.sweep is None:
        return ()

    def again(other: Configuration) -> Measured:
        return _thrown_away(
            other, rows, features, entropy=asked.entropy, processes=asked.processes, sharded=asked.sharded
        )

    return asked.sweep.measured(rows.configuration, again, told=asked.narrator.swept)


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
    rows: _Rows,
    features: tuple[torch.Tensor, ...],
    *,
    entropy: Entropy,
    processes: int,
    sharded: bool,
) -> Measured:
    """One run of a sweep, measured on the same held-out rows."""
    manifest = rows.manifest
    spending, plan, cost = planned(configuration, manifest)
    plan = replace(plan, processes=processes, sharded=sharded) if isinstance(plan, SgdPlan) else plan
    plan = on_network(plan, configuration, rows.kept)
    module = fresh_module(configuration, manifest, entropy)
    _, part = parts_of(module)
    if spending.centering:
        population = configuration.data.public_population
        features = (spending.centering.centre(module, *features, population=population, entropy=entropy),)
    own = configuration.model.module
    learner = own_module(own, part, features, loss=Loss.usual(manifest.classes)) if own else part
    plan.train(learner, features, rows.targets, groups=rows.kept.groups(), entropy=entropy, on_step=lambda _step: None)
    if own:
        transfer(learner, part)
    return measure(manifest, module, rows.held).measured(epsilon_micro=cost.epsilon_micro)


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


def _require_sources(configuration: Configuration, asked: _Asked) -> None:
    """Raise ConfigurationError for a file of rows that is not there: said at once, not after the audit. Opens none."""
    for name in (configuration.data.source, configuration.data.public_rows):
        if name and not name.startswith("sklearn:") and not (asked.folder / name).exists():
            raise ConfigurationError(
                f"[data] there is no file {asked.folder / name}; name one relative to {asked.path.name}, where it lies"
            )


def _heldout_path(given: Path | None, configuration: Configuration, folder: Path) -> Path | None:
    """The path that was given, else the one in the configuration (relative to it), else none."""
    return given or (folder / configuration.data.heldout_csv if configuration.data.heldout_csv else None)
