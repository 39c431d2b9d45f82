"""Speed and memory, measured against a peer in the same run. Never a gate in a test."""
