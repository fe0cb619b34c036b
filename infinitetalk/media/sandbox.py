"""Limits of the child processes that decode what users send: memory, files, their number, and no privileges."""

import os
import pwd
import shutil
import subprocess
import threading
from functools import lru_cache
from pathlib import Path

import imageio_ffmpeg

MAX_CHILD_MEMORY_BYTES = 3 * 2**30
"""Address space of a child: the largest picture that is decoded takes half of it."""

MAX_CHILD_FILE_BYTES = 2**31
"""Largest file that a child may write: 90 minutes of 48 kHz stereo float32 sound."""

MAX_CHILDREN = 2
"""Children side by side, so that all of them together have a limit too."""

UNPRIVILEGED_USERS = ("decoder", "nobody")
"""Whom a worker that runs as root lets its children run as: the first that there is."""

KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")
"""Of the worker's environment, what its children get."""

TRIAL_TIMEOUT_S = 10.0

#: Taken by whoever runs a child, for as long as it runs.
child_slots = threading.BoundedSemaphore(MAX_CHILDREN)

# A shell, since limits that are set on a running child come late, and another user's child takes none from a root
# without CAP_SYS_RESOURCE, such as a container's. POSIX counts files in blocks of 512 bytes.
# A limit that cannot be set is tighter already.
_LIMITS = '{ ulimit -c 0; ulimit -v "$1"; ulimit -f "$2"; } 2>/dev/null; shift 2; exec "$@"'


def ffmpeg_path() -> str:
    """The ffmpeg binary: `FFMPEG_BINARY` from the environment, else the one on the PATH, else imageio-ffmpeg's."""
    return os.environ.get("FFMPEG_BINARY") or shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()


def confined(command: list[str]) -> list[str]:
    """A command under the limits and, where the worker is root and may become somebody else, without privileges."""
    limits = (str(MAX_CHILD_MEMORY_BYTES // 1024), str(max(MAX_CHILD_FILE_BYTES // 512, 1)))
    return ["/bin/sh", "-c", _LIMITS, "sh", *limits, *_without_privileges(command[0]), *command]


def is_unprivileged(program: str) -> bool:
    """Whether `program` runs as another user than a worker that is root."""
    return bool(_without_privileges(program))


def keeps_root(program: str) -> bool:
    """Whether `program` runs as root: the worker is root, and its child cannot become another user."""
    return os.geteuid() == 0 and not is_unprivileged(program)


def child_environment() -> dict[str, str]:
    """The environment of a child: none of the worker's credentials, and no memory set aside for each thread."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}


@lru_cache
def _without_privileges(program: str) -> tuple[str, ...]:
    """What stands before a program to run it as an unprivileged user; nothing where that cannot be.

    It cannot where the worker is no root, a container lacks CAP_SETUID, or the program lies where others may not look.
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
    """Whether a child without privileges may open a file that it has been handed open."""
    return bool(path.stat().st_mode & 0o004)
