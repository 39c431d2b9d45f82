"""Model architectures and bundles: one readable definition for training and for serving. No code in bundles."""
