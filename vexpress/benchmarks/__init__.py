"""Benchmarks: small programs that each measure one thing, on random weights or the demo pack: no downloads."""
