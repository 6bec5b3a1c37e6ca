"""Measurements beside a named peer, in the same run; figures are committed in ``benchmarks/results``."""
