"""The first hour on a GPU: one command that says whether to trust the worker, what it costs, and what to set.

`python -m tools.first_hour --help`; docs/first-hour.md.
"""

import sys
from pathlib import Path

from infinitetalk.worker.settings import default_environment

default_environment()
# The client, by the name that it has where it is installed.
sys.path.append(str(Path(__file__).parents[2] / "examples"))
