"""Parties, rounds and messages: sans-I/O protocols over the primitives of `secagg`."""
