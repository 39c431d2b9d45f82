"""The runtime host: starts and supervises workers, the only writer of the audit log and of the budget ledger."""
