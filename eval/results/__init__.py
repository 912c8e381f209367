"""Writing and reading results: sample logs, figures with their errors, and comparisons of runs.

Nothing here depends on models or on how answers were made, so it can read results of any origin.
"""
