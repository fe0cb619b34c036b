"""Kernels are chosen by trying them: bad ones do no harm, and what was found is used until the machine changes."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from structlog.testing import capture_logs

from infinitetalk.embedded.tiny import talker_paths
from infinitetalk.errors import CheckpointError
from infinitetalk.media.decode import MediaInfo
from infinitetalk.runtime.kernels.bench import BlockBench, Case, VaeBench
from infinitetalk.runtime.kernels.findings import Findings, Machine, machine_of, read_findings, write_findings
from infinitetalk.runtime.kernels.registry import (
    CANDIDATES,
    CPP_COMPILERS,
    PUBLISHED,
    Kernels,
    Setup,
    candidate_named,
    kernels_named,
    suitable,
)
from infinitetalk.runtime.kernels.trial import Limits, Outcome, fastest, remaining_of
from infinitetalk.worker.engine import Engine, kernels
from infinitetalk.worker.engine.kernels import KernelSelection
from infinitetalk.worker.engine.placement import Devices
from infinitetalk.worker.settings import Settings
from schemas import SingleJob
from tests import made_kernels as made
from tests.job_inputs import small_job

CPU = torch.device("cpu")
CASE = Case(talker_paths(), CPU, torch.float32, quantisation=None, num_frames=13, height=64, width=64, vae_tiling=False)
MODEL = "tiny-talker"
HANG_S = 10.0
TRIAL_S = 1200.0
"""The trial's time limit here: processes start slowly on a busy machine."""

Lines = list[dict[str, Any]]


def selection(folder: Path, *candidates: Any, setting: str = "auto", candidate_s: float = HANG_S) -> KernelSelection:
    settings = Settings(output_dir=folder, kernels=setting)
    limits = Limits(TRIAL_S, candidate_s)
    return KernelSelection(settings, Devices(CPU, 1), candidates or made.ALL, limits)


def tried(chosen: KernelSelection) -> Lines:
    """Begins, waits for the trial's end, and returns the lines of the log."""
    with capture_logs() as lines:
        assert chosen.begin(CASE, MODEL) == PUBLISHED
        assert chosen._thread is not None
        chosen._thread.join()
    return lines


def events(lines: Lines, name: str) -> list[dict[str, Any]]:
    return [line["details"] for line in lines if line["event"] == name]


@pytest.fixture(scope="module")
def first_start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KernelSelection, Lines]:
    """A worker's first start on a machine: its folder, its choice, its log."""
    folder = tmp_path_factory.mktemp("volume")
    chosen = selection(folder)
    return folder, chosen, tried(chosen)


