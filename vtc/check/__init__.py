"""The contract of every method on every family, on the families' tiny random models: what `vtc check` runs.

`vtc.check.contract` lists the properties; `vtc.check.outcome` runs them for a method or a family.
"""
