"""A package with one method for vtc; `unusual.py` is the method, `unusual.yaml` what its name stands for."""
