"""The whole sealed path against plaintext servers, in one run and one table: `python -m benchmarks.serving --help`."""
