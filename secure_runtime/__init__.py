"""The runtime: a host that records and supervises, and sandboxed workers, the only place where plaintext exists."""
