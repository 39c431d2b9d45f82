"""Images from every source become the same examples; what is wrong is said with image and pixel."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from sealgate.certificate.architectures import ScatterNetSpec
from sealgate.errors import ConfigurationError
from training.configuration import load_configuration
from training.forms import form_of
from training.idx import is_idx, read_idx
from training.manifests import manifest_of

CONFIG = """
[model]
name = "digits"
version = "1.0.0"
description = "handwritten digits"
family = "scatternet"
sensitivity = "personal"
purposes = ["research"]

[architecture]
scales = 1
norm_groups = 9

[data]
kind = "image"
source = "{source}"
target = "target"
classes = {{ 0 = "zero", 1 = "one", 2 = "two" }}
public_population = 100

[image]
{image}

[privacy]
sigma = 5
delta = 1e-4
rate = "1/2"
steps = 4
clip_norm = 0.1

[optimizer]
learning_rate = 1

[selection]
how = "fixed"
note = "round values"
"""
SIZES = "height = 3\nwidth = 4"


def configured(folder: Path, source: str, image: str = SIZES):
    path = folder / "config.toml"
    path.write_text(CONFIG.format(source=source, image=image))
    return load_configuration(path)


def read(folder: Path, source: str, image: str = SIZES):
    configuration = configured(folder, source, image)
    return form_of(configuration).read_examples(configuration, folder=folder)


def idx(values: np.ndarray) -> bytes:
    return b"\x00\x00\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (6, 3, 4), dtype=np.uint8)


TARGET = np.array([0, 1, 2, 2, 1, 0])


def test_every_source_gives_the_same_examples(tmp_path, images):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(TARGET.astype(np.uint8))))
    np.savez(tmp_path / "flat.npz", images=images, target=TARGET)
    np.savez(tmp_path / "first.npz", images=images[:, None].astype(np.float64), target=TARGET)
    np.savez(tmp_path / "last.npz", images=images[..., None], target=TARGET)
    names = [f"p{index}" for index in range(12)]
    lines = [",".join(["target", *names])]
    lines += [",".join(map(str, [label, *one.ravel()])) for label, one in zip(TARGET, images, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    labels = SIZES + '\nlabels = "train-labels-idx1-ubyte.gz"'
    for source, section in (
        ("train-images-idx3-ubyte", labels),
        ("train-images-idx3-ubyte.gz", labels),
        ("flat.npz", SIZES),
        ("first.npz", SIZES),
        ("last.npz", SIZES + '\nlayout = "channels-last"'),
        ("table.csv", SIZES + '\npattern = "p{index}"'),
    ):
        found = read(tmp_path, source, section)
        assert found.inputs[0].dtype == np.uint8
        np.testing.assert_array_equal(found.inputs[0], images[:, None])
        np.testing.assert_array_equal(found.target, TARGET)


def test_channels_and_names_of_pixels(tmp_path):
    values = np.random.default_rng(2).normal(size=(3, 2, 2, 3)).astype(np.float32)  # channels last
    np.savez(tmp_path / "last.npz", images=values, target=np.arange(3))
    colour = 'height = 2\nwidth = 2\nchannels = 3\ndatatype = "FP32"\nlow = -3\nhigh = 3\n'
    found = read(tmp_path, "last.npz", colour + 'layout = "channels-last"').inputs[0]
    np.testing.assert_array_equal(found, values.transpose(0, 3, 1, 2))
    names = {f"{c}/{r}/{k}": values[:, r, k, c] for c in range(3) for r in range(2) for k in range(2)}
    np.savez(tmp_path / "columns.npz", target=np.arange(3), **names)
    named = read(tmp_path, "columns.npz", colour + 'pattern = "{channel}/{row}/{column}"').inputs[0]
    np.testing.assert_array_equal(named, found)


def test_scikit_learns_digits(tmp_path):
    section = 'height = 8\nwidth = 8\nhigh = 16\npattern = "pixel_{row}_{column}"'
    classes = ", ".join(f'{digit} = "{digit}"' for digit in range(10))
    text = CONFIG.replace('0 = "zero", 1 = "one", 2 = "two"', classes)
    (tmp_path / "config.toml").write_text(text.format(source="sklearn:digits", image=section))
    configuration = load_configuration(tmp_path / "config.toml")
    examples = form_of(configuration).read_examples(configuration, folder=tmp_path)
    np.testing.assert_array_equal(examples.inputs[0][:, 0], load_digits().images)
    (declared,) = manifest_of(configuration).inputs
    assert (declared.datatype, declared.shape) == ("UINT8", (-1, 1, 8, 8))
    content = declared.content
    assert (content.low, content.high, content.center, content.scale) == ("0", "16", "0", "16")
    assert isinstance(manifest_of(configuration).architecture, ScatterNetSpec)


def test_held_out_images_can_be_read_again(tmp_path, images):
    np.savez(tmp_path / "flat.npz", images=images, target=TARGET)
    configuration = configured(tmp_path, "flat.npz")
    examples = form_of(configuration).read_examples(configuration, folder=tmp_path)
    form_of(configuration).write_heldout(tmp_path / "held.csv", examples, configuration)
    text = (tmp_path / "held.csv").read_text()
    for number, name in enumerate(("zero", "one", "two")):
        text = text.replace(name, str(number))
    (tmp_path / "held.csv").write_text(text)
    again = read(tmp_path, "held.csv", SIZES + '\npattern = "pixel_{channel}_{row}_{column}"')
    np.testing.assert_array_equal(again.inputs[0], examples.inputs[0])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("height = 3", "width"),
        (SIZES + "\ndepth = 2", "depth"),
        ("height = 0\nwidth = 4", "above zero"),
        (SIZES + '\ndatatype = "INT8"', "UINT8, FP32"),
        (SIZES + '\nlayout = "sideways"', "channels-first"),
        (SIZES + "\nlow = 255", "below high"),
        (SIZES + "\nscale = 0", "scale"),
        (SIZES + "\nhigh = 1e99", "digits"),
        (SIZES + '\npattern = "p{row}"', "{index}"),
        (SIZES + '\nchannels = 3\npattern = "{row}{column}"', "{channel}"),
        (SIZES + '\nlabels = "x-ubyte"', "IDX"),
    ],
)
def test_a_section_that_is_wrong(tmp_path, image, words):
    with pytest.raises(ConfigurationError, match=r"\[image\]") as caught:
        manifest_of(configured(tmp_path, "flat.npz", image))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x[:, :2], r"shape \[1, 2, 4\].*\[1, 3, 4\]"),
        (lambda x: x.astype(float) + 0.5, r"example 1, place \[0, 0, 0\]: no whole number"),
        (lambda x: np.where(np.arange(6)[:, None, None] == 4, 256, x.astype(int)), "example 5, place"),
        (lambda x: np.where(np.arange(6)[:, None, None] == 2, np.nan, x), "example 3, place .* finite"),
        (lambda x: x.astype(str), "numbers"),
    ],
)
def test_pixels_that_are_wrong(tmp_path, images, spoil, words):
    np.savez(tmp_path / "flat.npz", images=spoil(images), target=TARGET)
    with pytest.raises(ConfigurationError, match=words):
        read(tmp_path, "flat.npz")


def test_files_of_classes_that_do_not_fit(tmp_path, images):
    (tmp_path / "i.idx").write_bytes(idx(images))
    (tmp_path / "l.idx").write_bytes(idx(TARGET[:5].astype(np.uint8)))
    with pytest.raises(ConfigurationError, match="one class for each of the 6 images"):
        read(tmp_path, "i.idx", SIZES + '\nlabels = "l.idx"')
    with pytest.raises(ConfigurationError, match=r"\[image\] labels"):
        read(tmp_path, "i.idx")


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple),
    packed=st.booleans(),
    cut=st.integers(1, 12),
    more=st.binary(min_size=1, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_idx_is_read_whole_or_refused(tmp_path_factory, shape, packed, cut, more):
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path_factory.mktemp("idx") / "x.idx"

    def write(data: bytes) -> None:
        path.write_bytes(gzip.compress(data) if packed else data)

    write(idx(values))
    np.testing.assert_array_equal(read_idx(path), values)
    for wrong in (idx(values)[:-cut], idx(values) + more, b"\x00\x00\x0d" + idx(values)[3:], b"\x00\x00\x08\x05"):
        write(wrong)
        with pytest.raises(ConfigurationError):
            read_idx(path)


def test_idx_files_of_the_wrong_kind(tmp_path):
    path = tmp_path / "x.idx"
    path.write_bytes(b"\x00\x00\x08\x03" + b"\xff" * 12)
    with pytest.raises(ConfigurationError, match="announces"):
        read_idx(path)
    path.write_bytes(gzip.compress(idx(np.zeros((50, 50), np.uint8)))[:-12])
    with pytest.raises(ConfigurationError, match="damaged"):
        read_idx(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_idx(tmp_path / "none.idx")
    assert is_idx("t10k-labels-idx1-ubyte.gz")
    assert not is_idx("images.npz")
