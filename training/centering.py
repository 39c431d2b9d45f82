"""The private mean of a model's fixed features: one Gaussian release, which centres them.

Features of images point much the same way, and what they have in common takes up most of each clipped gradient without
telling classes apart. Their mean over the private examples costs little (Tramer & Boneh 2021 normalise privately, too):
each example's features, scaled to at most `norm` in L2, are added up; Gaussian noise of standard deviation `multiplier`
times `norm` is added to every coordinate; the sum is divided by the public population.

Trusts: that an example's features depend on that example alone. Never: divides by the number of private examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

import msgspec
import torch
from torch import nn

from sealgate.ambient import Entropy
from sealgate.certificate.accounting.account import Account, WithStatistics
from sealgate.certificate.accounting.statistics import statistic_cost
from sealgate.certificate.agreement import CENTRE
from sealgate.certificate.decimals import MICRO, decimal_text
from sealgate.certificate.schema import Preprocessing, Statistic
from sealgate.errors import CertificateError, ConfigurationError, DecodeError
from sealgate.toml_words import in_words
from secure_runtime.models.architectures import parts_of
from training.configuration import Configuration
from training.limits import EPSILON_MARGIN_MICRO, FIXED_ROWS
from training.randomness import Keystream


class CenterSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[center]`: the norm to which an example's features are scaled down, the noise in multiples of it, its delta."""

    norm: Decimal
    multiplier: Decimal
    delta: Decimal


@dataclass(frozen=True, kw_only=True)
class Centering:
    """The public constants of one private mean, and what it costs in millionths."""

    norm: float
    multiplier_micro: int
    delta: str
    epsilon_micro: int
    epsilon_replace_one_micro: int

    @classmethod
    def of(cls, section: dict[str, Any]) -> Self:
        """From a configuration's `[center]`; raises ConfigurationError."""
        try:
            found = msgspec.convert(section, CenterSection)
            delta = decimal_text(found.delta)
            multiplier = int(found.multiplier * MICRO)
            if not (found.norm > 0 and found.norm.is_finite() and multiplier == found.multiplier * MICRO):
                raise ConfigurationError("[center] norm must be above zero, multiplier have at most six decimals")
            once, twice = statistic_cost("gaussian", multiplier, delta)
        except msgspec.ValidationError as error:
            raise ConfigurationError(in_words(error, CenterSection, under=("center",))) from error
        except (DecodeError, CertificateError, OverflowError, ValueError) as error:
            raise ConfigurationError(f"[center]: {error}") from error
        return cls(
            norm=float(found.norm),
            multiplier_micro=multiplier,
            delta=delta,
            epsilon_micro=once + EPSILON_MARGIN_MICRO,
            epsilon_replace_one_micro=twice + EPSILON_MARGIN_MICRO,
        )

    def left(self, configuration: Configuration) -> Configuration:
        """What the mechanism may spend: epsilon and delta less the centre's; raises ConfigurationError."""
        privacy = configuration.privacy
        delta = privacy.delta - Decimal(self.delta)
        epsilon = None if privacy.epsilon is None else privacy.epsilon - Decimal(self.epsilon_micro) / MICRO
        if delta <= 0 or (epsilon is not None and epsilon <= 0):
            raise ConfigurationError("[center] spends all of epsilon or delta; raise its multiplier or lower its delta")
        return msgspec.structs.replace(
            configuration, privacy=msgspec.structs.replace(privacy, delta=delta, epsilon=epsilon)
        )

    def account(self, mechanism: Account, *, delta: str) -> Account:
        """The mechanism's account and the centre's, at their common delta."""
        return WithStatistics(
            account=mechanism,
            statistics_micro=self.epsilon_micro,
            statistics_replace_one_micro=self.epsilon_replace_one_micro,
            delta=delta,
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """What the certificate says of it."""
        part = Statistic(
            what=CENTRE,
            mechanism="gaussian",
            multiplier_micro=self.multiplier_micro,
            epsilon_micro=self.epsilon_micro,
            epsilon_replace_one_micro=self.epsilon_replace_one_micro,
            delta=self.delta,
        )
        return Preprocessing(
            statistics="dp",
            epsilon_micro=self.epsilon_micro,
            epsilon_replace_one_micro=self.epsilon_replace_one_micro,
            delta=self.delta,
            parts=(part,),
        )

    def centre(self, module: nn.Module, features: torch.Tensor, *, population: int, entropy: Entropy) -> torch.Tensor:
        """Give the fixed part of a module its centre, once; returns the features as they are from now on."""
        fixed, _ = parts_of(module)
        center = None if fixed is None else getattr(fixed, "center", None)
        if center is None:
            raise ConfigurationError("[center] belongs to models with fixed features and [architecture] centred = true")
        with torch.no_grad():
            center.copy_(self.mean(features, population=population, stream=Keystream(entropy)))
            centred: torch.Tensor = features - center.to(features.dtype)
            return centred

    def mean(self, features: torch.Tensor, *, population: int, stream: Keystream) -> torch.Tensor:
        """The private mean: [n, d] -> float64 [d]. Rows that are not finite count as zero."""
        total = torch.zeros(features.shape[1], dtype=torch.float64)
        for part in torch.split(features, FIXED_ROWS):
            rows = part.to(torch.float64)
            norms = torch.linalg.vector_norm(rows, dim=1)
            finite = torch.isfinite(norms)
            factors = (self.norm / norms[finite].clamp_min(1e-300)).clamp_max(1.0)
            total += factors @ rows[finite]
        noise = torch.from_numpy(stream.gaussian(len(total))) * (self.multiplier_micro / MICRO * self.norm)
        return (total + noise) / population


def centering_of(configuration: Configuration) -> Centering | None:
    """The centring that a configuration asks for, if it does; raises ConfigurationError."""
    if bool(configuration.center) != bool(configuration.architecture.get("centred", False)):
        raise ConfigurationError("[center] and [architecture] centred = true belong together")
    if configuration.center and configuration.data.person:
        raise ConfigurationError(
            "[center] bounds what one row adds to the mean, not what a person with several rows does"
        )
    return Centering.of(configuration.center) if configuration.center else None
