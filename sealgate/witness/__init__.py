"""A witness: keeps the newest checkpoint of each log that it knows, and cosigns only what extends it."""
