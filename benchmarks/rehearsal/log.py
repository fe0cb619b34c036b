"""What a rehearsal writes down: operations, waits and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from benchmarks.rehearsal.rates import Arithmetic, Rates, Traffic

Kind = Literal[
    "linear",
    "self-attention",
    "cross-attention",
    "audio attention",
    "reference map",
    "other attention",
    "convolution",
    "rotary",
    "norms",
    "gelu",
    "casts",
    "elementwise",
    "copies",
    "exchange",
    "others",
]

#: Kinds whose floating-point operations cannot be spared.
PRODUCTS: frozenset[Kind] = frozenset(
    {
        "linear",
        "self-attention",
        "cross-attention",
        "audio attention",
        "reference map",
        "other attention",
        "convolution",
    }
)


class Place(NamedTuple):
    """A line of the project, or of a library where no line of the project asked for the operation.

    Attributes:
        file: from the checkout, or from the libraries' folder.
        function: with its class.
    """

    file: str
    function: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Wait(NamedTuple):
    """What makes the CPU wait for the GPU.

    Attributes:
        what: "number to the CPU", "tensor to the CPU", "tensor to the GPU" (from memory that is not pinned) or
            "size from the GPU" (of a result whose size is known only when it has been computed).
        file, function: where.
    """

    what: str
    file: str
    function: str


@dataclass(frozen=True)
class Operation:
    """One kernel.

    Attributes:
        name: aten's.
        kind: what it is a part of.
        arithmetic: which rate its floating-point operations have.
        traffic: which rate its bytes have.
        flop: floating-point operations of products; 0 where only bytes count.
        bytes: read and written.
        place: the project's line.
        library: the innermost line that is not torch's.
    """

    name: str
    kind: Kind
    arithmetic: Arithmetic
    traffic: Traffic
    flop: float
    bytes: float
    place: Place
    library: Place

    def seconds(self, rates: Rates) -> float:
        """As long as its arithmetic or its bytes take, whichever is longer, and its launch."""
        return max(self.product_seconds(rates), self.bytes / rates.bytes_per_s(self.traffic)) + rates.launch_s

    def product_seconds(self, rates: Rates) -> float:
        """What its arithmetic alone takes."""
        return self.flop / rates.flop_per_s(self.arithmetic)


@dataclass
class Log:
    """What one part did.

    Attributes:
        operations: kernels in their order.
        waits: how often each made the CPU wait.
        mixed: operations whose tensors are on several devices, copies and single numbers aside.
        peak_bytes: the most memory that was in use at once, of what was allocated while it was recorded.
        peak_place: the operation and line at which it was.
        held_bytes: the memory that is still in use at the end, results included.
    """

    operations: list[Operation] = field(default_factory=list)
    waits: Counter[Wait] = field(default_factory=Counter)
    mixed: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    peak_place: str = ""
    held_bytes: int = 0

    @property
    def flop(self) -> float:
        """Floating-point operations of products."""
        return sum(operation.flop for operation in self.operations)

    @property
    def bytes(self) -> float:
        """Read and written."""
        return sum(operation.bytes for operation in self.operations)

    def seconds(self, rates: Rates) -> float:
        """Of all operations, one after the other; at least as long as the CPU takes to start them."""
        gpu = sum(operation.seconds(rates) for operation in self.operations)
        return max(gpu, rates.dispatch_s * len(self.operations))

    def floor_seconds(self, rates: Rates) -> float:
        """Of the arithmetic of its products alone."""
        return sum(operation.product_seconds(rates) for operation in self.operations if operation.kind in PRODUCTS)


@dataclass
class Group:
    """Operations that are counted together."""

    kernels: int = 0
    flop: float = 0.0
    bytes: float = 0.0
    ideal_s: float = 0.0
    typical_s: float = 0.0


def grouped(
    operations: Iterable[Operation], by: Callable[[Operation], str], ideal: Rates, typical: Rates
) -> dict[str, Group]:
    """Groups by what `by` says of an operation, the one that takes longest at ideal rates first."""
    groups: dict[str, Group] = {}
    for operation in operations:
        group = groups.setdefault(by(operation), Group())
        group.kernels += 1
        group.flop += operation.flop
        group.bytes += operation.bytes
        group.ideal_s += operation.seconds(ideal)
        group.typical_s += operation.seconds(typical)
    return dict(sorted(groups.items(), key=lambda item: -item[1].ideal_s))
