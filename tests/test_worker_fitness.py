"""The SDK's own checks: those that import torch do not keep the first job waiting."""

import pytest
from runpod.serverless.modules import rp_fitness, rp_system_fitness

from infinitetalk.worker.machine.fitness import IMPORT_TORCH, register_checks
from infinitetalk.worker.settings import Settings


def test_the_sdks_checks_that_import_torch_are_left_to_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[object] = []
    monkeypatch.setattr(rp_fitness, "_fitness_checks", registered)
    monkeypatch.setattr(rp_fitness, "_registration_state", {"gpu_check": False, "system_checks": False})
    monkeypatch.setattr(rp_system_fitness, "gpu_available", lambda: True)
    monkeypatch.delenv("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", raising=False)
    later = register_checks(Settings())
    assert [check.__name__ for check in later] == list(IMPORT_TORCH)
    names = [check.__name__ for check in registered]
    assert {"ffmpeg", "temporary_space", "_memory_check", "_cuda_version_check"} <= set(names)
    assert not set(IMPORT_TORCH) & set(names)
