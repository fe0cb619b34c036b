"""Kernels: the ways to compute that networks have a choice of (docs/performance.md).

`registry` lists them, `bench` computes with them at the true shapes, `trial` tries each in a child process (`child`),
`findings` keeps what was found for the next start, and `compiled` what was compiled.
"""
