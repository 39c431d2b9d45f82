"""The demonstration: everything a user can do, with only what a user has: the commands and the client library."""
