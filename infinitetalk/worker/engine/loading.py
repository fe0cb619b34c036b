"""Loads the networks: those of one family in a thread at the start, while jobs are already validated and fetched, and
others when a job needs them."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import structlog

from infinitetalk.family import Family
from infinitetalk.media.decode import read_waveform
from infinitetalk.media.sizes import choose_bucket
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.device_errors import as_library_error
from infinitetalk.runtime.kernels.bench import Case
from infinitetalk.runtime.memory import MemoryMode, Workload
from infinitetalk.runtime.models import Models
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.worker.engine.checkpoint import Checkpoint, Checkpoints
from infinitetalk.worker.engine.kernels import KernelSelection
from infinitetalk.worker.engine.placement import Devices, MeasureMemory, ModeChooser
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


@dataclass
class FoundModels:
    """The models of a checkpoint with all its files, and what chooses their memory modes.

    Attributes:
        memory: the mode of the networks that may be loaded; None before the first are asked for, and once they are
            freed.
    """

    models: Models
    modes: ModeChooser
    memory: MemoryMode | None = None


class Loading:
    """Finds the models of the checkpoints, and loads the networks of one at the start.

    Args:
        checkpoints: the checkpoints.
        first: the family to load at the start; one of those.
        devices: the devices of the networks.
        kernels: chooses the kernels; a trial of them runs beside loading.
        measure: measures the available memory, as if no network were loaded.
        health: is marked as broken if another worker may do better.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        first: Family,
        devices: Devices,
        kernels: KernelSelection,
        measure: MeasureMemory,
        health: Health,
    ) -> None:
        self._checkpoints = checkpoints
        self._first = first
        self._kernels = kernels
        self._devices = devices
        self._measure = measure
        self._health = health
        self._found: dict[str, Future[FoundModels]] = {name: Future() for name in checkpoints.by_family}
        self._loaded: Future[None] = Future()
        self._ended: Future[None] = Future()
        self._one_at_a_time = devices.count > 1
        self._lock = threading.Lock()
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

    def found(self, family: Family, should_stop: Callable[[], bool] = lambda: False) -> FoundModels:
        """The models of a family, as soon as their files are found; their networks may still be loading.

        Raises:
            MissingWeightsError: there are none of this family.
            CheckpointError, WorkerError: they could not be found.
            GenerationStopped: `should_stop` returned true.
        """
        checkpoint = self._checkpoints.of(family)
        if family.name != self._first.name:
            self._find_later(family, checkpoint)
        return wait_for(self._found[family.name], should_stop)

    def loaded(self, family: Family, should_stop: Callable[[], bool]) -> FoundModels:
        """The models of a family, once networks can be asked of them: after the start has loaded the first family's.

        Raises:
            MissingWeightsError: there are none of this family.
            CheckpointError, WorkerError: they could not be found or, at the start, loaded.
            GenerationStopped: `should_stop` returned true.
        """
        found = self.found(family, should_stop)
        wait_for(self._loaded if family.name == self._first.name else self._ended, should_stop)
        return found

    def make_room(self, wanted: FoundModels, memory: MemoryMode, workload: Workload) -> None:
        """Frees the other families' networks, unless the GPU has room for them beside those of a job.

        Args:
            wanted: the models of the job.
            memory, workload: its mode and size.
        """
        for other in self._others(wanted):
            fits = other.memory is not None and wanted.modes.has_room_beside(
                memory, workload, other.modes, other.memory
            )
            if self._one_at_a_time or not fits:
                self._release(other)
        wanted.memory = memory

    def release_others(self, kept: FoundModels) -> bool:
        """Frees the other families' networks from now on, since they have left a job too little memory.

        Returns:
            Whether there were any.
        """
        others = [other for other in self._others(kept) if other.memory is not None]
        for other in others:
            self._release(other)
        if others:
            self._one_at_a_time = True
        return bool(others)

    def _others(self, wanted: FoundModels) -> list[FoundModels]:
        """What else has been found; called once the start has ended."""
        futures = self._found.values()
        found = [future.result() for future in futures if future.done() and future.exception() is None]
        return [other for other in found if other is not wanted]

    def _release(self, found: FoundModels) -> None:
        if found.memory is not None:
            structlog.get_logger().info("model.freed", details={"model": found.models.name})
        found.models.release()
        found.memory = None

    def _find(self, checkpoint: Checkpoint) -> FoundModels:
        paths = checkpoint.files()
        modes = ModeChooser(self._measure(self._devices.first, paths), paths.family)
        return FoundModels(Models(paths, self._devices.first, self._devices.others), modes)

    def _find_later(self, family: Family, checkpoint: Checkpoint) -> None:
        """Finds models that the start does not load; if that fails, the next job tries again."""
        with self._lock:
            if self._found[family.name].done():
                return
            try:
                found = self._find(checkpoint)
            except Exception as error:
                raise self._told(error) from error
            self._found[family.name].set_result(found)

    def _told(self, error: Exception) -> Exception:
        """The error for jobs; it is logged, and this worker's health may end with it."""
        structlog.get_logger().error("model.not_loaded", exc_info=error)
        if may_load_elsewhere(error):
            self._health.mark_broken()
        return load_error(as_library_error(error))

    def with_kernels(self, choice: NetworkChoice) -> NetworkChoice:
        """The choice of the next job with the kernels that go with it, once the networks are loaded; a trial that still
        runs is stopped."""
        kernels = self._kernels.suiting(self._kernels.for_job(), choice.setup(self._devices.count))
        return replace(choice, kernels=kernels)

    def keep_compiled(self) -> bool:
        """Keeps what has been compiled, as `KernelSelection.keep_compiled`."""
        return self._kernels.keep_compiled()

    def _load(self) -> None:
        begin = time.monotonic()
        device, dtype = self._devices.first, self._devices.dtype
        waiting: Future[FoundModels] | Future[None] = self._found[self._first.name]
        try:
            found = self._find(self._checkpoints.of(self._first))
            found.memory = found.modes.choose_at_start(self._devices.count)
            self._found[self._first.name].set_result(found)
            waiting = self._loaded
            case = usual_case(found.models, self._checkpoints.of(self._first).files(), self._devices, found.memory)
            kernels = self._kernels.begin(case, found.models.name)
            choice = NetworkChoice(dtype, found.memory)
            kernels = self._kernels.suiting(kernels, choice.setup(self._devices.count))
            found.models.prepare(replace(choice, kernels=kernels))
        except Exception as error:
            waiting.set_exception(self._told(error))
        else:
            lat_ms = round((time.monotonic() - begin) * 1000)
            details = {
                "model": found.models.name,
                "device": str(device),
                "gpu": self._devices.name,
                "gpus": self._devices.count,
                "memory_mode": found.memory.describe(dtype),
            }
            structlog.get_logger().info("model.loaded", lat_ms=lat_ms, details=details)
            self._loaded.set_result(None)
        finally:
            self._ended.set_result(None)


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
        streams_blocks=memory.streams_blocks,
    )


def warm_up_sound() -> None:
    """Uses librosa once before a job needs it: its imports at the first use take seconds."""
    with tempfile.TemporaryDirectory(prefix="infinitetalk-") as folder:
        file = Path(folder) / "silence.wav"
        soundfile.write(file, np.zeros(4800, dtype=np.float32), 48_000)
        read_waveform(file)
