"""The published network's shape on a GPU, random weights: `python -m benchmarks.gpu` (docs/performance.md).

Groups of rows run one after the other, each in a process of its own, so that a kernel that crashes or hangs ends its
own group alone. Each row is printed and saved when it is made. It needs torch, transformers, diffusers and torchao.
"""
