"""Takes almost all free memory of the GPU until its standard input ends: how the hour provokes a lack of memory."""

import sys

import torch

LEFT_BYTES = 1 << 29
BLOCK_BYTES = 1 << 28


def main() -> None:
    """Takes the memory, says so, and waits."""
    held = []
    while torch.cuda.mem_get_info()[0] > LEFT_BYTES + BLOCK_BYTES:
        held.append(torch.empty(BLOCK_BYTES, dtype=torch.uint8, device="cuda"))
    print(f"holding {len(held) * BLOCK_BYTES}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
