"""What cards do in a second: at best, and what usual kernels reach.

*Ideal* is the data sheet's dense rate (never the one for sparse matrices) and bandwidth, with one exception: H100 and
H200 have 989 TFLOP/s in bf16 on paper, and their power lets the best products have about 800 (805 measured on an
H200, docs/performance.md); 790 is the floor that evaluations are held against.

*Typical* is measured for the H200 alone, from the profile of an evaluation and from single kernels
(docs/measurements/h200.json). For every other card it is an ASSUMPTION: the shares of the ideal rates that published
figures of cuBLAS, flash attention and copies show on that kind of card, and the H200's share (0.34) in TF32.

The data sheets' figures were compared with public copies in November 2026: L40S 362 TFLOP/s in bf16, 733 in fp8, 183 in
TF32, 0.864 TB/s (mullet.se/product.html?product_id=355414, the sheet's table); RTX 4090 165, 330, 82.6, 1.008
(waredb.com/processor/nvidia-geforce-rtx-4090); RTX 5090 170 multiprocessors, 838 TFLOP/s in fp16 with sparsity and half
sums, a quarter of which is 209.5, 1.792 TB/s (spheron.network/blog/nvidia-rtx-5090-specs); RTX PRO 6000 188
multiprocessors, 125 TFLOP/s in float32, 4,000 sparse TOPS in fp4, an eighth of which is 504, 1.792 TB/s
(topcpu.net, gpu.name). A100, H100, H200 and B200 stand as NVIDIA publishes them and were not found again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

from benchmarks.rehearsal.kernels import AttentionKernel

Arithmetic = Literal["bf16", "attention", "fp8", "tf32", "float32"]
"""How products are computed. Attention is that in half precision: other kernels than those of linear layers."""

Traffic = Literal["plain", "norm", "widening", "mixed", "link"]
"""How a kernel walks through memory.

plain: elementwise on one dtype, vectorised.
norm: along rows, with sums.
widening: a copy from a narrow dtype to float32, not vectorised in torch.
mixed: elementwise on several dtypes at once, which torch casts element by element as it reads them.
link: to other GPUs.
"""

TERA = 1e12
LAUNCH_S = 5e-6
"""Seconds from one kernel's end to the next one's beginning, an assumption for every card."""
DISPATCH_S = 45e-6
"""Seconds in which the CPU starts a kernel: Python, torch's dispatcher, the driver. Where kernels are small, the GPU
waits for it. From an H200's machine: decoding in tiles took 51 µs a kernel, colours and frames took 37."""
STREAM_WAIT_S = 2e-3
"""Seconds for which the GPU stands idle before a streamed block while the CPU waits for its copy, an assumption."""

#: What copies reach of the paper's rates: from pinned memory over PCI Express 4 and 5 of 16 lanes, 32 and 64 GB/s.
_PCIE_4, _PCIE_5 = 25e9, 50e9
LINK_SHARE = 0.75
"""What is reached of the paper's rate between GPUs, an assumption."""

