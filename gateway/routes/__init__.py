"""The HTTP surface of the gateway. Handlers are short: parse, decide, forward, answer."""
