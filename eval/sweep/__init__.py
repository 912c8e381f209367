"""Sweeps: one YAML over methods, budgets, knobs, models and seeds, run by one worker or many, searched if wanted.

spec (YAML) -> space (assignments) -> cells (folders, claimed by a lock) -> work (workers) -> conclude (sweep.json)
"""
