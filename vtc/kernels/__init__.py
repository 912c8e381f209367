"""Tensor operations that strategies and patches share; they know no model, no strategy and no configuration."""
