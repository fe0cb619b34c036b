"""Weights: reads, checks, converts, packs and downloads every published layout (docs/weights.md).

`python -m infinitetalk.weights download|check|convert|pack`.
"""
