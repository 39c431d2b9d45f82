"""The client: sealed sessions and httpx transports, and the auditor's commands."""
