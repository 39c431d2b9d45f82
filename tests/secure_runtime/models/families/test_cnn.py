"""The convolutional network: against plain sums, its declared tensors, and sizes that are refused before building."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.certificate.architectures import CnnSpec, DeclaredInputs, ScatterNetSpec
from sealgate.certificate.architectures.cnn import POOLINGS, Stage
from sealgate.errors import DecodeError
from secure_runtime.models.architectures import build
from secure_runtime.models.families.cnn import ConvolutionStage


def filled(spec: CnnSpec, seed: int = 1) -> torch.nn.Module:
    module, generator = build(spec).double(), np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(generator.normal(size=tuple(parameter.shape))))
    return module


def plainly(image: np.ndarray, spec: CnnSpec, weights: dict[str, np.ndarray]) -> np.ndarray:
    """One image's logits by loops: tanh, one stage with normalisation and max pooling."""
    (stage,) = spec.stages
    around = stage.kernel // 2
    grid = np.pad(image, ((0, 0), (around, around), (around, around)))
    side = stage.convolved(image.shape[1])
    planes = np.empty((stage.channels, side, side))
    for channel, down, right in itertools.product(range(stage.channels), range(side), range(side)):
        top, left = down * stage.stride, right * stage.stride
        patch = grid[:, top : top + stage.kernel, left : left + stage.kernel]
        kernel = weights["stages.0.convolution.weight"][channel]
        planes[channel, down, right] = (patch * kernel).sum() + weights["stages.0.convolution.bias"][channel]
    groups = planes.reshape(stage.norm_groups, -1)
    normal = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
    planes = normal.reshape(planes.shape) * weights["stages.0.norm.weight"][:, None, None]
    planes = np.tanh(planes + weights["stages.0.norm.bias"][:, None, None])
    kept = side // stage.pool * stage.pool
    pooled = planes[:, :kept, :kept].reshape(stage.channels, kept // stage.pool, stage.pool, -1, stage.pool).max((2, 4))
    return weights["layers.0.weight"] @ pooled.ravel() + weights["layers.0.bias"]


@pytest.mark.parametrize(("kernel", "stride", "pool"), [(3, 1, 1), (4, 2, 2), (5, 2, 1), (8, 3, 1), (1, 1, 3)])
def test_logits_are_those_of_a_plain_calculation(kernel, stride, pool):
    stage = Stage(channels=6, kernel=kernel, stride=stride, norm_groups=3, pool=pool)
    spec = CnnSpec(channels=2, height=9, width=9, stages=(stage,), activation="tanh", classes=4)
    module = filled(spec)
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    images = np.random.default_rng(3).normal(size=(3, 2, 9, 9))
    with torch.no_grad():
        found = module(torch.from_numpy(images)).numpy()
    for image, logits in zip(images, found, strict=True):
        np.testing.assert_allclose(logits, plainly(image, spec, weights), atol=1e-9)


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
@pytest.mark.parametrize("hidden", [(), (7,)])
@pytest.mark.parametrize("rows", [1, 3, 4, 40])
def test_a_processor_gives_the_same_logits_in_its_own_layout(pooling, hidden, rows, monkeypatch):
    stages = (Stage(channels=6, kernel=5, stride=2, pool=2), Stage(channels=33, kernel=3, stride=1, pool=1))
    spec = CnnSpec(channels=3, height=17, width=14, stages=stages, pooling=pooling, hidden=hidden, classes=4)
    module = filled(spec).float()
    images = torch.from_numpy(np.random.default_rng(3).normal(size=(rows, 3, 17, 14))).float()
    in_blocks, used = ConvolutionStage.in_blocks, []
    monkeypatch.setattr(
        ConvolutionStage, "in_blocks", lambda stage, planes: used.append(planes.layout) or in_blocks(stage, planes)
    )
    plain = module(images)  # with gradients
    assert used == []
    with torch.no_grad():
        found = module(images)
    assert found.is_contiguous()
    assert used == ([torch._mkldnn] * 2 if rows > 3 else [])
    torch.testing.assert_close(found, plain.detach(), rtol=1e-4, atol=1e-3)  # sums of hundreds of terms up to a hundred


@pytest.mark.parametrize(("norm_groups", "activation"), [(2, "relu"), (0, "tanh"), (0, "gelu")])
def test_what_has_no_such_layout_is_computed_as_it_is_written(norm_groups, activation, monkeypatch):
    stage = Stage(channels=6, kernel=3, stride=1, norm_groups=norm_groups, pool=2)
    spec = CnnSpec(channels=1, height=8, width=8, stages=(stage,), activation=activation, classes=3)
    module, images = filled(spec).float(), torch.ones(9, 1, 8, 8)
    monkeypatch.setattr(ConvolutionStage, "in_blocks", None)  # calling it would fail
    with torch.no_grad():
        assert torch.equal(module(images), module.requires_grad_()(images).detach())
        assert module.double()(images.double()).shape == (9, 3)  # float64 has none


@given(
    stages=st.lists(
        st.builds(
            Stage,
            channels=st.integers(1, 6),
            kernel=st.integers(1, 5),
            stride=st.integers(1, 3),
            norm_groups=st.integers(0, 3),
            pool=st.integers(1, 3),
        ),
        min_size=1,
        max_size=3,
    ),
    size=st.tuples(st.integers(1, 3), st.integers(1, 16), st.integers(1, 16)),
    hidden=st.lists(st.integers(1, 5), max_size=2),
    pooling=st.sampled_from(POOLINGS),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_not_refused_is_built_as_declared(stages, size, hidden, pooling):
    channels, height, width = size
    spec = CnnSpec(
        channels=channels,
        height=height,
        width=width,
        stages=tuple(stages),
        hidden=tuple(hidden),
        pooling=pooling,
        classes=3,
    )
    if list(spec.refusals()):
        return
    state = torch.get_rng_state()
    module = filled(spec)
    assert torch.equal(state, torch.get_rng_state())
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == spec.tensors()
    images = torch.from_numpy(np.random.default_rng(4).normal(size=(5, *size)))
    with torch.no_grad():
        together, alone = module(images), torch.cat([module(image[None]) for image in images])
    assert together.shape == (5, 3)
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=1e-10)


def test_a_new_module_is_all_zero_but_for_its_normalisations():
    spec = CnnSpec(channels=1, height=8, width=8, stages=(Stage(channels=4, norm_groups=2),), classes=2)
    for name, value in build(spec).state_dict().items():
        assert torch.equal(value, torch.full_like(value, 1.0 if name.endswith("norm.weight") else 0.0))


GOOD = {"channels": 1, "height": 28, "width": 28, "classes": 10}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"channels": 17}, "channels"),
        ({"height": 0}, "channels"),
        ({"stages": ()}, "stages"),
        ({"stages": (Stage(channels=1),) * 17}, "stages"),
        ({"stages": (Stage(channels=0),)}, "channels"),
        ({"stages": (Stage(channels=4, kernel=32),)}, "kernel"),
        ({"stages": (Stage(channels=4, stride=0),)}, "stride"),
        ({"stages": (Stage(channels=4, pool=0),)}, "pool"),
        ({"stages": (Stage(channels=4, norm_groups=3),)}, "norm_groups"),
        ({"stages": (Stage(channels=4, pool=29),)}, "leaves nothing"),
        ({"height": 1, "width": 1, "stages": (Stage(channels=4, norm_groups=4),)}, "single numbers"),
        ({"height": 2000, "width": 2000}, "too large"),
        ({"stages": (Stage(channels=1024, kernel=3),) * 16, "width": 16, "height": 16}, "too large"),
        ({"hidden": (20_000,)}, "hidden"),
        ({"activation": "step"}, "activation"),
        ({"pooling": "median"}, "pooling"),
        ({"classes": 1}, "classes"),
    ],
)
def test_sizes_that_are_refused(changes, reason):
    spec = CnnSpec(**{**GOOD, "stages": (Stage(channels=4),), **changes})
    assert reason in " ".join(spec.refusals())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scales": 0}, "scales"),
        ({"scales": 6}, "scales"),
        ({"angles": 17}, "angles"),
        ({"channels": 0}, "channels"),
        ({"height": 4}, "sides"),
        ({"height": 4000, "width": 4000}, "too large"),
        ({"norm_groups": 2}, "norm_groups"),
        ({"norm_groups": -1}, "norm_groups"),
        ({"height": 5, "width": 5, "norm_groups": 81}, "single numbers"),  # torch refuses one image, and takes two
        ({"norm_epsilon_micro": 0}, "norm_epsilon_micro"),
        ({"classes": 2000}, "classes"),
    ],
)
def test_scatternets_that_are_refused(changes, reason):
    assert reason in " ".join(ScatterNetSpec(**{**GOOD, **changes}).refusals())


def test_an_architecture_from_a_configuration():
    images = DeclaredInputs(shapes=((3, 32, 24),))
    spec = CnnSpec.declared({"stages": [{"channels": 8, "pool": 2}], "hidden": [16]}, inputs=images, classes=5)
    assert spec.stages == (Stage(channels=8, pool=2),)
    assert (spec.channels, spec.height, spec.width, spec.flat) == (3, 32, 24, 8 * 16 * 12)
    assert ScatterNetSpec.declared({"norm_groups": 81}, inputs=images, classes=5).feature_count == 3 * 81 * 8 * 6
    for options, words in (({"stages": [{"chanels": 8}]}, "chanels"), ({"stages": [], "height": 3}, "follows")):
        with pytest.raises(DecodeError, match=words):
            CnnSpec.declared(options, inputs=images, classes=5)
    with pytest.raises(DecodeError, match="images"):
        CnnSpec.declared({"stages": []}, inputs=DeclaredInputs(shapes=((30,),)), classes=5)
