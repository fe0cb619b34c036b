"""The kernels of a worker's jobs: those of the setting KERNELS, or the fastest by a trial at this worker's start."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import structlog

from infinitetalk.runtime.kernels.bench import Case
from infinitetalk.runtime.kernels.compiled import CompiledBlocks
from infinitetalk.runtime.kernels.findings import Findings, Machine, machine_of, read_findings, write_findings
from infinitetalk.runtime.kernels.registry import (
    CANDIDATES,
    PUBLISHED,
    Candidate,
    Kernels,
    Setup,
    candidate_named,
    kernels_named,
    suitable,
)
from infinitetalk.runtime.kernels.trial import Limits, Outcome, fastest, remaining_of, try_all
from infinitetalk.worker.engine.placement import Devices
from infinitetalk.worker.settings import Settings

AUTO, PUBLISHED_SETTING = "auto", "published"
LIMITS = Limits()
FOLDER = Path("infinitetalk") / "kernels"
"""Folder of the findings, below OUTPUT_DIR."""


def setting_of_kernels(settings: Settings, devices: Devices) -> str:
    """The setting KERNELS, or what stands for it."""
    return settings.kernels or (AUTO if devices.first.type == "cuda" else PUBLISHED_SETTING)


class KernelSelection:
    """Chooses the kernels of jobs.

    Args:
        settings: the worker's settings.
        devices: the devices of the networks.
        candidates: the kernels to try.
        limits: time limits of the trial.

    Raises:
        CheckpointError: the setting KERNELS names an unknown kernel, one that was not fetched, or two for one part.
    """

    def __init__(
        self,
        settings: Settings,
        devices: Devices,
        candidates: Sequence[Candidate] = CANDIDATES,
        limits: Limits = LIMITS,
    ) -> None:
        setting = setting_of_kernels(settings, devices)
        self._is_auto = setting == AUTO
        names = [] if setting in (AUTO, PUBLISHED_SETTING) else [name.strip() for name in setting.split(",")]
        self._chosen = kernels_named(names, candidates)
        self._folder = settings.output_dir / FOLDER
        self._candidates = list(candidates)
        self._num_devices = devices.count
        self._limits = limits
        self._outcomes: tuple[Outcome, ...] = ()
        self._compiled: CompiledBlocks | None = None
        self._should_stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, case: Case, model_name: str) -> Kernels:
        """The kernels to load networks with. If KERNELS is "auto" and a kernel has not been tried on this machine yet,
        these are the published ones, and a trial begins in another thread.

        Args:
            case: what kernels are tried on.
            model_name: name of the checkpoint.
        """
        if not (self._is_auto or candidate_named(self._chosen.blocks).is_compiled):
            return self._chosen
        subject = f"{model_name}, {describe(case)}"
        try:
            machine = machine_of(case.device, subject, self._candidates)
        except (OSError, subprocess.SubprocessError) as error:
            # Without the driver's version, nobody would notice that what was found no longer holds.
            self._log("warning", "kernels.not_tried", reason=f"nvidia-smi: {type(error).__name__}")
            return self._chosen
        setup = Setup(case.quantisation, case.streams_blocks, num_devices=self._num_devices)
        self._candidates = [each for each in self._candidates if each.obstacle(setup) is None]
        if any(candidate.is_compiled for candidate in self._candidates):
            self._compiled = CompiledBlocks(self._folder, machine, case.paths.findings)
            if loaded := self._compiled.load():
                packed = None if case.paths.findings is None else str(case.paths.findings)
                self._log("info", "kernels.compiled_loaded", artifacts=loaded, packed=packed)
        if not self._is_auto:
            return self._chosen
        own = read_findings(self._folder, machine)
        packed_outcomes = () if case.paths.findings is None else read_findings(case.paths.findings, machine)
        # A trial that a job has stopped knows a part.
        self._outcomes = tuple({each.name: each for each in (*packed_outcomes, *own)}.values())
        sources = {"the volume": own, f"the pack ({case.paths.findings})": packed_outcomes}
        source = " and ".join(name for name, outcomes in sources.items() if outcomes)
        for candidate in self._candidates:
            if not candidate.is_installed:
                self._log("info", "kernels.skipped", kernel=candidate.name, reason=candidate.lack)
        if not remaining_of(self._candidates, self._outcomes):
            self._choose(source)
            return self._chosen
        self._thread = threading.Thread(target=self._try, args=(case, machine), name="kernels")
        self._thread.start()
        return self._chosen

    def suiting(self, kernels: Kernels, setup: Setup) -> Kernels:
        """These kernels, with the published one for each that does not go with a setup; the log says why."""
        found, reasons = suitable(kernels, setup)
        for name, reason in reasons.items():
            self._log("info", "kernels.left_out", kernel=name, reason=reason)
        return found

    def for_job(self) -> Kernels:
        """The kernels of the next job. A trial that still runs is stopped, since it would take the job's memory and
        time; this job gets the published kernels, later ones the best that were found by then."""
        if self._thread is None:
            return self._chosen
        if not self._thread.is_alive():
            self._thread = None
            return self._chosen
        self.finish()
        self._log("info", "kernels.trial_stopped", reason="a job came", kernels=describe_kernels(PUBLISHED))
        return PUBLISHED

    def keep_compiled(self) -> bool:
        """Stores what the compiler has made since the last call, for the next start.

        Returns:
            Whether there is any.
        """
        if self._compiled is None or not candidate_named(self._chosen.blocks).is_compiled:
            return False
        try:
            return self._compiled.store()
        except OSError as error:
            self._log("warning", "kernels.not_stored", reason=type(error).__name__, remedy="attach a network volume")
            return True

    def finish(self) -> None:
        """Ends a trial that still runs, and waits for its end."""
        self._should_stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _try(self, case: Case, machine: Machine) -> None:
        try:
            outcomes = try_all(case, self._candidates, self._outcomes, self._limits, self._should_stop.is_set)
            with closing(outcomes):
                for outcome in outcomes:
                    # Each new process measures the published kernels again.
                    by_name = {each.name: each for each in self._outcomes} | {outcome.name: outcome}
                    self._outcomes = tuple(by_name.values())
                    self._log("info", "kernels.tried", outcome=str(outcome))
                    self._store(machine)
        # The worker serves jobs by the published kernels, whatever prevents a trial.
        except Exception as error:
            structlog.get_logger().error("kernels.trial_failed", exc_info=error)
        self._choose("a trial")

    def _store(self, machine: Machine) -> None:
        try:
            write_findings(self._folder, Findings(machine=machine, outcomes=self._outcomes))
        except OSError as error:
            self._log("warning", "kernels.not_stored", reason=type(error).__name__, remedy="attach a network volume")

    def _choose(self, source: str) -> None:
        # What another image has found may need packages that this one lacks.
        usable = {candidate.name for candidate in self._candidates if candidate.is_installed}
        self._chosen = fastest([outcome for outcome in self._outcomes if outcome.name in usable])
        tried = [str(outcome) for outcome in self._outcomes]
        self._log("info", "kernels.chosen", kernels=describe_kernels(self._chosen), source=source, tried=tried)

    @staticmethod
    def _log(level: str, event: str, **details: object) -> None:
        getattr(structlog.get_logger(), level)(event, details=details)


def describe_kernels(kernels: Kernels) -> str:
    """For the log."""
    return str(kernels) or "the published ones"


def describe(case: Case) -> str:
    """The facts of a case that what is found depends on."""
    tiles = ", VAE in tiles" if case.vae_tiling else ""
    precision = case.quantisation or str(case.dtype).removeprefix("torch.")
    return f"{precision}, {case.num_frames} frames of {case.width}x{case.height}{tiles}"
