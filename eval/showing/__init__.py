"""Results as they are shown by `vtc eval`: tables on the terminal, a plot, and the list of benchmarks."""
