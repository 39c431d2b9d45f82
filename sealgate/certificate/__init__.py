"""Differential-privacy certificates and model bundles: schema, signatures, recomputation of epsilon.

A bundle is a directory of exactly five files (see `bundle.py`). `verify_bundle` is the only way to a `VerifiedBundle`,
and a `VerifiedBundle` is the only thing that the runtime loads.
"""
