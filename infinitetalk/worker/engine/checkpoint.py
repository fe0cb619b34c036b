"""The checkpoints that a worker serves: the published ones, or one of the two small models of this project."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from infinitetalk.embedded.tiny import (
    DEFAULT_FOLDER,
    ensure_tiny_kokoro,
    ensure_tiny_model,
    talker_flashtalk_paths,
    talker_paths,
)
from infinitetalk.errors import CheckpointError
from infinitetalk.family import FAMILIES, FLASHTALK, INFINITETALK, Family
from infinitetalk.runtime.check import check_checkpoint
from infinitetalk.runtime.memory import choose_mode, model_sizes
from infinitetalk.weights.fingerprint import contents_of, files_that_count
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.weights.locate import MissingWeightsError, locate_all
from infinitetalk.worker.engine.placement import usual_workload
from infinitetalk.worker.settings import Settings


class Checkpoint(ABC):
    """A checkpoint as files.

    Attributes:
        is_published: whether it is the published model, not one of this project's small models.
        lora_folders: folders of LoRA files; none if there are none.
    """

    is_published: ClassVar[bool] = False

    def __init__(self, lora_folders: tuple[Path, ...]) -> None:
        self.lora_folders = lora_folders

    @abstractmethod
    def files(self) -> CheckpointPaths:
        """The paths of the files; returns once the files exist."""

    @abstractmethod
    def find_kokoro(self) -> Path:
        """The folder of Kokoro, the text-to-speech model.

        Raises:
            CheckpointError: there is none.
        """

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the contents of the weights' files; it is known before any weights are loaded.

        Raises:
            CheckpointError: a file is damaged.
        """
        paths = self.files()
        # The adapter for several speakers may be missing.
        adapters = [file for file in paths.adapters.values() if file.exists()]
        parts = (paths.base, *adapters, paths.wav2vec2)
        others = [part for part in (paths.transformer, paths.quantised) if part is not None]
        return contents_of(file for part in (*parts, *others) for file in files_that_count(part))

    def check(self) -> None:
        """Reads the headers of every file that videos need and compares them with the networks.

        Raises:
            CheckpointError: a file is missing or unfit.
        """
        for finding in check_checkpoint(self.files()):
            if finding.needed and finding.problem is not None:
                raise CheckpointError(f"{finding.part}: {finding.problem}")

    def check_memory(self, free_bytes: int) -> None:
        """Checks that a memory mode fits the free GPU memory.

        Raises:
            DoesNotFitError: none does.
        """
        paths = self.files()
        choose_mode(free_bytes, model_sizes(paths), usual_workload(paths.family))


class PublishedCheckpoint(Checkpoint):
    """InfiniteTalk over Wan 2.1, or FlashTalk."""

    is_published = True

    def __init__(self, paths: CheckpointPaths) -> None:
        super().__init__(paths.loras)
        self._paths = paths

    def files(self) -> CheckpointPaths:
        return self._paths

    def find_kokoro(self) -> Path:
        if self._paths.kokoro is None:
            raise CheckpointError(
                "tts_audio needs Kokoro-82M, which is neither in KOKORO_DIR nor on the network volume nor in the "
                "image; the worker's operator can fetch it by `python -m infinitetalk.weights download`"
            )
        return self._paths.kokoro


class EmbeddedCheckpoint(Checkpoint):
    """A small model of this project. If KOKORO_DIR is not set, a small Kokoro is made in the folder of small models."""

    def __init__(self, settings: Settings, family: Family = INFINITETALK, kernels: tuple[Path, ...] = ()) -> None:
        super().__init__(() if settings.lora_dir is None else (settings.lora_dir,))
        self._folder = settings.tiny_dir or DEFAULT_FOLDER
        self._kokoro_folder = settings.kokoro_dir
        self._kernels = kernels
        self._family = family

    def find_kokoro(self) -> Path:
        return self._kokoro_folder or ensure_tiny_kokoro(self._folder)


class TalkerCheckpoint(EmbeddedCheckpoint):
    """The small trained model that talks; its weights are in this package."""

    def files(self) -> CheckpointPaths:
        talker = TALKERS[self._family.name]()
        return replace(talker, loras=self.lora_folders, kokoro=self._kokoro_folder, kernels=self._kernels)


class RandomCheckpoint(EmbeddedCheckpoint):
    """The small model with random weights; its files are made from a seed when they are first needed."""

    @cached_property
    def fingerprint(self) -> str:
        """All workers make the same weights."""
        return f"tiny {self._family.name}"

    def files(self) -> CheckpointPaths:
        model = ensure_tiny_model(self._folder, self._family)
        return replace(model, loras=self.lora_folders, kernels=self._kernels)

    def check(self) -> None:
        """Does nothing: the files are made by the code that reads them."""

    def check_memory(self, free_bytes: int) -> None:
        """Does nothing: a few megabytes fit every GPU."""


#: The small trained model of each family, by the family's name.
TALKERS = {INFINITETALK.name: talker_paths, FLASHTALK.name: talker_flashtalk_paths}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints that a worker serves: at most one of each family. LoRAs and Kokoro are common to all.

    Attributes:
        by_family: the checkpoints by their family's name; at least one.
        absent: for each other family, by its name: names of its repositories that are missing.
    """

    by_family: Mapping[str, Checkpoint]
    absent: Mapping[str, tuple[str, ...]]

    def of(self, family: Family) -> Checkpoint:
        """The checkpoint of a family.

        Raises:
            MissingWeightsError: there is none.
        """
        if family.name not in self.by_family:
            raise MissingWeightsError(family, self.absent[family.name])
        return self.by_family[family.name]


def find_checkpoints(settings: Settings, kernels: Sequence[Path] = ()) -> Checkpoints:
    """The checkpoints that the settings name.

    Args:
        kernels: folders of kernels from the Hub, for all checkpoints.

    Raises:
        CheckpointError: a part of the published checkpoint is neither set nor found, or a folder that is set does not
            exist.
    """
    folders = tuple(kernels)
    if settings.model == "tiny":
        return Checkpoints({name: RandomCheckpoint(settings, family, folders) for name, family in FAMILIES.items()}, {})
    if settings.model == "talker":
        return Checkpoints({name: TalkerCheckpoint(settings, family, folders) for name, family in FAMILIES.items()}, {})
    located = locate_all(settings)
    checkpoints = located.checkpoints.items()
    published = {name: PublishedCheckpoint(replace(paths, kernels=folders)) for name, paths in checkpoints}
    return Checkpoints(published, located.absent)
