"""card.md: a bundle for people, in one page of text that can be read without any tool.

The HTML page (`sealgate models report`) says the same with pictures. Trusts: the certificate that it describes. Never:
says a number that the certificate does not state or imply.
"""

from __future__ import annotations

from collections.abc import Iterator

from sealgate.certificate.accounting.curves import curve_of
from sealgate.certificate.accounting.described import account_of
from sealgate.certificate.attack_words import attack_lines, unit_word
from sealgate.certificate.audits import audit_words
from sealgate.certificate.decimals import micro_text
from sealgate.certificate.manifest import Manifest
from sealgate.certificate.measured import interval_text
from sealgate.certificate.mechanism_words import mechanism_lines
from sealgate.certificate.mechanisms import name_of
from sealgate.certificate.schema import Certificate
from training.measure import Quality


def card_of(manifest: Manifest, certificate: Certificate, quality: Quality) -> str:
    """The text, in Markdown."""
    unit = unit_word(certificate.unit)
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        manifest.description,
        "",
        f"- Family: {manifest.family}; sensitivity: {manifest.sensitivity}; purposes: {', '.join(manifest.purposes)}",
        f"- Quality: {quality}",
        f"- Privacy of one {unit}: epsilon {micro_text(certificate.epsilon_micro)} at delta "
        f"{certificate.delta} (added or removed), {micro_text(certificate.epsilon_replace_one_micro)} (replaced)",
        f"- How: {name_of(certificate.mechanism)}; {'; '.join(mechanism_lines(certificate.mechanism))}",
        f"- Audit: {audit_words(certificate.audit)}",
        "",
        "Weights without a valid `certificate.dsse.json` and `bundle.sig` beside them carry no guarantee: check with",
        "`sealgate models verify`. `sealgate models report` makes a page with pictures of what follows.",
        "",
        "## What epsilon means here",
        "",
        f"Somebody who knows everything else about the data, and wants to know whether one {unit} was in it:",
        "",
        *[f"- {line}" for line in attack_lines(curve_of(account_of(certificate)), unit=certificate.unit)],
        "",
        "## How it was made",
        "",
        *[f"- {line}" for line in _making(certificate)],
        "",
        *_sweep(certificate),
        "## What else was released",
        "",
        *[
            f"- {release.what} ({release.where}): {'covered' if release.covered else 'not covered'} by epsilon"
            for release in certificate.releases
        ],
        "",
        "## What epsilon does not protect",
        "",
        *[f"- {text}" for text in certificate.not_protected],
        "",
    ]
    return "\n".join(lines)


def _making(certificate: Certificate) -> Iterator[str]:
    accounting, preprocessing, selection = certificate.accounting, certificate.preprocessing, certificate.selection
    yield (
        f"Data: about {certificate.dataset.public_population} rows (the public figure, not the count); "
        f"{certificate.dataset.split}"
    )
    if preprocessing.statistics == "dp":
        named = ", ".join(part.what for part in preprocessing.parts)
        yield f"Preprocessing: {named}; its share of epsilon is {micro_text(preprocessing.epsilon_micro)}"
    else:
        yield "Preprocessing: public constants only"
    for one in preprocessing.masked:
        yield f"Masked before anything else: {one.column}, {one.action}{f' ({one.detail})' if one.detail else ''}"
    share = f", its share of epsilon is {micro_text(selection.epsilon_micro)}" if selection.epsilon_micro else ""
    yield f"Hyper-parameters: {selection.how}{share}; {selection.note}"
    yield f"First weights: {certificate.initialisation.method}; pretraining: {certificate.initialisation.pretraining}"
    yield (
        f"Accounted by {accounting.accountant} {accounting.version}; beside it {accounting.second_accountant} "
        f"{accounting.second_version} says {micro_text(accounting.second_epsilon_micro)}"
    )


def _sweep(certificate: Certificate) -> list[str]:
    if len(certificate.measured) < 2:
        return []
    return [
        "## Accuracy against privacy",
        "",
        "The first is this model. The others were trained for comparison and thrown away.",
        "",
        *[
            f"- epsilon {micro_text(one.epsilon_micro)}: {one.measure} {interval_text(one)}"
            for one in certificate.measured
        ],
        "",
    ]
