"""From a TLS connection and a token to a `Principal`, or one uniform refusal."""
