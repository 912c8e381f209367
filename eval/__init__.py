"""Evaluation on benchmarks, of the unpruned model and with pruned visual tokens. `vtc eval` on the command line.

Its packages, each importing only from those named before it: `data` and `metrics`, then `tasks`; `results` (logs,
figures, comparisons); `running` (from a sample to its row); `showing`, `report`, `inspect`, `papers`. On top of these
are `runner` (`vtc eval`), `score` (`vtc eval score`), `sweep` and `lmms`, the bridge to lmms-eval. `models` and
`processors` load the model to be evaluated.
"""
