"""Sweeps over methods, budgets, knobs, models and seeds from one YAML file, run or searched by one or more workers.

spec (YAML) -> space (assignments) -> cells (folders, claimed by a lock) -> work (workers) -> conclude (sweep.json)
"""
