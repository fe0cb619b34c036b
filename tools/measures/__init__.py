"""Quality of talking videos of photographs, without a network: mouths, identity, drift, borders, flicker, rest.

`quality.measure` gives every figure of an MP4; docs/measures.md says what each means, and what a real video scores.
"""
