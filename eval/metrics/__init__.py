"""Scores of answers by the benchmarks' official definitions: pure functions of texts and counts."""
