"""The scattering transform: the values of Kymatio 0.3.0, the definition written out, and what must hold of any."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sealgate.certificate.architectures import ScatterNetSpec
from sealgate.limits import WORK_AT_ONCE
from secure_runtime.models.families.scattering import PART_ROWS, Scattering
from secure_runtime.models.families.scatternet import ScatterNet

VECTORS = Path(__file__).with_name("kymatio_0_3_0.npz")  # computed by Kymatio (BSD-3-Clause) in NumPy, kept as float32
KYMATIO_PI = 3.1415  # in the norm of each of its filters


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_the_values_of_kymatio(case):
    with np.load(VECTORS) as vectors:
        images, coefficients = torch.from_numpy(vectors[f"{case}_images"]), vectors[f"{case}_coefficients"]
        scales, angles = vectors[f"{case}_scales_angles"].tolist()
    transform = Scattering(height=images.shape[1], width=images.shape[2], scales=scales, angles=angles)
    found = transform(images[:, None]).numpy()
    filters = [1] + [2] * (scales * angles) + [3] * (found.shape[1] - 1 - scales * angles)  # each path's
    ours = found * (math.pi / KYMATIO_PI) ** np.array(filters)[:, None, None]
    assert ours.shape == coefficients.shape
    np.testing.assert_allclose(ours, coefficients, atol=3e-7)
    assert np.abs(coefficients).max() > 0.1


def test_the_definition_written_out():
    """One path of order two at one place, by sums over the plane instead of transforms."""
    scales, angles, side = 2, 4, 16
    image = torch.from_numpy(np.random.default_rng(2).random((side, side)))
    found = Scattering(height=side, width=side, scales=scales, angles=angles)(image[None, None])[0]
    grid = side + 8
    plane = np.pad(image.numpy(), 4, mode="reflect")
    u, v = np.mgrid[-60:61, -60:61]

    def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        wrapped = np.zeros((grid, grid), dtype=complex)
        np.add.at(wrapped, (u % grid, v % grid), kernel)
        return sum(
            wrapped[down, right] * np.roll(x, (down, right), axis=(0, 1))
            for down, right in itertools.product(range(grid), repeat=2)
        )

    def psi(scale: int, index: int) -> np.ndarray:
        width, turn = 0.8 * 2**scale, (angles - angles // 2 - 1 - index) * math.pi / angles
        along, across = u * math.cos(turn) + v * math.sin(turn), v * math.cos(turn) - u * math.sin(turn)
        gauss = np.exp(-(along**2 + (4 / angles * across) ** 2) / 2 / width**2) * 4 / angles / (2 * math.pi * width**2)
        wave = gauss * np.exp(1j * along * 3 * math.pi / 4 / 2**scale)
        return wave - wave.sum() / gauss.sum() * gauss

    phi = np.exp(-(u**2 + v**2) / 2 / 1.6**2) / (2 * math.pi * 1.6**2)
    first = np.abs(convolved(plane, psi(0, 3)))
    order_one = convolved(first, phi).real[4:-4:4, 4:-4:4]
    np.testing.assert_allclose(found[1 + 3].numpy(), order_one, atol=1e-9)
    second = np.abs(convolved(first, psi(1, 2)))
    order_two = convolved(second, phi).real[4:-4:4, 4:-4:4]
    # Subsampling between the layers folds what little lies beyond the coarser grid's band: close, and no other path is.
    distances = np.abs(found[1 + 8 :].numpy() - order_two).mean(axis=(1, 2))
    assert distances.argmin() == 3 * 4 + 2
    assert distances.min() < 0.03 * order_two.mean()


@given(
    height=st.integers(5, 40),
    width=st.integers(5, 40),
    scales=st.integers(1, 2),
    angles=st.integers(1, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_shapes_scaling_and_flat_images(height, width, scales, angles, seed):
    transform = Scattering(height=height, width=width, scales=scales, angles=angles)
    images = torch.from_numpy(np.random.default_rng(seed).random((2, 3, height, width)))
    paths = 1 + scales * angles + scales * (scales - 1) // 2 * angles**2  # of orders 0, 1 and 2
    found = transform(images)
    assert found.shape == (2, 3 * paths, height >> scales, width >> scales)
    assert not list(transform.state_dict())
    torch.testing.assert_close(transform(3 * images), 3 * found)  # moduli and averages scale
    torch.testing.assert_close(found[1, paths : 2 * paths], transform(images[1:, 1:2])[0])  # planes do not mix
    flat = transform(torch.full((1, 1, height, width), 0.7, dtype=torch.float64))[0]
    torch.testing.assert_close(flat[0], torch.full_like(flat[0], 0.7), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat[1:], torch.zeros_like(flat[1:]), atol=1e-9, rtol=0)


def test_an_image_does_not_depend_on_others_nor_on_parts():
    transform = Scattering(height=12, width=12, scales=2, angles=4)
    images = torch.from_numpy(np.random.default_rng(1).random((PART_ROWS + 3, 1, 12, 12)))
    together = transform(images)
    for row in (0, PART_ROWS - 1, PART_ROWS, PART_ROWS + 2):
        torch.testing.assert_close(transform(images[row : row + 1])[0], together[row], atol=1e-15, rtol=0)
    single = transform.float()(images.float())
    torch.testing.assert_close(single.double(), together, atol=1e-6, rtol=0)


def test_a_turned_wave_answers_at_its_angle():
    """A plane wave across the image excites the wavelet that points along it, and not the one across."""
    transform = Scattering(height=32, width=32, scales=2, angles=4)
    wave = torch.cos(torch.arange(32, dtype=torch.float64) * 3 * math.pi / 4)
    first = transform(wave[:, None].expand(32, 32)[None, None])[0, 1:5, 4, 4]  # the finest scale's four angles
    turned = transform(wave[None, :].expand(32, 32)[None, None])[0, 1:5, 4, 4]
    assert first.argmax() == 1  # direction 0: down the image
    assert turned.argmax() == 3  # direction - pi / 2
    assert first[3] < 0.05 * first[1]


@pytest.mark.parametrize("groups", [0, 5, 25])
def test_features_are_normalised_in_groups_and_even_under_a_mirror(groups):
    spec = ScatterNetSpec(
        channels=1, height=12, width=12, angles=4, classes=3, norm_groups=groups, mirrored=True, rooted=True
    )
    assert list(spec.refusals()) == (
        ["norm_groups must divide its 25 scattering planes, or be 0"] if groups == 3 else []
    )
    if groups == 3:
        return
    network = ScatterNet(spec).double()
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == spec.tensors()
    images = torch.from_numpy(np.random.default_rng(5).random((4, 1, 12, 12)))
    features = network.features(images)
    assert features.shape == (4, spec.feature_count)
    torch.testing.assert_close(network.features(images.flip(-1)), features)
    plain = ((network.features.scattering(images) + network.features.scattering(images.flip(-1))) / 2).clamp_min(0)
    if groups:
        rooted = plain.sqrt().numpy().reshape(4, groups, -1)
        variance = rooted.var(axis=2, keepdims=True)
        wanted = (rooted - rooted.mean(axis=2, keepdims=True)) / np.sqrt(variance + 1e-5)
        np.testing.assert_allclose(features.numpy(), wanted.reshape(4, -1), atol=1e-9)
    else:
        np.testing.assert_allclose(features.numpy(), plain.sqrt().numpy().reshape(4, -1), atol=1e-12)


class _Multiplications(TorchDispatchMode):
    """Counts those of the operations that torch really carries out."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        match func.overloadpacket.__name__:
            case "_fft_r2c" | "_fft_c2c":
                self.counted += 2 * found.numel() * math.log2(math.prod(found.shape[-2:]))
            case "mm" | "bmm":
                self.counted += found.numel() * args[0].shape[-1]
            case "addmm":
                self.counted += found.numel() * args[1].shape[-1]
            case "mul" if found.is_complex():  # by a real filter
                self.counted += 2 * found.numel()
            case "pow":
                self.counted += found.numel()
        return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scales": 1, "angles": 3, "norm_groups": 0},
        {"channels": 3, "width": 40, "mirrored": True},
        {"height": 64, "width": 48, "scales": 4, "angles": 4, "norm_groups": 0},
    ],
)
def test_the_work_of_a_row_is_what_is_carried_out(changes):
    spec = ScatterNetSpec(classes=10, **({"channels": 1, "height": 28, "width": 28} | changes))
    assert not list(spec.refusals())
    model = ScatterNet(spec).eval()
    model.float()
    with torch.no_grad(), _Multiplications() as made:
        model(torch.rand(1, spec.channels, spec.height, spec.width))
    assert spec.row_work() == pytest.approx(made.counted, rel=0.01)
    assert spec.row_work() > 10 * spec.weight_count(), "most of it is the transform's"


def test_no_transform_that_fits_is_too_much_work():
    """The bound on sizes is narrower: counting the transform refuses nothing that was served before."""
    works = []
    for scales, angles, channels in itertools.product(range(1, 6), (1, 8, 16), (1, 3, 16)):
        for blocks in range(1, 200):
            side = blocks << scales
            spec = ScatterNetSpec(
                classes=10, channels=channels, height=side, width=side, scales=scales, angles=angles, norm_groups=0,
                mirrored=True,
            )  # fmt: skip
            if not list(spec.size_refusals()):
                works.append(spec.row_work())
    assert len(works) > 100
    assert max(works) <= WORK_AT_ONCE
