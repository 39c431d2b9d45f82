"""Sealgate: secure inference whose privacy can be checked, not believed. What a caller imports."""

from __future__ import annotations

__all__: list[str] = []
