"""The objects that all jobs of a worker share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infinitetalk.worker.settings import Settings

if TYPE_CHECKING:
    from infinitetalk.media.credentials import ContentCredentials
    from infinitetalk.worker.engine import Engine
    from infinitetalk.worker.job.resume import JobStates


@dataclass(frozen=True)
class Resources:
    """The objects that all jobs of a worker share. Importing this module imports no network.

    Attributes:
        settings: the worker's settings.
        engine: the model, which may still be loading.
        states: the saved states of jobs, by which another worker can continue them.
        credentials: signs videos and thumbnails; None: they are not signed.
    """

    settings: Settings
    engine: Engine
    states: JobStates
    credentials: ContentCredentials | None = None
