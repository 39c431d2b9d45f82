"""Forges bundles: well-formed ones, and ones with one thing wrong, signed anew so that only that thing decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save

from sealgate.certificate.architectures import LogisticRegressionSpec
from sealgate.certificate.bundle import sha256_hex
from sealgate.certificate.dsse import sign_envelope
from sealgate.certificate.files import CARD, CERTIFICATE, MANIFEST, SIGNATURE, WEIGHTS
from sealgate.certificate.inputs import Column, InputTensor, TableContent
from sealgate.certificate.manifest import Manifest, OutputTensor
from sealgate.certificate.mechanisms import Clipping, DpSgd, Noise, Rate, Sampling
from sealgate.certificate.publishers import Publishers, publishers_of
from sealgate.certificate.recompute import FINE, Epsilon, GaussianSteps, recompute
from sealgate.certificate.schema import (
    Accounting,
    Certificate,
    Dataset,
    Environment,
    Initialisation,
    Preprocessing,
    Release,
    Selection,
)
from sealgate.certificate.statement import BundleFiles, bundle_statement, certificate_statement
from sealgate.protocol.canonical import canonical_json


@cache
def figures() -> Epsilon:
    return recompute(GaussianSteps(sigma_micro=4_000_000, rate=Fraction(1, 4), steps=60, delta="0.0001"))


def a_manifest() -> Manifest:
    return Manifest(
        schema=1,
        name="toy",
        version="1.0.0",
        description="three columns, two classes",
        architecture=LogisticRegressionSpec(inputs=3, classes=2),
        inputs=(
            InputTensor(
                name="features",
                datatype="FP32",
                shape=(-1, 3),
                content=TableContent(
                    columns=tuple(Column(name=n, low="-1", high="1", center="0", scale="1") for n in ("a", "b", "c"))
                ),
            ),
        ),
        outputs=(
            OutputTensor(name="label", datatype="INT64", shape=(-1,), role="label", labels=("no", "yes")),
            OutputTensor(name="scores", datatype="FP32", shape=(-1, 2), role="scores", labels=("no", "yes")),
        ),
        value_range=None,
        sensitivity="personal",
        purposes=("research",),
        units_per_row=1,
    )


def a_certificate() -> Certificate:
    return Certificate(
        schema=2,
        model="toy",
        version="1.0.0",
        issued="2026-01-02",
        mechanism=DpSgd(
            sampling=Sampling(
                sampler="poisson",
                rate=Rate(numerator=1, denominator=4),
                steps_declared=60,
                steps_executed=60,
                divisor_micro=250_000_000,
                constants="public",
            ),
            clipping=Clipping(kind="per-example-flat", norm_micro=1_000_000),
            noise=Noise(
                sigma_micro=4_000_000,
                source="os-csprng/aes-256-ctr",
                seed="fresh",
                transform="box-muller-4",
                arithmetic="float64-continuous",
            ),
        ),
        unit="example",
        adjacency="add-remove",
        epsilon_micro=figures().add_remove_micro,
        epsilon_replace_one_micro=figures().replace_one_micro,
        delta="0.0001",
        accounting=Accounting(
            accountant="dp-accounting-pld",
            version="0.6.0",
            discretisation=FINE,
            second_accountant="opacus-prv",
            second_version="1.6.0",
            second_epsilon_micro=figures().add_remove_micro + 5_000,
        ),
        preprocessing=Preprocessing(statistics="public-constants", epsilon_micro=0),
        initialisation=Initialisation(method="zeros", randomness="none", pretraining="none"),
        dataset=Dataset(
            commitment_kind="rfc9162-hmac-salted-rows",
            commitment="ab" * 32,
            public_population=1000,
            split="none",
        ),
        selection=Selection(how="fixed", epsilon_micro=0, note="a toy"),
        releases=(Release(what="accuracy", where="terminal", covered=False),),
        audit=None,
        environment=Environment(code_digest="cd" * 32, packages={"torch": "2.13.0"}, python="3.11.7"),
        weights_digest="",
        manifest_digest="",
        not_protected=("requests",),
    )


def some_weights() -> bytes:
    return bytes(
        save(
            {
                "layers.0.weight": np.array([[0.5, -1.0, 2.0]], dtype=np.float32),
                "layers.0.bias": np.array([0.25], dtype=np.float32),
            }
        )
    )


def _changed(part, path, value):
    name, *rest = path
    return msgspec.structs.replace(part, **{name: _changed(getattr(part, name), rest, value) if rest else value})


@dataclass
class Forge:
    """Writes a bundle whose signatures are right over whatever it is given."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    manifest: Manifest = field(default_factory=a_manifest)
    certificate: Certificate = field(default_factory=a_certificate)
    weights: bytes = field(default_factory=some_weights)
    certificate_key: Ed25519PrivateKey | None = None  # another signer of the certificate
    bundle_name: str = "toy"

    @property
    def publishers(self) -> Publishers:
        return publishers_of({"hospital": self.key.public_key()})

    def claim(self, **changes: object) -> Forge:
        """Change fields of the certificate; `mechanism__sampling__rate=...` reaches into parts."""
        for path, value in changes.items():
            self.certificate = _changed(self.certificate, path.split("__"), value)
        return self

    def files(self) -> dict[str, bytes]:
        files = {WEIGHTS: self.weights, MANIFEST: canonical_json(self.manifest), CARD: b"# toy\n"}
        digests = {name: sha256_hex(files[name]) for name in (WEIGHTS, MANIFEST)}
        certificate = msgspec.structs.replace(
            self.certificate, weights_digest=digests[WEIGHTS], manifest_digest=digests[MANIFEST]
        )
        files[CERTIFICATE] = sign_envelope(
            certificate_statement(certificate, digests), self.certificate_key or self.key
        )
        return self.sign(files)

    def sign(self, files: dict[str, bytes]) -> dict[str, bytes]:
        digests = {name: sha256_hex(data) for name, data in files.items() if name != SIGNATURE}
        names = BundleFiles(name=self.bundle_name, version=self.manifest.version)
        return {**files, SIGNATURE: sign_envelope(bundle_statement(names, digests), self.key)}

    def write(self, directory: Path, files: dict[str, bytes] | None = None) -> Path:
        directory.mkdir(parents=True)
        for name, data in (files or self.files()).items():
            (directory / name).write_bytes(data)
        return directory


@pytest.fixture
def forge() -> Forge:
    return Forge()


@pytest.fixture
def bundle(forge: Forge, tmp_path: Path) -> Path:
    return forge.write(tmp_path / "toy")


@pytest.fixture
def forge_type() -> Callable[..., Forge]:
    return Forge
