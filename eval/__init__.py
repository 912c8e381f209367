"""Evaluation: benchmarks answered by a model as it is and with pruned visual tokens. `vtc eval` on the command line.

settings -> plan (runs) -> runner (batches -> sample log) -> results (JSON) -> table and plot
"""
