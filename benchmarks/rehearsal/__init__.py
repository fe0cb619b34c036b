"""Where a GPU's seconds and memory go, without one: the worker's own code on fake CUDA tensors of the published sizes.

    python -m benchmarks.rehearsal [--parts …] [--gpu …] [--json FILE]

No number is computed (torch's FakeTensorMode), so the 14B network takes seconds on one core. Every operation is logged
with its floating-point operations, the bytes that it reads and writes, the line that asked for it, and the memory that
is in use after it. A roofline makes seconds of it: an operation takes as long as its arithmetic or its
bytes, whichever is longer, and a launch. What comes out is an estimate, never a measurement.
"""
