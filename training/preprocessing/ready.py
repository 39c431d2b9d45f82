"""From a configuration with blanks to one without: reads the rows once, masked, and makes the private releases.

Trusts: nothing in the data. Never: makes a release twice for one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sealgate.ambient import Entropy
from sealgate.certificate.schema import Masked
from training.configuration import Configuration
from training.masking.columns import read_masked
from training.masking.sections import masked_parts, masking_section
from training.preprocessing.statistics import Spending


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The configuration that the rows are read with, and lines for the terminal: counts of private rows."""

    configuration: Configuration
    remarks: tuple[str, ...]


def ready(configuration: Configuration, spending: Spending, *, folder: Path, entropy: Entropy) -> Ready:
    """Fill every blank; raises ConfigurationError."""
    if not (configuration.masking or spending.steps):
        return Ready(configuration=configuration, remarks=())
    found = read_masked(configuration, folder=folder)
    return Ready(
        configuration=spending.fill(configuration, found.columns, entropy=entropy),
        remarks=found.remarks,
    )


def masked_of(configuration: Configuration) -> tuple[Masked, ...]:
    """What the certificate tells of masking; raises ConfigurationError."""
    return masked_parts(masking_section(configuration))
