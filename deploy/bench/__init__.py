"""Benchmarks: rates of the parts, each beside a plain way of doing the same work."""
