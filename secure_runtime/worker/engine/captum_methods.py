"""Captum's methods of attribution, without the drawing that Captum imports beside them. Imported before the seal.

`import captum` brings matplotlib, pandas' hooks and five packages that a worker has no use for: 33 MB, a second, and a
search for fonts that starts other programs. The few modules that hold the methods need none of it, so they are imported
from where they lie, past the two packages' own `__init__`. Who imports Captum later in the same process gets the whole.

Trusts: Captum, as far as it trusts torch. Never: imports matplotlib; fails where Captum is not installed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGES = (("captum", ""), ("captum.attr", "attr"))


class CaptumMissing(Exception):
    """The extra `explain` is not installed."""


def _bare(name: str, folder: Path) -> ModuleType:
    """A package whose modules can be imported, and whose `__init__` was not run."""
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    return package


def _imported() -> tuple[Any, Any, Any]:
    found = importlib.util.find_spec("captum") if "captum" not in sys.modules else None
    bare: list[str] = []
    if found is not None and found.origin is not None:
        for name, folder in _PACKAGES:
            sys.modules[name] = _bare(name, Path(found.origin).parent / folder)
            bare.append(name)
    try:
        from captum.attr._core.feature_ablation import FeatureAblation
        from captum.attr._core.integrated_gradients import IntegratedGradients
        from captum.attr._core.shapley_value import ShapleyValueSampling
    finally:
        for name in bare:
            del sys.modules[name]
    return FeatureAblation, IntegratedGradients, ShapleyValueSampling


try:
    _FOUND: tuple[Any, Any, Any] | None = _imported()
except ModuleNotFoundError:
    _FOUND = None

INSTALLED = _FOUND is not None


def methods() -> tuple[Any, Any, Any]:
    """FeatureAblation, IntegratedGradients, ShapleyValueSampling; raises CaptumMissing."""
    if _FOUND is None:
        raise CaptumMissing
    return _FOUND
