"""From a trained module to a signed bundle on disk, all or nothing.

The bundle is verified exactly as a worker will verify it before it is in its place. The weights are exported from the
plain module, so their names carry no prefix of the training library; with a wrapping key they reach the disk encrypted
only. `bundle.sig` is a DSSE envelope over an in-toto statement that lists every file.

Trusts: the key files' owner. Never: overwrites a bundle unless told to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import save
from torch import nn

from sealgate.certificate.bundle import VerifiedBundle, verify_bundle
from sealgate.certificate.encryption import encrypted_files
from sealgate.certificate.files import MODEL_SIGNATURE, WEIGHTS
from sealgate.certificate.model_signature import sign_model
from sealgate.certificate.placing import place_bundle
from sealgate.certificate.publishers import publishers_of
from sealgate.certificate.publishing import digests_of, load_signing_key, signed_files
from sealgate.certificate.schema import Certificate
from sealgate.certificate.wrapping_keys import KeyRing
from sealgate.errors import CertificateError, ConfigurationError
from training.errors import TrainingError
from training.owner import NOTHING, Owner

__all__ = ["load_signing_key", "require_free", "weights_bytes", "write_bundle"]


def weights_bytes(module: nn.Module) -> bytes:
    """The module's parameters as a safetensors file, FP32."""
    tensors = {name: value.detach().to(torch.float32).contiguous() for name, value in module.named_parameters()}
    return bytes(save(tensors))


def require_free(target: Path, *, replace: bool) -> None:
    """Raise ConfigurationError if a bundle stands there and may not be replaced. Asked before training, too."""
    if target.exists() and not replace:
        raise ConfigurationError(
            f"{target} exists; say --replace, or --out another folder and put versions side by side, as "
            f"{target}/VERSION"
        )


def write_bundle(
    models_dir: Path,
    *,
    key: Ed25519PrivateKey,
    weights: bytes,
    manifest: bytes,
    certificate: Certificate,
    card: str,
    replace: bool,
    owner: Owner = NOTHING,
) -> VerifiedBundle:
    """Sign, write, verify, and move into place as `models_dir/NAME`; returns the verified bundle.

    `owner` says whether the weights are encrypted, and whether there is a `model.sig`.
    """
    target = models_dir / certificate.model
    require_free(target, replace=replace)
    files = signed_files(key, weights=weights, manifest=manifest, certificate=certificate, card=card)
    digests = digests_of(files)
    if owner.model_signing is not None:
        files[MODEL_SIGNATURE] = sign_model(certificate.model, digests, owner.model_signing)
    pieces: dict[str, Iterable[bytes]] = {name: (data,) for name, data in files.items()}
    if owner.wrapping is not None:
        del pieces[WEIGHTS]
        pieces |= encrypted_files(weights, sha256=digests[WEIGHTS], key=owner.wrapping)
    ring = KeyRing(() if owner.wrapping is None else (owner.wrapping,))
    signing = {} if owner.model_signing is None else {"publisher": owner.model_signing.public_key()}
    publishers = publishers_of({"publisher": key.public_key()}, model_signing=signing)
    try:
        verified = place_bundle(
            target, pieces, check=lambda path: verify_bundle(path, publishers, data_key=ring.unwrap)
        )
    except CertificateError as error:
        raise TrainingError(f"the bundle would be refused when loaded: {error}", code="not-publishable") from error
    except OSError as error:
        raise ConfigurationError(f"the bundle cannot be written to {target}: {error.strerror}") from error
    return dataclasses.replace(verified, directory=target)
