"""ScatterNet: scattering features, normalised per image, and one linear layer, the only part that is trained."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from sealgate.certificate.architectures.scatternet import ScatterNetSpec
from secure_runtime.models.families.layers import linear
from secure_runtime.models.families.scattering import Scattering

_MILLIONTH = 1e-6


class ScatteringFeatures(nn.Module):
    """Features of an image alone: nothing to train, so that training may compute them once for each image."""

    def __init__(self, spec: ScatterNetSpec) -> None:
        super().__init__()
        self.scattering = Scattering(height=spec.height, width=spec.width, scales=spec.scales, angles=spec.angles)
        self.mirrored = spec.mirrored
        self.rooted = spec.rooted
        self.groups = spec.norm_groups
        self.epsilon = spec.norm_epsilon_micro * _MILLIONTH
        self.shared = spec.shared_percent / 100
        self.center = nn.Parameter(torch.zeros(spec.feature_count), requires_grad=False) if spec.centred else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [n, channels, height, width] -> [n, features]
        planes: torch.Tensor = self.scattering(images)  # [n, channels * paths, h, w]
        if self.mirrored:
            planes = (planes + self.scattering(images.flip(-1))) / 2
        if self.rooted:
            planes = planes.clamp_min(0).sqrt()
        if self.groups:
            planes = functional.group_norm(planes, self.groups, eps=self.epsilon)
        if self.shared:
            planes = planes - self.shared * planes.mean(dim=1, keepdim=True)
        features = planes.flatten(1)
        return features if self.center is None else features - self.center


class ScatterNet(nn.Module):
    """A linear layer over fixed features."""

    def __init__(self, spec: ScatterNetSpec) -> None:
        super().__init__()
        self.features = ScatteringFeatures(spec)
        self.head = linear(spec.feature_count, spec.logit_count)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [n, channels, height, width] -> [n, logits]
        logits: torch.Tensor = self.head(self.features(images))
        return logits
