"""Kernels of sums over attention columns; they are launched by `vtc/kernels/attention_reduce/triton.py`."""
