"""The gateway: faces the network, authenticates, decides access, forwards ciphertext that it cannot read."""
