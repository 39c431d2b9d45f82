"""Who can vouch for evidence beside the operator: one module a kind, each with its part of the trust file."""
