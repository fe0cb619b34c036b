"""Kernels: the ways to compute that networks have a choice of (docs/performance.md). `registry` lists them."""
