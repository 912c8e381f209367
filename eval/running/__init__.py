"""Answering: the options, the grid of runs, and the way of a batch of samples from data to rows."""
