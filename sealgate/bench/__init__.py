"""Measuring what the service costs, with only what a user has: commands, the client, the kernel's accounting."""