#: Bytes a second of torch's kernels that their own work bounds, not memory, measured on an H200; and the H200's
#: multiprocessors, whose number other cards' are held against.
_H200_NORM, _H200_WIDENING, _H200_MIXED = 2.8 * TERA, 1.97 * TERA, 1.03 * TERA
_H200_MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Rates:
    """Of one card.

    Attributes:
        bf16, attention, fp8, tf32, float32: floating-point operations a second, by `Arithmetic`.
        plain, norm, widening, mixed, link: bytes a second, by `Traffic`.
        launch_s: seconds a kernel takes beside its work.
        dispatch_s: seconds in which the CPU starts a kernel; 0 if it is never waited for.
    """

    bf16: float
    attention: float
    fp8: float
    tf32: float
    float32: float
    plain: float
    norm: float
    widening: float
    mixed: float
    link: float
    launch_s: float = LAUNCH_S
    dispatch_s: float = 0.0

    def flop_per_s(self, arithmetic: Arithmetic) -> float:
        """Floating-point operations a second."""
        match arithmetic:
            case "bf16":
                return self.bf16
            case "attention":
                return self.attention
            case "fp8":
                return self.fp8
            case "tf32":
                return self.tf32
            case "float32":
                return self.float32
        assert_never(arithmetic)

    def bytes_per_s(self, traffic: Traffic) -> float:
        """Bytes a second."""
        match traffic:
            case "plain":
                return self.plain
            case "norm":
                return self.norm
            case "widening":
                return self.widening
            case "mixed":
                return self.mixed
            case "link":
                return self.link
        assert_never(traffic)


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: in tables.
        device_names: as CUDA names the cards that these rates are of.
        capability: CUDA's compute capability.
        multiprocessors: their number.
        free_gib: memory that a fresh worker finds, GiB, an assumption.
        kernel: of attention, as torch chooses.
        ideal, typical: rates.
        host_bytes_per_s: copies from pinned memory of the CPU, an assumption.
    """

    name: str
    device_names: tuple[str, ...]
    capability: float
    multiprocessors: int
    free_gib: float
    kernel: AttentionKernel
    ideal: Rates
    typical: Rates
    host_bytes_per_s: float


def _ideal(bf16: float, fp8: float, tf32: float, float32: float, memory: float, link: float) -> Rates:
    """Rates in TFLOP/s and TB/s; every kernel walks through memory at its full bandwidth."""
    matrix = {
        "bf16": bf16 * TERA,
        "attention": bf16 * TERA,
        "fp8": fp8 * TERA,
        "tf32": tf32 * TERA,
        "float32": float32 * TERA,
    }
    traffic = dict.fromkeys(("plain", "norm", "widening", "mixed"), memory * TERA)
    return Rates(**matrix, **traffic, link=link)


def _typical(
    bf16: float,
    attention: float,
    fp8: float,
    tf32: float,
    float32: float,
    memory: float,
    multiprocessors: int,
    link: float,
) -> Rates:
    """Rates in TFLOP/s and TB/s; kernels that their own work bounds grow with the number of multiprocessors."""
    plain, share = memory * TERA, multiprocessors / _H200_MULTIPROCESSORS
    return Rates(
        bf16=bf16 * TERA,
        attention=attention * TERA,
        fp8=fp8 * TERA,
        tf32=tf32 * TERA,
        float32=float32 * TERA,
        plain=plain,
        norm=min(plain, _H200_NORM * share),
        widening=min(plain, _H200_WIDENING * share),
        mixed=min(plain, _H200_MIXED * share),
        link=link,
        dispatch_s=DISPATCH_S,
    )


#: NVLink at three quarters of the paper's rate in one direction (A100 300 GB/s, H100 and H200 450, B200 900); cards
#: without it send through the CPU's memory.
CARDS: dict[str, Card] = {
    # NVIDIA A100 80GB SXM data sheet. It has no fp8 products: weights in 8 bits are widened.
    "a100": Card(
        name="A100",
        device_names=("NVIDIA A100-SXM4-80GB",),
        capability=8.0,
        multiprocessors=108,
        free_gib=79.0,
        kernel="flash",
        ideal=_ideal(bf16=312, fp8=312, tf32=156, float32=19.5, memory=2.039, link=225e9 / LINK_SHARE),
        typical=_typical(
            bf16=250, attention=200, fp8=250, tf32=53, float32=17, memory=1.75, multiprocessors=108, link=225e9
        ),
        host_bytes_per_s=_PCIE_4,
    ),
    # NVIDIA L40S data sheet, dense.
    "l40s": Card(
        name="L40S",
        device_names=("NVIDIA L40S",),
        capability=8.9,
        multiprocessors=142,
        free_gib=44.4,
        kernel="flash",
        ideal=_ideal(bf16=362, fp8=733, tf32=183, float32=91.6, memory=0.864, link=_PCIE_4 / 2 / LINK_SHARE),
        typical=_typical(
            bf16=240, attention=200, fp8=430, tf32=62, float32=60, memory=0.72, multiprocessors=142, link=_PCIE_4 / 2
        ),
        host_bytes_per_s=_PCIE_4,
    ),
    # NVIDIA Ada GPU architecture whitepaper, GeForce RTX 4090, sums in float32, dense.
    "4090": Card(
        name="RTX 4090",
        device_names=("NVIDIA GeForce RTX 4090",),
        capability=8.9,
        multiprocessors=128,
        free_gib=23.5,
        kernel="flash",
        ideal=_ideal(bf16=165.2, fp8=330.3, tf32=82.6, float32=82.6, memory=1.008, link=_PCIE_4 / 2 / LINK_SHARE),
        typical=_typical(
            bf16=150, attention=145, fp8=270, tf32=28, float32=55, memory=0.85, multiprocessors=128, link=_PCIE_4 / 2
        ),
        host_bytes_per_s=_PCIE_4,
    ),
    # NVIDIA RTX Blackwell GPU architecture whitepaper, GeForce RTX 5090, sums in float32, dense.
    "5090": Card(
        name="RTX 5090",
        device_names=("NVIDIA GeForce RTX 5090",),
        capability=12.0,
        multiprocessors=170,
        free_gib=31.3,
        kernel="flash",
        ideal=_ideal(bf16=209.5, fp8=419, tf32=104.8, float32=104.8, memory=1.792, link=_PCIE_5 / 2 / LINK_SHARE),
        typical=_typical(
            bf16=190, attention=175, fp8=350, tf32=36, float32=70, memory=1.5, multiprocessors=170, link=_PCIE_5 / 2
        ),
        host_bytes_per_s=_PCIE_5,
    ),
    # NVIDIA RTX PRO 6000 Blackwell data sheet (Workstation and Server Edition, 600 W), dense: half of the sparse rates.
    "pro6000": Card(
        name="RTX PRO 6000",
        device_names=(
            "NVIDIA RTX PRO 6000 Blackwell Server Edition",
            "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        ),
        capability=12.0,
        multiprocessors=188,
        free_gib=94.5,
        kernel="flash",
        ideal=_ideal(bf16=503.8, fp8=1007.6, tf32=251.9, float32=125.9, memory=1.792, link=_PCIE_5 / 2 / LINK_SHARE),
        typical=_typical(
            bf16=380, attention=300, fp8=720, tf32=86, float32=85, memory=1.5, multiprocessors=188, link=_PCIE_5 / 2
        ),
        host_bytes_per_s=_PCIE_5,
    ),
    # NVIDIA H100 SXM data sheet: 3.35 TB/s, tf32 494, fp8 1,979, float32 67. bf16: see above; the others at its share.
    # Typical: the H200's arithmetic, for it is the same chip, and its share of the bandwidth.
    "h100": Card(
        name="H100",
        device_names=("NVIDIA H100 80GB HBM3",),
        capability=9.0,
        multiprocessors=132,
        free_gib=79.1,
        kernel="cudnn",
        ideal=_ideal(bf16=790, fp8=1580, tf32=395, float32=67, memory=3.35, link=340e9 / LINK_SHARE),
        typical=_typical(
            bf16=780, attention=532, fp8=1490, tf32=135, float32=50, memory=2.9, multiprocessors=132, link=340e9
        ),
        host_bytes_per_s=_PCIE_5,
    ),
    # NVIDIA H200 SXM data sheet: as the H100 but for 4.8 TB/s. Typical: measured, float32 aside. tf32 is set so that
    # the VAE decodes in the seconds that were measured: it includes cuDNN's transposes around convolutions.
    "h200": Card(
        name="H200",
        device_names=("NVIDIA H200",),
        capability=9.0,
        multiprocessors=132,
        free_gib=139.5,
        kernel="cudnn",
        ideal=_ideal(bf16=790, fp8=1580, tf32=395, float32=67, memory=4.8, link=340e9 / LINK_SHARE),
        typical=_typical(
            bf16=780, attention=532, fp8=1490, tf32=135, float32=50, memory=4.16, multiprocessors=132, link=340e9
        ),
        host_bytes_per_s=_PCIE_5,
    ),
    # NVIDIA HGX B200 data sheet, an eighth of the board's dense rates.
    "b200": Card(
        name="B200",
        device_names=("NVIDIA B200",),
        capability=10.0,
        multiprocessors=148,
        free_gib=178.0,
        kernel="cudnn",
        ideal=_ideal(bf16=2250, fp8=4500, tf32=1100, float32=75, memory=7.7, link=680e9 / LINK_SHARE),
        typical=_typical(
            bf16=1550, attention=1000, fp8=2900, tf32=374, float32=60, memory=6.5, multiprocessors=148, link=680e9
        ),
        host_bytes_per_s=_PCIE_5,
    ),
}

#: A second yardstick for an H100: what published figures of cuBLAS, of cuDNN's attention and of copies show, without
#: what was measured of single kernels. The goals of docs/performance.md at typical rates were set by it, so they are
#: held against it; it is too hopeful of kernels that their own work bounds, and not hopeful enough of large products.
H100_BY_PUBLISHED_FIGURES = Rates(
    bf16=660 * TERA,
    attention=580 * TERA,
    fp8=1150 * TERA,
    tf32=250 * TERA,
    float32=50 * TERA,
    plain=2.7 * TERA,
    norm=2.7 * TERA,
    widening=2.7 * TERA,
    mixed=2.7 * TERA,
    link=340e9,
)
