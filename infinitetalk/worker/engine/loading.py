"""Loads the networks in a thread, while jobs are already validated and fetched."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import structlog

from infinitetalk.media.decode import read_waveform
from infinitetalk.media.sizes import choose_bucket
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.device_errors import as_library_error
from infinitetalk.runtime.kernels.bench import Case
from infinitetalk.runtime.kernels.registry import Kernels, suitable
from infinitetalk.runtime.memory import MemoryMode
from infinitetalk.runtime.models import Models
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.worker.engine.checkpoint import Checkpoint
from infinitetalk.worker.engine.kernels import KernelSelection
from infinitetalk.worker.engine.placement import Devices, MeasureMemory, Placement
from infinitetalk.worker.errors import failed_to_read, load_error, may_load_elsewhere
from infinitetalk.worker.stop import wait_for


class Health:
    """Whether this process may serve jobs."""

    def __init__(self) -> None:
        self._is_broken = False

    @property
    def is_broken(self) -> bool:
        """Whether the machine has failed or the model could not be read, so that another worker may do better."""
        return self._is_broken

    def mark_broken(self) -> None:
        """Makes this process take no other job."""
        self._is_broken = True

    @contextmanager
    def reading_weights(self) -> Iterator[None]:
        """Wraps code that reads weights in a job: if the disk fails, the job fails as retryable and the worker is
        replaced.

        Raises:
            WorkerError: the disk failed.
        """
        try:
            yield
        except Exception as error:
            if not failed_to_read(error):
                raise
            self.mark_broken()
            raise load_error(error) from error


@dataclass(frozen=True)
class FoundModels:
    """The models of a checkpoint with all its files, and the placement of its networks in memory."""

    models: Models
    placement: Placement


class Loading:
    """Loads the networks of a checkpoint.

    Args:
        checkpoint: the checkpoint.
        devices: the devices of its networks.
        kernels: chooses the kernels; a trial of them runs beside loading.
        measure: measures the available memory before any network is loaded.
        health: is marked as broken if another worker may do better.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        devices: Devices,
        kernels: KernelSelection,
        measure: MeasureMemory,
        health: Health,
    ) -> None:
        self._checkpoint = checkpoint
        self._kernels = kernels
        self._devices = devices
        self._measure = measure
        self._health = health
        self._found: Future[FoundModels] = Future()
        self._loaded: Future[None] = Future()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts loading."""
        # Not daemon threads: exiting while torch is importing in one aborts the process and loses the exit code.
        self._threads = [
            threading.Thread(target=warm_up_sound, name="warm-up"),
            threading.Thread(target=self._load, name="load"),
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Waits for loading to end, which fails if the interpreter exits before, and ends a trial of kernels."""
        for thread in self._threads:
            thread.join()
        self._kernels.finish()

    def found(self, should_stop: Callable[[], bool] = lambda: False) -> FoundModels:
        """The models, as soon as their files are found; their networks may still be loading.

        Raises:
            CheckpointError, WorkerError: they could not be found.
            GenerationStopped: `should_stop` returned true.
        """
        return wait_for(self._found, should_stop)

    def loaded(self, should_stop: Callable[[], bool]) -> FoundModels:
        """The models, once their networks are loaded.

        Raises:
            CheckpointError, WorkerError: they could not be loaded.
            GenerationStopped: `should_stop` returned true.
        """
        found = self.found(should_stop)
        wait_for(self._loaded, should_stop)
        return found

    def kernels_for_job(self) -> Kernels:
        """The kernels of the next job, once the networks are loaded; a trial that still runs is stopped."""
        return self._kernels.for_job()

    def _load(self) -> None:
        begin = time.monotonic()
        device, dtype = self._devices.first, self._devices.dtype
        logger = structlog.get_logger()
        waiting: Future[FoundModels] | Future[None] = self._found
        try:
            paths = self._checkpoint.files()
            placement = Placement(self._measure(device, paths), paths.family)
            memory = placement.choose_at_start()
            models = Models(paths, device, self._devices.others)
            self._found.set_result(FoundModels(models, placement))
            waiting = self._loaded
            kernels = self._kernels.begin(usual_case(models, paths, self._devices, memory), models.name)
            models.prepare(NetworkChoice(dtype, memory, kernels=suitable(kernels, memory.quantisation)))
        except Exception as error:
            logger.error("model.not_loaded", exc_info=error)
            if may_load_elsewhere(error):
                self._health.mark_broken()
            waiting.set_exception(load_error(as_library_error(error)))
            return
        lat_ms = round((time.monotonic() - begin) * 1000)
        details = {"model": models.name, "device": str(device), "memory_mode": memory.describe(dtype)}
        logger.info("model.loaded", lat_ms=lat_ms, details=details)
        self._loaded.set_result(None)


def usual_case(models: Models, paths: CheckpointPaths, devices: Devices, memory: MemoryMode) -> Case:
    """What kernels are tried on: a chunk of the family's default length and usual size."""
    family = models.family
    defaults = family.defaults
    usual_resolution = family.sizes[defaults.size].usual_resolution
    height, width = choose_bucket(family, defaults.size, *usual_resolution, models.size_scale)
    return Case(
        paths=paths,
        device=devices.first,
        dtype=devices.dtype,
        quantisation=memory.quantisation,
        num_frames=defaults.frame_num,
        height=height,
        width=width,
        vae_tiling=memory.vae_tiling,
    )


def warm_up_sound() -> None:
    """Uses librosa once before a job needs it: its imports at the first use take seconds."""
    with tempfile.TemporaryDirectory(prefix="infinitetalk-") as folder:
        file = Path(folder) / "silence.wav"
        soundfile.write(file, np.zeros(4800, dtype=np.float32), 48_000)
        read_waveform(file)
