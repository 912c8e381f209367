"""What an answer is worth: the benchmarks' official definitions, pure functions of texts and counts."""
