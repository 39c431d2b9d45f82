"""Aggregation perturbation as a plan (GAP: Sajadmanesh et al. 2023): a table of noisy aggregates, and a classifier.

    1  an encoder makes a vector of each node's features       edge level: they are public; node level: DP-SGD
    2  noisy sums over neighbours, hop by hop                   `aggregation`: what epsilon pays for at edge level
    3  a classifier reads each labelled node's row              edge level: labels are public; node level: DP-SGD

The table is the embedding of an embedding-bag whose one token is a node's number. So whoever serves the model has no
edge, and at node level nothing of a node that was not noised: its own vector is left out of its row there.

Trusts: a network within the declared bounds. Never: keeps the network, or what the encoder made of it, after training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.accounting.described import aggregation_releases
from sealgate.certificate.accounting.releases import GaussianReleases
from sealgate.certificate.architectures import MlpSpec
from sealgate.certificate.decimals import MICRO
from sealgate.certificate.gaussian import gaussian_mu
from sealgate.certificate.mechanisms import GapAggregation
from sealgate.certificate.recompute import GaussianSteps
from sealgate.certificate.schema import Search
from sealgate.errors import CertificateError, ConfigurationError
from sealgate.limits import MAX_SIGMA_MICRO, MIN_SIGMA_MICRO
from secure_runtime.models.families.embedding_bag import EmbeddingBag
from secure_runtime.models.families.linear import MLP
from training.accountant import calibrate
from training.errors import TrainingError
from training.initialisation import initialise
from training.limits import EPSILON_MARGIN_MICRO, OPEN_STEPS, SIGMA_GRID_MICRO
from training.losses import Loss
from training.mechanisms.aggregation import noisy_aggregates, normalised
from training.mechanisms.noises import gaussian_values, noise_part
from training.mechanisms.plan import OnStep
from training.mechanisms.sgd import SgdPlan
from training.randomness import Keystream

SERVING = "noised-aggregates"
STEPS_SHARE = 3
"""Node level: encoder and classifier each cost a third of epsilon by themselves; what composition leaves is noise's."""

Learn = Callable[[nn.Module, torch.Tensor, torch.Tensor], object]
"""Trains a module in place on rows [n, d] and targets [n]."""


