"""Limits of the child processes that decode user files: memory, file size, number of children, and no privileges."""

import os
import pwd
import shutil
import subprocess
import threading
from functools import lru_cache
from pathlib import Path

import imageio_ffmpeg

MAX_CHILD_MEMORY_BYTES = 3 * 2**30
"""Address space of a child; the largest image that is decoded takes half of it."""

MAX_CHILD_FILE_BYTES = 2**31
"""Largest file that a child may write: 90 minutes of 48 kHz stereo float32 sound."""

MAX_CHILDREN = 2
"""Largest number of children at a time, so that their total is limited too."""

UNPRIVILEGED_USERS = ("decoder", "nobody")
"""Users for the children of a worker that runs as root: the first one that exists."""

KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")
"""Environment variables that the worker passes to its children."""

TRIAL_TIMEOUT_S = 10.0

#: Must be held while a child runs.
child_slots = threading.BoundedSemaphore(MAX_CHILDREN)

# A shell sets the limits: setting them on a running child would be too late, and root without CAP_SYS_RESOURCE (as in a
# container) cannot set them on another user's child. POSIX counts file sizes in blocks of 512 bytes. If a limit cannot
# be set, it is already tighter.
_LIMITS = '{ ulimit -c 0; ulimit -v "$1"; ulimit -f "$2"; } 2>/dev/null; shift 2; exec "$@"'


def ffmpeg_path() -> str:
    """The ffmpeg binary: `FFMPEG_BINARY` from the environment, else the one on the PATH, else imageio-ffmpeg's."""
    return os.environ.get("FFMPEG_BINARY") or shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()


def confined(command: list[str]) -> list[str]:
    """A command under the limits and, if the worker is root and can switch users, without privileges."""
    limits = (str(MAX_CHILD_MEMORY_BYTES // 1024), str(max(MAX_CHILD_FILE_BYTES // 512, 1)))
    return ["/bin/sh", "-c", _LIMITS, "sh", *limits, *_without_privileges(command[0]), *command]


def is_unprivileged(program: str) -> bool:
    """Whether `program` runs as an unprivileged user although the worker is root."""
    return bool(_without_privileges(program))


def keeps_root(program: str) -> bool:
    """Whether `program` runs as root: the worker is root, and its child cannot become another user."""
    return os.geteuid() == 0 and not is_unprivileged(program)


def child_environment() -> dict[str, str]:
    """The environment of a child: without the worker's credentials, and with little memory reserved per thread."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}


@lru_cache
def _without_privileges(program: str) -> tuple[str, ...]:
    """The command prefix that runs a program as an unprivileged user; empty if that is impossible.

    It is impossible if the worker is not root, the container lacks CAP_SETUID, or other users cannot reach the program.
    """
    setpriv = shutil.which("setpriv")
    user = next((found for name in UNPRIVILEGED_USERS if (found := _user(name)) is not None), None)
    if os.geteuid() != 0 or setpriv is None or user is None:
        return ()
    prefix = (
        setpriv,
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        "--clear-groups",
        "--no-new-privs",
    )
    trial = [*prefix, "/bin/sh", "-c", 'test -x "$(command -v "$1")"', "sh", program]
    try:
        tried = subprocess.run(trial, capture_output=True, timeout=TRIAL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return prefix if tried.returncode == 0 else ()


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def readable_by_others(path: Path) -> bool:
    """Whether an unprivileged child can reopen a file through its standard input."""
    return bool(path.stat().st_mode & 0o004)
