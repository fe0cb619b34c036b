"""Compares the modules with reference vectors: `python -m tests.golden FOLDER`.

A folder holds `index.json`, manifests of weights and one safetensors file a case, as its README describes. Everything
that a case needs is read from there; weights, inputs and pictures come from formulas.
"""
