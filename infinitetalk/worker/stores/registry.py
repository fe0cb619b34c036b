"""The kinds of stores and their names in jobs.

A new store needs a file, a line in `STORES`, and its name in `schemas.STORES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stores.base import ObjectStore, Store, StoreRequest
from infinitetalk.worker.stores.inline import open_inline
from infinitetalk.worker.stores.put import open_put
from infinitetalk.worker.stores.s3 import open_bucket, own_bucket
from infinitetalk.worker.stores.volume import open_volume, own_volume
from schemas import OutputConfig, S3Config


@dataclass(frozen=True)
class StoreKind:
    """A kind of store.

    Attributes:
        open: makes the store of a job; raises `WorkerError` if a setting, the network volume or part of the job is
            missing.
        own: returns the worker's own place of this kind, if it has one.
    """

    open: Callable[[StoreRequest], Store]
    own: Callable[[Settings], ObjectStore | None] = lambda settings: None


STORES = {
    "volume": StoreKind(open_volume, own_volume),
    "s3": StoreKind(open_bucket, own_bucket),
    "inline": StoreKind(open_inline),
    "put": StoreKind(open_put),
}
"""The kinds by `OutputConfig.store`. The first kind with a place of the worker's own holds state."""


def make_store(
    output_config: OutputConfig,
    s3_config: S3Config | None,
    settings: Settings,
    num_inline: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> Store:
    """The store that a job asks for.

    Args:
        s3_config: the job's own bucket, if it names one.
        num_inline: number of videos that share the space of the job's result.
        should_stop: is asked during requests to a store that the job names.

    Raises:
        WorkerError: the worker has no settings for the store, or no network volume.
    """
    request = StoreRequest(output_config, s3_config, settings, num_inline, should_stop)
    return STORES[output_config.store].open(request)


def own_place(settings: Settings) -> ObjectStore | None:
    """The worker's own place for objects: its network volume, else its bucket; None if it has neither."""
    places = (kind.own(settings) for kind in STORES.values())
    return next((place for place in places if place is not None), None)
