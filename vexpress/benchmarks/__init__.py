"""Benchmarks: small programs that each measure one thing, with random weights, so that nothing needs a download."""
