"""The published network's shape on a GPU, with random weights: `python -m benchmarks.gpu` (docs/performance.md).

Groups of rows run one after another, each in a separate process, so that a kernel that crashes or hangs ends only its
own group. Each row is printed and saved when it is finished. Needs torch, transformers, diffusers and torchao.
"""