@pytest.mark.slow
def test_a_bad_kernel_costs_nothing_but_its_own_trial(first_start: tuple[Path, KernelSelection, Lines]) -> None:
    _, chosen, lines = first_start
    outcomes = {outcome.name: outcome for outcome in chosen._outcomes}
    assert {name: outcome.verdict for name, outcome in outcomes.items()} == {
        "published": "published",
        "wrong": "inexact",
        "crashing": "crashed",
        "hanging": "hung",
        "refusing": "failed",
        "not finite": "failed",
        "slow": "within",
        "good": "within",
    }
    assert outcomes["crashing"].reason == "exit code -6"
    assert outcomes["hanging"].reason == "no result within 10 s"
    assert outcomes["refusing"].reason == "RuntimeError: no kernel image is available"
    assert outcomes["not finite"].reason == "NotFiniteError: its results are not finite"
    assert outcomes["wrong"].error > 2 * made.BOUND
    assert outcomes["good"].seconds < outcomes["published"].seconds < outcomes["slow"].seconds
    assert chosen.for_job() == Kernels(attention="good")
    assert events(lines, "kernels.skipped") == [
        {"kernel": "absent", "reason": "the package no_such_package is missing"}
    ]
    (line,) = events(lines, "kernels.chosen")
    assert (line["kernels"], line["source"], len(line["tried"])) == ("good", "a trial", 8)
    assert not [child for child in psutil.Process().children() if "spawn" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_the_next_start_takes_what_was_found_without_a_trial(
    first_start: tuple[Path, KernelSelection, Lines],
) -> None:
    folder, first, _ = first_start
    again = selection(folder)
    with capture_logs() as lines:
        assert again.begin(CASE, MODEL) == Kernels(attention="good")
    assert again._thread is None
    assert again._outcomes == first._outcomes
    assert events(lines, "kernels.chosen")[0]["source"] == "the volume"


def test_what_came_with_the_weights_is_taken_where_the_volume_knows_nothing(tmp_path: Path) -> None:
    pair = made.PUBLISHED, made.GOOD
    machine = machine_of(CPU, f"{MODEL}, {kernels.describe(CASE)}", pair)
    known = outcome("published", "published", 2.0), outcome("good", "within", 1.0)
    write_findings(tmp_path / "pack", Findings(machine=machine, outcomes=known))
    case = replace(CASE, paths=replace(CASE.paths, findings=tmp_path / "pack"))
    with capture_logs() as lines:
        assert selection(tmp_path / "volume", *pair).begin(case, MODEL) == Kernels(attention="good")
    assert events(lines, "kernels.chosen")[0]["source"] == f"the pack ({tmp_path / 'pack'})"


def test_what_a_stopped_trial_has_found_counts_beside_what_came_with_the_weights(tmp_path: Path) -> None:
    pair = made.PUBLISHED, made.GOOD
    machine = machine_of(CPU, f"{MODEL}, {kernels.describe(CASE)}", pair)
    known = outcome("published", "published", 2.0), outcome("good", "within", 1.0)
    own = outcome("published", "published", 1.5)
    write_findings(tmp_path / "pack", Findings(machine=machine, outcomes=known))
    write_findings(tmp_path / "volume" / kernels.FOLDER, Findings(machine=machine, outcomes=(own,)))
    chosen = selection(tmp_path / "volume", *pair)
    with capture_logs() as lines:
        assert chosen.begin(replace(CASE, paths=replace(CASE.paths, findings=tmp_path / "pack")), MODEL) == Kernels(
            attention="good"
        )
    assert chosen._thread is None
    assert chosen._outcomes == (own, known[1])
    assert events(lines, "kernels.chosen")[0]["source"] == f"the volume and the pack ({tmp_path / 'pack'})"


@pytest.mark.slow
def test_a_new_kernel_is_tried_beside_what_is_known(first_start: tuple[Path, KernelSelection, Lines]) -> None:
    _, first, _ = first_start
    known = [outcome for outcome in first._outcomes if outcome.name != "good"]
    assert [each.name for each in remaining_of(made.ALL, known)] == ["good"]
    assert remaining_of(made.ALL, first._outcomes) == []


@pytest.mark.slow
def test_after_a_change_of_driver_kernels_are_tried_again_and_a_damaged_file_is_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = made.PUBLISHED, made.GOOD
    chosen = selection(tmp_path, *pair)
    folder = tmp_path / "infinitetalk" / "kernels"
    old = machine_of(CPU, f"{MODEL}, {kernels.describe(CASE)}", pair)
    write_findings(folder, Findings(machine=old, outcomes=(outcome("published", "published", 1.0),)))
    write_findings(
        folder, Findings(machine=old, outcomes=(*read_findings(folder, old), outcome("good", "within", 2.0)))
    )
    with capture_logs():
        assert chosen.begin(CASE, MODEL) == PUBLISHED, "it is known to be slower"
    assert chosen._thread is None

    new = old.model_copy(update={"driver": "581.1"})
    monkeypatch.setattr(kernels, "machine_of", lambda *_: new)
    damaged = folder / new.file_name
    damaged.write_bytes((folder / old.file_name).read_bytes()[:-20])
    again = selection(tmp_path, *pair)
    lines = tried(again)
    assert events(lines, "kernels.file_damaged") == [{"file": damaged.name, "reason": "ValidationError"}]
    assert [line["outcome"].partition(":")[0] for line in events(lines, "kernels.tried")] == ["published", "good"]
    assert again.for_job() == Kernels(attention="good")
    assert read_findings(folder, new) == again._outcomes
    # Another host may still have the old driver.
    assert len(read_findings(folder, old)) == 2


def test_a_job_that_comes_during_a_trial_has_the_published_kernels_and_ends_it(tmp_path: Path) -> None:
    chosen = selection(tmp_path, made.PUBLISHED, made.made("hanging"), candidate_s=TRIAL_S)
    with capture_logs() as lines:
        chosen.begin(CASE, MODEL)
        thread = chosen._thread
        assert chosen.for_job() == PUBLISHED
    assert not thread.is_alive()
    assert events(lines, "kernels.trial_stopped")[0]["reason"] == "a job came"
    assert not [child for child in psutil.Process().children() if "spawn" in " ".join(child.cmdline())]


# Verdicts, findings, names.


MACHINE = Machine(gpu="NVIDIA H200", driver="580.159", torch="2.13.0", code="c0de", subject="a block")


def outcome(name: str, verdict: str, seconds: float | None, part: str = "attention") -> Outcome:
    bound = None if verdict == "published" else 0.01
    return Outcome(name=name, part=part, verdict=verdict, seconds=seconds, error=0.001, difference=0.001, bound=bound)


def test_the_fastest_within_its_bound_wins_in_each_part() -> None:
    found = [
        outcome("native", "published", 1.0),
        outcome("wrong", "inexact", 0.1),
        outcome("good", "within", 0.7),
        outcome("better", "within", 0.6),
        outcome("vae_float32", "published", 1.0, "vae"),
        outcome("vae_bf16", "within", 0.99, "vae"),
    ]
    assert fastest(found) == Kernels(attention="better"), "1 % is noise"
    assert fastest(found[:2]) == fastest([]) == PUBLISHED


def test_a_part_whose_published_kernel_fails_is_given_up() -> None:
    failed = Outcome(name="published", part="attention", verdict="failed", reason="out of memory")
    assert remaining_of(made.ALL, [failed]) == []


def test_findings_are_read_for_their_own_machine_alone(tmp_path: Path) -> None:
    findings = Findings(machine=MACHINE, outcomes=(outcome("native", "published", 1.0),))
    assert read_findings(tmp_path, MACHINE) == ()
    write_findings(tmp_path / "kernels", findings)
    write_findings(tmp_path / "kernels", findings)
    (file,) = (tmp_path / "kernels").iterdir()
    assert file.name.startswith("nvidia-h200-")
    assert read_findings(tmp_path / "kernels", MACHINE) == findings.outcomes
    for change in ("gpu", "driver", "torch", "code", "subject"):
        other = MACHINE.model_copy(update={change: "another"})
        assert read_findings(tmp_path / "kernels", other) == ()
        # Under the wrong name, it is not believed.
        file.rename(file.with_name(other.file_name))
        with capture_logs() as lines:
            assert read_findings(tmp_path / "kernels", other) == ()
        assert lines[0]["event"] == "kernels.file_damaged"
        file.with_name(other.file_name).rename(file)


def test_a_volume_that_cannot_be_written_is_logged_and_the_choice_stays(tmp_path: Path) -> None:
    (tmp_path / "infinitetalk").write_text("a file in the folder's place")
    chosen = selection(tmp_path, made.PUBLISHED, made.GOOD)
    with capture_logs() as lines:
        chosen._store(MACHINE)
    assert events(lines, "kernels.not_stored") == [
        {"reason": "NotADirectoryError", "remedy": "attach a network volume"}
    ]


def test_the_setting_names_kernels(tmp_path: Path) -> None:
    assert kernels_named(["sage", "vae_bf16"]) == Kernels("sage", vae="vae_bf16")
    assert str(Kernels("sage", "fp8_rows")) == "sage, fp8_rows"
    assert str(Kernels("sage", vae="vae_bf16")) == "sage, vae_bf16"
    assert selection(tmp_path, *CANDIDATES, setting="published").begin(CASE, MODEL) == PUBLISHED
    assert KernelSelection(Settings(output_dir=tmp_path), Devices(CPU, 1)).begin(CASE, MODEL) == PUBLISHED
    named = selection(tmp_path, *CANDIDATES, setting="sage, vae_bf16")
    assert named.begin(CASE, MODEL) == named.for_job() == Kernels("sage", vae="vae_bf16")
    with pytest.raises(CheckpointError, match="there is no kernel 'fast'; there are native, "):
        selection(tmp_path, *CANDIDATES, setting="fast")
    with pytest.raises(CheckpointError, match="'sage' and 'cudnn' are both for the part attention; name one"):
        selection(tmp_path, *CANDIDATES, setting="sage,cudnn")


def test_the_first_kernel_of_each_part_is_the_published_one_and_names_are_unique() -> None:
    assert len({candidate.name for candidate in CANDIDATES}) == len(CANDIDATES)
    parts: dict[str, list[bool]] = {}
    for candidate in CANDIDATES:
        parts.setdefault(candidate.part, []).append(candidate.is_published)
    assert all(flags[0] and not any(flags[1:]) for flags in parts.values())
    assert kernels_named([each.name for each in CANDIDATES if each.is_published]) == PUBLISHED


def test_a_kernel_for_another_form_of_weights_is_left_out() -> None:
    wanted = Kernels("sage", "fp8_rows", "vae_bf16")
    assert suitable(wanted, Setup("fp8")) == (wanted, {})
    for setup in (Setup("int8"), Setup()):
        found = Kernels("sage", "widened", "vae_bf16"), {"fp8_rows": "it is for weights in fp8"}
        assert suitable(wanted, setup) == found


def test_results_name_the_kernels_that_ran(tmp_path: Path) -> None:
    engine = Engine(Settings(infinitetalk_model="tiny", output_dir=tmp_path, kernels="torch_flash,fp8_rows,vae_bf16"))
    engine.start()
    engine.finish_loading()
    picture = MediaInfo("image", height=640, width=640, duration_s=0.0, has_audio=False)
    networks = engine.prepare(SingleJob.model_validate(small_job()), picture)
    assert engine.memory_mode(networks.choice) == "float32, kernels torch_flash, vae_bf16"
    assert str(engine.arithmetic(networks.choice)) == "float32 on CPU (attention: torch_flash, VAE: vae_bf16)"
    assert networks.vae.dtype == torch.bfloat16
    in_fp8 = engine.prepare(SingleJob.model_validate(small_job(quant="fp8")), picture)
    assert engine.memory_mode(in_fp8.choice) == "fp8, kernels torch_flash, fp8_rows, vae_bf16"
    assert "attention: torch_flash, products: fp8_rows, VAE" in str(engine.arithmetic(in_fp8.choice))


@pytest.mark.skipif(not any(shutil.which(name) for name in CPP_COMPILERS), reason="there is no C++ compiler")
def test_results_name_compiled_blocks_where_they_ran(tmp_path: Path) -> None:
    engine = Engine(Settings(infinitetalk_model="tiny", output_dir=tmp_path, kernels="compiled"))
    engine.start()
    engine.finish_loading()
    picture = MediaInfo("image", height=640, width=640, duration_s=0.0, has_audio=False)
    choice = engine.prepare(SingleJob.model_validate(small_job()), picture).choice
    assert engine.memory_mode(choice) == "float32, kernels compiled"
    assert str(engine.arithmetic(choice)) == "float32 on CPU (attention: native, blocks: compiled)"
    with capture_logs() as lines:
        streamed = engine.prepare(SingleJob.model_validate(small_job(num_persistent_param_in_dit=0)), picture).choice
    assert "compiled" not in engine.memory_mode(streamed)
    assert "compiled" not in str(engine.arithmetic(streamed))
    assert events(lines, "kernels.left_out") == [{"kernel": "compiled", "reason": "streamed blocks cannot be compiled"}]


# The computations on which kernels are tried.


@pytest.fixture(scope="module")
def narrow_block() -> Iterator[BlockBench]:
    with torch.no_grad():
        yield BlockBench(replace(CASE, dtype=torch.bfloat16))


@torch.no_grad()
def test_the_published_attention_has_the_rounding_of_its_dtype_and_no_more(narrow_block: BlockBench) -> None:
    wide = BlockBench(CASE)
    wide.use(candidate_named("native"))
    assert wide.error() < 1e-5
    narrow_block.use(candidate_named("native"))
    assert 1e-4 < narrow_block.error() < 0.02
    first = narrow_block.compute()
    assert narrow_block.difference(narrow_block.compute(), first) == 0


@torch.no_grad()
def test_a_wrong_attention_shows_at_both_sizes(narrow_block: BlockBench) -> None:
    narrow_block.use(candidate_named("native"))
    published = narrow_block.compute()
    narrow_block.use(made.made("wrong"))
    assert narrow_block.error() > 0.05
    assert narrow_block.difference(narrow_block.compute(), published) > 0.05


@torch.no_grad()
def test_quantised_weights_are_no_error_of_a_kernel() -> None:
    bench = BlockBench(replace(CASE, quantisation="fp8"))
    bench.use(candidate_named("native"))
    assert bench.error() < 1e-3


@torch.no_grad()
def test_products_of_8_bit_numbers_are_within_their_bound_and_leave_no_trace() -> None:
    bench = BlockBench(replace(CASE, dtype=torch.bfloat16, quantisation="fp8"))
    bench.use(candidate_named("widened"))
    published, widened = bench.compute(), bench.error()
    candidate = candidate_named("fp8_rows")
    bench.use(candidate)
    assert widened + 1e-3 < bench.error() < widened + candidate.bound
    bench.use(candidate_named("widened"))
    assert torch.equal(bench.compute(), published)


@torch.no_grad()
def test_a_vae_in_bfloat16_is_within_its_bound() -> None:
    bench = VaeBench(replace(CASE, height=32, width=32))
    bench.use(candidate_named("vae_float32"))
    assert bench.error() == 0
    candidate = candidate_named("vae_bf16")
    bench.use(candidate)
    assert 1e-4 < bench.error() < candidate.bound
