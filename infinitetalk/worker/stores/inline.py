"""Results as base64 in the result itself, for small videos."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import MEGABYTE
from infinitetalk.worker.stores.base import Artifacts, Store, StoreRequest, Transfer
from schemas import ErrorCode

RESULT_OVERHEAD_BYTES = 100_000
"""Space reserved for the rest of a result beside inline media."""


class InlineStore(Store):
    """Base64 in the result itself.

    Args:
        max_characters: largest total length of video and thumbnail in base64.
    """

    def __init__(self, max_characters: int) -> None:
        super().__init__()
        self.max_characters = max_characters

    def check(self) -> None:
        """Does nothing: the size of the video is not known yet."""

    def check_size(self, count_bytes: Callable[[], int]) -> None:
        self._check_characters(count_bytes() * 4 // 3)

    def _save(self, name: str, artifacts: Artifacts, transfer: Transfer) -> dict[str, Any]:
        encoded = {
            "data": base64.b64encode(artifacts.video.read_bytes()).decode("ascii"),
            "thumbnail_data": base64.b64encode(artifacts.thumbnail.read_bytes()).decode("ascii"),
        }
        self._check_characters(sum(len(text) for text in encoded.values()))
        return encoded

    def _check_characters(self, characters: int) -> None:
        if characters > self.max_characters:
            raise WorkerError(
                ErrorCode.UPLOAD,
                f"the video is too large for an inline result ({characters / MEGABYTE:.1f} MB in base64, at most "
                f'{self.max_characters / MEGABYTE:g} MB); use output_config.store "s3" or "volume", or fewer frames',
                retryable=False,
            )


def open_inline(request: StoreRequest) -> Store:
    """The store of a job that returns its video inside the result. The videos of a batch share the space."""
    return InlineStore(request.settings.max_result_bytes // request.num_inline - RESULT_OVERHEAD_BYTES)
