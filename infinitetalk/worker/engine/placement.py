"""Devices and memory modes: the devices of the networks, and the mode that fits the available memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog
import torch

from infinitetalk.family import Family, ModelSizes
from infinitetalk.runtime.choice import device_name
from infinitetalk.runtime.kernels.registry import PUBLISHED, Kernels, candidate_named
from infinitetalk.runtime.memory import (
    DoesNotFitError,
    MemoryMode,
    Workload,
    can_finish_beside,
    choose_mode,
    estimate_bytes,
    free_bytes,
    model_sizes,
    weight_bytes,
)
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.worker.engine.rehearsed import Gpu
from infinitetalk.worker.settings import Settings
from schemas import SingleJob


@dataclass(frozen=True)
class Devices:
    """The devices, all of one kind, that make a video together.

    Attributes:
        first: the device of every network; the others take part in evaluations of the transformer.
        count: number of devices, with one process each.
    """

    first: torch.device
    count: int

    @property
    def others(self) -> list[torch.device]:
        """All but the first: other GPUs by their numbers, or the CPU again."""
        if self.first.type != "cuda":
            return [self.first] * (self.count - 1)
        others = [torch.device("cuda", number) for number in range(self.count + 1)]
        return [device for device in others if device != self.first][: self.count - 1]

    @property
    def name(self) -> str:
        """Name of each device, or "CPU"."""
        return device_name(self.first)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the transformer and the text encoder on these devices."""
        return torch.float32 if self.first.type == "cpu" else torch.bfloat16


def devices_of(settings: Settings) -> Devices:
    """The devices that the settings name, else all GPUs, else the CPU."""
    first = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    count = settings.gpus_per_job or (torch.cuda.device_count() if first.type == "cuda" else 1)
    return Devices(numbered(first), count)


def gpu_of(device: torch.device) -> Gpu | None:
    """What CUDA says of a GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    capability = properties.major + properties.minor / 10
    return Gpu(torch.cuda.get_device_name(device), capability, properties.multi_processor_count)


def numbered(device: torch.device) -> torch.device:
    """A device with its number, which each of several processes needs to select its own GPU."""
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


@dataclass(frozen=True)
class MemoryBudget:
    """Free GPU memory in bytes before any network is loaded, and the checkpoint's sizes."""

    free_bytes: int
    sizes: ModelSizes


MeasureMemory = Callable[[torch.device, CheckpointPaths], MemoryBudget | None]


def measure_memory(device: torch.device, paths: CheckpointPaths) -> MemoryBudget | None:
    """The budget of a GPU, as if no network were loaded; None for a CPU, whose memory is not counted.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return MemoryBudget(available_bytes(device), model_sizes(paths)) if device.type == "cuda" else None


def available_bytes(device: torch.device) -> int:
    """GPU memory for networks: free memory, and that of networks that this process has loaded."""
    return free_bytes(device) + torch.cuda.memory_allocated(device)


class ModeChooser:
    """Chooses memory modes.

    Args:
        budget: the available memory; None if memory is not counted, and each job gets the mode that it asks for.
        family: the checkpoint's family.
    """

    def __init__(self, budget: MemoryBudget | None, family: Family) -> None:
        self._budget = budget
        self._family = family

    def choose_at_start(self, gpus: int) -> MemoryMode:
        """The mode in which networks are loaded before the first job.

        Args:
            gpus: number of GPUs that make a video together.

        Raises:
            DoesNotFitError: no mode fits.
        """
        if self._budget is None:
            return MemoryMode()
        workload = replace(usual_workload(self._family), gpus=gpus)
        return choose_mode(self._budget.free_bytes, self._budget.sizes, workload)

    def choose(self, job: SingleJob, workload: Workload) -> MemoryMode:
        """The mode that a job asks for; if memory is counted, completed to the fastest mode that fits.

        Raises:
            DoesNotFitError: no mode fits.
        """
        requested = requested_memory(job)
        if self._budget is None:
            return requested
        mode = choose_mode(self._budget.free_bytes, self._budget.sizes, workload, requested)
        if job.offload_model is False and mode.resident_parameters is not None:
            raise DoesNotFitError("the model does not fit the GPU's memory with offload_model false; leave it out")
        return mode

    def affordable(self, kernels: Kernels, mode: MemoryMode, workload: Workload) -> Kernels:
        """These kernels, or with the published products if there is too little memory to quantise activations."""
        if self._budget is None or not candidate_named(kernels.products).quantises_activations:
            return kernels
        needed = estimate_bytes(mode, self._budget.sizes, replace(workload, quantises_activations=True))
        if needed <= self._budget.free_bytes:
            return kernels
        details = {"kernel": kernels.products, "needed_bytes": needed, "free_bytes": self._budget.free_bytes}
        structlog.get_logger().info("kernels.too_large", details=details)
        return kernels.having("products", PUBLISHED.products)

    def can_finish_beside(self, mode: MemoryMode, workload: Workload) -> bool:
        """Whether a job's chunks can be finished beside the next one's steps; true if memory is not counted."""
        return self._budget is None or can_finish_beside(mode, self._budget.sizes, workload)

    def has_room_beside(self, mode: MemoryMode, workload: Workload, other: ModeChooser, other_mode: MemoryMode) -> bool:
        """Whether a job in a mode fits while another checkpoint's networks stay loaded in theirs.

        False if memory is not counted, or if either streams weights from the host's memory, which is not counted.
        """
        if self._budget is None or other._budget is None or mode.is_streaming or other_mode.is_streaming:
            return False
        held = weight_bytes(other_mode, other._budget.sizes)
        return held + estimate_bytes(mode, self._budget.sizes, workload) <= self._budget.free_bytes

    def learn(
        self, job: SingleJob, workload: Workload, taken: MemoryMode, dtype: torch.dtype
    ) -> DoesNotFitError | None:
        """Assumes less memory from now on, since a job ran out of memory.

        Args:
            taken: the job's mode.
            dtype: dtype of weights that are not quantised.

        Returns:
            The error for the client; None if memory is not counted.
        """
        if self._budget is None:
            return None
        sizes = self._budget.sizes
        needed = estimate_bytes(taken, sizes, workload)
        self._budget = replace(self._budget, free_bytes=min(self._budget.free_bytes, needed - 1))
        try:
            mode = choose_mode(self._budget.free_bytes, sizes, workload, requested_memory(job))
        except DoesNotFitError as error:
            return error
        return DoesNotFitError(
            f"the GPU has too little memory for the mode {taken.describe(dtype)}: send the job again, "
            f"this worker will run it in the mode {mode.describe(dtype)}",
            fits_next_time=True,
        )


def usual_workload(family: Family) -> Workload:
    """The workload for which the mode is chosen before the first job: a chunk of the default length and size."""
    defaults = family.defaults
    return Workload(defaults.frame_num, *family.sizes[defaults.size].usual_resolution, family)


def requested_memory(job: SingleJob) -> MemoryMode:
    """The part of the mode that a job sets; offload_model keeps no block of the transformer on the GPU."""
    kept = job.num_persistent_param_in_dit
    if kept is None and job.offload_model:
        kept = 0
    return MemoryMode(quantisation=job.quant, resident_parameters=kept, stream_text_encoder=bool(job.offload_model))
