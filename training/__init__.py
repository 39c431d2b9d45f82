"""Training with differential privacy, and the bundles that come of it."""
