"""A stand-in for oned: a small state, and the API calls that a transfer makes answered from it."""
