"""What a runtime says of itself, who vouches for it, and how a client decides to believe it."""
