"""The worker: sandboxed; holds the request keys in memory, decrypts, runs the model, seals the answer."""
