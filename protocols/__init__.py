"""Parties, rounds and messages over the primitives of `secagg`: sans-I/O but for what parties keep."""
