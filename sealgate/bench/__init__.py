"""Measuring what the service costs, with only what a user has: its commands, its client, and the kernel's accounting."""
