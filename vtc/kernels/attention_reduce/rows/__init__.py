"""Kernels of attention rows; they are launched by `vtc/kernels/attention_reduce/triton.py`."""
