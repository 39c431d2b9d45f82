"""Every reason for which a bundle is refused: the stable code (also the record's reason) and what it means.

`CertificateError` is the one exception of this package; its `code` is always a key of `REFUSALS`.
"""

from __future__ import annotations

from sealgate.errors import CertificateError

REFUSALS: dict[str, str] = {
    # The directory
    "bundle-unreadable": "the bundle directory or a file in it cannot be read",
    "pickle-in-bundle": "a file is, or is named like, pickled Python: it could run code when loaded",
    "unexpected-file": "the bundle holds something besides its files, or its weights twice",
    "missing-file": "one of its files is missing",
    "not-a-plain-file": "an entry is a symbolic link, directory or device",
    "file-too-large": "a file is larger than the limit of its kind",
    # Encrypted weights
    "key-envelope": "model.key is not in the one accepted form, or is about other weights",
    "weights-locked": "the weights are encrypted, and no key at hand opens model.key",
    "weights-sealed": "the encrypted weights were cut off, changed, reordered or mixed with others",
    "model-signature": "model.sig is not the publisher's signature over these files",
    "model-signature-missing": "the deployment demands model.sig, and there is none, or no key to check it with",
    "encryption-missing": "the deployment demands encrypted weights, and these are not",
    # Signatures and digests
    "envelope-malformed": "a DSSE envelope is not in the one accepted form",
    "publisher-unknown": "signed by a key that publishers.toml does not name",
    "publisher-mismatch": "certificate and bundle are signed by different publishers",
    "bundle-signature": "the signature over the bundle does not hold",
    "certificate-signature": "the signature over the certificate does not hold",
    "statement-malformed": "a signed statement is not the in-toto statement it should be",
    "statement-subject": "a signed statement does not name exactly the files it must name",
    "file-digest": "a file is not the one that was signed",
    "manifest-digest": "the manifest is not the one that was signed",
    "weights-digest": "the weights are not the ones that were signed, or their frozen part is not the public one",
    "certificate-digest": "the certificate is not the one that the bundle was signed with",
    "derivation": "the bundle says that it was made from another model, and does not fit that one's certificate",
    "composition": "a pipeline's certificate is not the composition of its members', or they cannot be composed",
    "wiring": "the members of a pipeline do not fit each other, or what the pipeline says of itself",
    # Contents
    "manifest-malformed": "the manifest is not canonical JSON of the known shape",
    "manifest-inconsistent": "the manifest contradicts itself or the certificate",
    "weights-header": "the safetensors header is not in the strict form",
    "weights-shape": "the tensors are not those of the declared architecture",
    "certificate-malformed": "the certificate is not canonical JSON of the known shape",
    # The privacy claim
    "mechanism": "the mechanism, unit or adjacency is not one that this verifier can recompute, or cannot "
    "have made this model",
    "sampler": "the sampler is not the one that the accounting assumes",
    "sampler-constants": "a sampling constant depends on the private data",
    "fixed-seed": "noise or sampling did not come from fresh operating-system randomness",
    "serving-leaks": "the served model reads the private graph without noise on what it reads",
    "private-statistics": "preprocessing used statistics of the private data outside the budget",
    "selection-unaccounted": "hyper-parameters were chosen on private data without accounting",
    "steps": "more steps were executed than declared",
    "delta": "delta is not below one over the public population",
    "accountant": "epsilon comes from an accountant that is not accepted",
    "accountants-disagree": "the second accountant's figure does not fit the first",
    "audit-contradicts": "the empirical audit found more leakage than the claim allows, or was one of other code "
    "than trained the model",
    "audit-missing": "the deployment demands an audit of the training, and the certificate states none",
    "parameters-out-of-range": "a privacy parameter lies outside what can be recomputed",
    "epsilon-out-of-range": "epsilon is too large to mean anything",
    "epsilon-mismatch": "the stated epsilon is below the recomputed one",
}


def refusal(code: str, message: str) -> CertificateError:
    """The error for `code`. Raises KeyError for a code that is not in the table: no undocumented reasons."""
    REFUSALS[code]
    return CertificateError(message, code=code)


def refused_for(code: str) -> str:
    """What a code means, for people; nothing for one that is not a bundle's."""
    return REFUSALS.get(code, "")
