"""Weights: reading every published layout, checking, converting and fetching it (docs/weights.md).

`python -m infinitetalk.weights download|check|convert`.
"""
