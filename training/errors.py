"""Exceptions of training.

SealgateError
├── ConfigurationError        (sealgate.errors) the configuration or the data is wrong; names column and row
└── TrainingError             training itself came to no usable model
"""

from __future__ import annotations

from sealgate.errors import SealgateError


class TrainingError(SealgateError):
    """Training came to no usable model.

    `code`: diverged, gradients-unsupported, accountants-disagree, audit-contradicts,
    not-publishable, fingerprint, processes-unsupported, process-lost.
    """

    code = "training"
