"""Differential-privacy certificates and model bundles: schema, signatures, recomputation of epsilon."""
