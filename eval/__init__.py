"""Evaluation: benchmarks answered by a model as it is and with pruned visual tokens. `vtc eval` on the command line.

The rooms, each above those that it reads: `data` and `metrics`, then `tasks`; `results` (logs, figures, comparisons);
`running` (from a sample to its row); `showing`, `report`, `inspect`, `papers`. On top stand `runner` (`vtc eval`),
`score` (`vtc eval score`), `sweep` and `lmms`, the bridge to lmms-eval. `models` and `processors` load what is
evaluated.
"""
