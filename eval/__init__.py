"""Evaluation: benchmarks answered by a model as it is and with pruned visual tokens. `vtc eval` on the command line.

settings -> plan (runs) -> runner (batches -> sample log) -> results (JSON) -> table and plot
"""

if __name__ != "vtc.eval":
    raise ImportError("import vtc.eval, not eval: eval/ is a part of vtc and a built-in function has the bare name")
