"""Answering: the options, the grid of runs, and what happens to a batch of samples between the data and its rows."""
