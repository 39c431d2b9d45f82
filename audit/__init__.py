"""The log as the runtime host writes it, the gateway queries it and operators keep it."""