@dataclass(frozen=True, eq=False)
class SeenNetwork:
    """What training sees: each node's scaled vector, float64 [nodes, F], and the edges, int64 [m, 2] counted from 0."""

    vectors: torch.Tensor
    edges: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class GapPlan:
    """The public constants, and the network once there is one (`on`)."""

    unit: str  # "edge" or "node"
    hops: int
    max_degree: int
    sigma_micro: int  # standard deviation, in the norm of a node's vector
    encoder: MlpSpec | None  # None: vectors are taken as they are
    own_vector: bool  # whether a row begins with the node's own: public features at edge level
    loss: Loss
    delta: str
    sum_norm_micro: int = 0  # 0: sums are not scaled down
    sgd: SgdPlan | None = None  # of encoder and classifier alike: node level
    network: SeenNetwork | None = field(default=None, repr=False)

    def on(self, network: SeenNetwork) -> GapPlan:
        """The same plan, with what it is about to aggregate over."""
        return replace(self, network=network)

    @property
    def account(self) -> GaussianReleases:
        """What it costs: of the very part that the certificate will have."""
        return aggregation_releases(
            self.part(coordinates=1, steps_executed=self.steps, fresh=True), unit=self.unit, delta=self.delta
        )

    @property
    def steps(self) -> int:
        """See Plan: of encoder and classifier, where they take private ones."""
        return 2 * self.sgd.steps if self.sgd else 1

    @property
    def audited(self) -> None:
        """See Plan: `training.auditing.networks` attacks the aggregates, and the steps beside them."""
        return None

    def part(self, *, coordinates: int, steps_executed: int, fresh: bool) -> GapAggregation:
        """See Plan."""
        sgd = self.sgd
        steps = sgd.part(coordinates=coordinates, steps_executed=sgd.steps, fresh=fresh) if sgd else None
        return GapAggregation(
            hops=self.hops,
            max_degree=self.max_degree,
            noise=noise_part(self.sigma_micro, fresh=fresh),
            encoder=steps,
            classifier=steps,
            serving=SERVING,
            sum_norm_micro=self.sum_norm_micro,
        )

    def search(self, *, fresh: bool) -> Search | None:
        """See Plan: nothing is tuned."""
        return None

    def aggregates(self, vectors: torch.Tensor, edges: torch.Tensor, *, entropy: Entropy) -> torch.Tensor:
        """The release: x1 to x(hops) side by side, of vectors [n, d] -> float64 [n, hops * d]."""
        stream, scale = Keystream(entropy), self.sigma_micro / MICRO

        def noise(count: int) -> torch.Tensor:
            return scale * gaussian_values(stream, count)

        return torch.cat(noisy_aggregates(vectors, edges, hops=self.hops, sum_norm=self.sum_norm, noise=noise), dim=1)

    @property
    def sum_norm(self) -> float:
        """What sums are scaled down to."""
        return self.sum_norm_micro / MICRO if self.sum_norm_micro else math.inf

    def train(
        self,
        module: nn.Module,
        inputs: tuple[torch.Tensor, ...],
        targets: torch.Tensor,
        *,
        groups: torch.Tensor | None,
        entropy: Entropy,
        on_step: OnStep,
    ) -> int:
        """See Plan. inputs: one tensor of nodes' numbers, int64 [n, 1], counted from 1."""
        done = 0

        def learn(part: nn.Module, rows: torch.Tensor, wanted: torch.Tensor) -> object:
            nonlocal done
            if self.sgd is None:
                return fit(part, rows, wanted, loss=self.loss)
            before = done
            done += self.sgd.train(
                part, (rows,), wanted, groups=None, entropy=entropy, on_step=lambda step: on_step(before + step)
            )
            return None

        self._make(
            module,
            inputs[0][:, 0] - 1,
            targets,
            learn=learn,
            release=lambda vectors, edges: self.aggregates(vectors, edges, entropy=entropy),
            entropy=entropy,
        )
        if self.sgd is None:
            done = 1
            on_step(1)
        return done

    def train_openly(
        self, module: nn.Module, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor, *, entropy: Entropy
    ) -> nn.Module:
        """The same model without any noise, to compare with: it must be thrown away."""

        def release(vectors: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
            found = noisy_aggregates(
                vectors,
                edges,
                hops=self.hops,
                sum_norm=self.sum_norm,
                noise=lambda count: torch.zeros(count, dtype=torch.float64),
            )
            return torch.cat(found, dim=1)

        def learn(part: nn.Module, rows: torch.Tensor, wanted: torch.Tensor) -> object:
            return fit(part, rows, wanted, loss=self.loss)

        nodes = inputs[0][:, 0] - 1
        self._make(module, nodes, targets, learn=learn, release=release, entropy=entropy)
        return module

    def _make(
        self,
        module: nn.Module,
        nodes: torch.Tensor,
        targets: torch.Tensor,
        *,
        learn: Learn,
        release: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        entropy: Entropy,
    ) -> None:
        if self.network is None or not isinstance(module, EmbeddingBag):
            raise TypeError("aggregation needs a network, and an embedding-bag to put its aggregates into")
        vectors = self.network.vectors
        if self.encoder is not None:
            encoder = MLP(self.encoder).double()
            initialise(encoder, entropy)
            learn(encoder, vectors[nodes], targets)
            with torch.no_grad():
                vectors = encoder.activation(encoder.layers[0](vectors))
        table = release(vectors, self.network.edges)
        if self.own_vector:
            table = torch.cat((normalised(vectors), table), dim=1)
        head = classifier(module)
        learn(head, table[nodes], targets)
        with torch.no_grad():
            module.embedding.weight.zero_()
            module.embedding.weight[1:] = table.to(module.embedding.weight.dtype)
        if not all(bool(torch.isfinite(one).all()) for one in module.parameters()):
            raise TrainingError("training diverged: lower the learning rate", code="diverged")


def classifier(module: EmbeddingBag) -> MLP:
    """The layers behind the embedding as a model of rows, sharing the weights."""
    widths = [layer.weight.shape[1] for layer in module.layers if isinstance(layer, nn.Linear)]
    head = MLP(MlpSpec(inputs=widths[0], hidden=tuple(widths[1:]), classes=0))
    head.layers, head.activation = module.layers, module.activation
    return head


def fit(module: nn.Module, rows: torch.Tensor, targets: torch.Tensor, *, loss: Loss) -> nn.Module:
    """Train in the open, on what is public or was noised: full batches, AdamW, a fixed number of steps."""
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01)
    for _ in range(OPEN_STEPS):
        gradients = torch.autograd.grad(loss.each(module(rows), targets).mean(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return module


def calibrated(plan: GapPlan, *, target_micro: int, sgd_of: Callable[[GaussianSteps], SgdPlan] | None) -> GapPlan:
    """The plan with the least noise whose stated epsilon is at most the target, to two per cent at node level; raises
    ConfigurationError.

    `sgd_of` makes the steps of node level from their account, whose rate and number `plan.sgd` gives.
    """
    target, delta = (target_micro - EPSILON_MARGIN_MICRO) / MICRO, float(plan.delta)
    mu_squared, less = gaussian_mu(target, delta) ** 2, 0.9995
    if plan.sgd is not None and sgd_of is not None:
        steps, less = plan.sgd.account, 0.99
        share_micro = target_micro // STEPS_SHARE
        share = calibrate(target_micro=share_micro, rate=steps.rate, steps=steps.steps, delta=plan.delta)
        plan = replace(plan, sgd=sgd_of(share))
        # Many sampled steps are nearly one Gaussian release (Dong, Roth and Su 2022): begin a little above.
        mu_squared = 1.03 * mu_squared - 2 * gaussian_mu(share_micro / MICRO, delta) ** 2
    one = replace(plan, sigma_micro=MICRO).account.mu_squared
    for _ in range(300):
        sigma_micro = math.ceil(math.sqrt(one / mu_squared) * MICRO / SIGMA_GRID_MICRO) * SIGMA_GRID_MICRO
        if sigma_micro > MAX_SIGMA_MICRO:
            break
        found = replace(plan, sigma_micro=max(sigma_micro, MIN_SIGMA_MICRO))
        try:
            if found.account.epsilon().add_remove_micro + EPSILON_MARGIN_MICRO <= target_micro:
                return found
        except CertificateError as error:
            if error.code != "epsilon-out-of-range":
                raise ConfigurationError(f"[privacy]: {error}") from error
        mu_squared *= less**2
    raise ConfigurationError("[privacy] no noise that a network's sums can be given makes this epsilon")
