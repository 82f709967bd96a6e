"""Tensor, autograd, random state, threads and memory."""
