"""Benchmarks of vtc's own parts, on the machine at hand: ratios measured in one run."""
