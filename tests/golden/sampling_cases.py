"""Cases 10 and 11: the schedule and guidance."""

import re

import torch
from torch import Tensor

from infinitetalk.generation.guidance import AdaptiveProjectedGuidance, Branch
from infinitetalk.generation.sampling import TRAIN_TIMESTEPS, EulerStepper, GenerationSettings, make_guidance
from tests.golden.folder import Case, Outcome
from tests.golden.formulas import evaluate_sum, number_after

#: The index's names of the predictions.
BRANCHES = {
    "cond": Branch.CONDITIONAL,
    "drop_text": Branch.NEGATIVE_TEXT,
    "drop_audio": Branch.NO_AUDIO,
    "uncond": Branch.UNCONDITIONAL,
}


def timesteps(case: Case) -> Outcome:
    """Case 10: names say the number of steps and the shift."""
    outcome = Outcome()
    for name in case.tensors:
        stepper = EulerStepper(int(number_after("steps", name)), number_after("shift", name))
        outcome.tensors[name] = stepper.sigmas * TRAIN_TIMESTEPS
    return outcome


def guidance(case: Case) -> Outcome:
    """Case 11: a few steps of each way to combine predictions."""
    steps = _predictions(case)
    outcome = Outcome()
    for run in (run for run in case.runs if run["name"] in case.tensors):
        settings = GenerationSettings(
            text_guide_scale=run["text_scale"],
            audio_guide_scale=run["audio_scale"],
            use_apg=run["apg_threshold"] is not None,
            apg_momentum=run["momentum"] or 0.0,
            apg_norm_threshold=run["apg_threshold"] or 0.0,
        )
        combine = make_guidance(settings)
        combined = []
        for index, predictions in enumerate(steps):
            combined.append(combine(predictions))
            if isinstance(combine, AdaptiveProjectedGuidance):
                tolerance = case.tolerance(run["name"])
                for average, want in zip(combine.running_averages, run["momentum_buffer_norms"][index], strict=True):
                    got = 0.0 if average is None else average.norm().item()
                    near = abs(got - want) <= tolerance.atol + tolerance.rtol * want
                    outcome.facts.append((f"{run['name']} running average {index}", want if near else got, want))
        outcome.tensors[run["name"]] = torch.stack(combined)[:, _channels(case.meaning(run["name"]))]
    return outcome


def _predictions(case: Case) -> list[dict[Branch, Tensor]]:
    """Predictions of every step, by the sums that the note writes: "step i of 3: cond=…; drop_text=cond+…"."""
    note, shape, prefix = case.inputs["note"], case.inputs["shape"], case.inputs.get("P", case.key_prefix)
    sums = re.findall(r"(\w+)=((?:\w+\s*[+-]\s*)*formula_input\([^)]*\))", note)
    steps = []
    for step in range(int(number_after("step i of", note))):
        known: dict[str, Tensor] = {}
        for name, text in sums:
            arrays = {key: value.numpy() for key, value in known.items()}
            known[name] = torch.from_numpy(evaluate_sum(text, arrays, prefix, step, shape))
        steps.append({BRANCHES[name]: value for name, value in known.items()})
    return steps


def _channels(meaning: str) -> slice:
    """Which channels a tensor keeps: "channels 0,3,6,... only"; all when it does not say."""
    kept = re.search(r"channels (\d+),\s*(\d+)", meaning)
    return slice(None) if kept is None else slice(int(kept[1]), None, int(kept[2]) - int(kept[1]))
