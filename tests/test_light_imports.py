"""What refuses a job is imported in a moment, without torch."""

import json
import subprocess
import sys

import pytest

VALIDATION = ("infinitetalk", "schemas", "infinitetalk.worker.errors", "infinitetalk.worker.job.payload")
QUEUE = (
    "infinitetalk.worker.queue.delivery",
    "infinitetalk.worker.machine.fitness",
    "infinitetalk.worker.queue.ping",
    "infinitetalk.worker.queue.startup",
    "infinitetalk.worker.queue.runner",
    "infinitetalk.worker.queue.taking",
)
HEAVY = {"torch", "numpy", "librosa", "diffusers", "transformers", "av", "PIL", "boto3"}
LIMIT_S = 1.0
ATTEMPTS = 5
"""Other work on the machine makes a processor slower; it makes none faster."""

PROGRAM = """
import importlib, json, sys, time
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps([time.process_time(), sorted(sys.modules)]))
"""


def fresh_import(modules: tuple[str, ...]) -> tuple[float, set[str]]:
    """Seconds of processor time that a new interpreter needs to import modules, and all that it has then imported."""
    finished = subprocess.run([sys.executable, "-c", PROGRAM, *modules], check=True, capture_output=True, text=True)
    seconds, imported = json.loads(finished.stdout)
    return seconds, set(imported)


@pytest.mark.parametrize("modules", [VALIDATION, QUEUE], ids=["validation", "queue"])
def test_what_refuses_a_job_imports_no_network(modules: tuple[str, ...]) -> None:
    _, imported = fresh_import(modules)
    assert not HEAVY & imported


def test_validation_is_imported_in_less_than_a_second() -> None:
    measured: list[float] = []
    while len(measured) < ATTEMPTS and min(measured, default=LIMIT_S) >= LIMIT_S:
        measured.append(fresh_import(VALIDATION)[0])
    assert min(measured) < LIMIT_S, measured
