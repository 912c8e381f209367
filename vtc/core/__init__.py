"""What everything else stands on: errors, registries, signals, selections, layouts, budgets, hooks, FLOPs, reports."""
