"""Fingerprints of weight files from samples of their contents: name, size and time do not identify a file.

A checkpoint of a hundred gigabytes is too large to hash whole. Of a safetensors file, the header and pieces of every
tensor are hashed, so that further training, merging or quantising of any tensor changes the result. Of other large
files, both ends are hashed (a pickle's last bytes hold the checksums of all its tensors), and pieces between them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from infinitetalk.weights.files import SafetensorsFile, is_tensor_file

#: Files up to this size are hashed whole.
WHOLE_BYTES = 4 << 20
#: Bytes read at the start, middle and end of each tensor; in other files, the number of such pieces, and the bytes read
#: at each end.
PIECE_BYTES, PIECES, END_BYTES = 4096, 1024, 1 << 20
#: Number of files with a cached result, and of files read in parallel.
KEPT_FILES, READERS = 4096, 8
#: Suffixes of a checkpoint's other relevant files: configurations and tokenizers.
_SETTINGS = (".json", ".model")


def contents_of(files: Iterable[Path]) -> str:
    """A digest of several files' contents, in their order; their folders and names do not count.

    Raises:
        CheckpointError: a safetensors file is damaged.
        OSError: a file cannot be read.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="fingerprint") as pool:
        digests = list(pool.map(content_of, files))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def content_of(file: Path) -> bytes:
    """A digest of one file's content, cached until the file is replaced or its time or size changes.

    Raises:
        CheckpointError: a safetensors file is damaged.
        OSError: the file cannot be read.
    """
    status = file.stat()
    return _read(file, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


def files_that_count(part: Path) -> list[Path]:
    """The files of a checkpoint's part that affect its results, in the order of their names.

    A folder from a hub also holds texts, and hidden files with the time of the download.
    """
    if not part.is_dir():
        return [part]
    files = (file for file in part.rglob("*") if file.is_file() and (is_tensor_file(file) or file.suffix in _SETTINGS))
    return sorted(file for file in files if not any(name.startswith(".") for name in file.relative_to(part).parts))


@lru_cache(maxsize=KEPT_FILES)
def _read(file: Path, version: tuple[int, ...]) -> bytes:
    size = file.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with file.open("rb", buffering=0) as opened:
        for begin, end in _spans(file, size):
            digest.update(os.pread(opened.fileno(), end - begin, begin))
    return digest.digest()


def _spans(file: Path, size: int) -> Iterator[tuple[int, int]]:
    """The pieces to read, as (first byte, byte after the last)."""
    if size <= WHOLE_BYTES:
        yield 0, size
    elif file.suffix.lower() == ".safetensors":
        tensors = SafetensorsFile(file)
        yield 0, tensors.header_bytes
        for begin, end in tensors.spans.values():
            if end - begin <= 3 * PIECE_BYTES:
                yield begin, end
                continue
            for piece in (begin, (begin + end) // 2, end - PIECE_BYTES):
                yield piece, piece + PIECE_BYTES
    else:
        yield 0, END_BYTES
        yield size - END_BYTES, size
        for place in range(0, size, max(size // PIECES, PIECE_BYTES)):
            yield place, min(place + PIECE_BYTES, size)
