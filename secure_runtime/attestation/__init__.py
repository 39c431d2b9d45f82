"""Attesters: what turns a worker's claims into evidence that somebody vouches for."""
