"""Cases 03 and 04: loudness, speech embeddings and the windows that chunks read."""

import re
from dataclasses import replace

import numpy as np
import torch

from infinitetalk.encoders.wav2vec2 import resample_features
from infinitetalk.family import INFINITETALK
from infinitetalk.generation.chunks import ChunkGrid
from infinitetalk.media.speech import measure_loudness, normalise_loudness
from tests.golden.folder import Case, Outcome
from tests.golden.formulas import evaluate_wave
from tests.golden.weights import build_speech_encoder


def speech(case: Case) -> Outcome:
    """Case 03: embeddings where the case has a network, else loudness."""
    return embeddings(case) if "manifest" in case.entry else loudness(case)


def embeddings(case: Case) -> Outcome:
    """Case 03 with wav2vec2."""
    encoder = build_speech_encoder(case)
    waveform = case.input("wave").numpy()
    normalised = encoder.normalise(waveform)
    features = encoder.convolve(normalised)
    entered = []
    encoder.model.encoder.layers[0].register_forward_pre_hook(lambda module, args: entered.append(args[0][0]))
    result = encoder(waveform)
    return Outcome(
        {
            "normalised": normalised,
            "conv": features,
            "resampled": resample_features(features, len(result)),
            "hidden0": entered[0],
            "embedding": result.rows(torch.arange(len(result))),
        },
        [("rows", len(result), case.inputs["seq_len"])],
    )


def loudness(case: Case) -> Outcome:
    """Case 03 of loudness: `<name>_out` is every n-th sample of the input `<name>`, brought to -23 LUFS."""
    outcome = Outcome()
    scalars = case.entry["scalars"]
    # P, where it is given, is the prefix of keys.
    for name in case.inputs.keys() - {"P"}:
        waveform = _waveform(case, name)
        normalised = normalise_loudness(waveform)
        if f"{name}_out" in case.tensors:
            every = int(re.findall(r"every (\d+)", case.meaning(f"{name}_out"))[0])
            outcome.tensors[f"{name}_out"] = torch.from_numpy(normalised[::every].copy())
        loudest = int(np.abs(waveform).argmax())
        measured = {f"loudness_{name}": measure_loudness(waveform)}
        if waveform[loudest] != 0:
            measured[f"gain_{name}"] = float(normalised[loudest] / waveform[loudest])
        for what, got in measured.items():
            if what in scalars:
                want = float(scalars[what])
                near = bool(np.isclose(got, want, atol=case.tolerance(what).atol, rtol=case.tolerance(what).rtol))
                outcome.facts.append((what, want if near else got, want))
    return outcome


def _waveform(case: Case, name: str) -> np.ndarray:
    given = case.inputs[name]
    if isinstance(given, dict):
        return case.formula(given).numpy()
    if zeros := re.fullmatch(r"(\d+) zeros", given):
        return np.zeros(int(zeros[1]), dtype=np.float32)
    return evaluate_wave(given, case.key_prefix)


def windows(case: Case) -> Outcome:
    """Case 04: source rows that every window slot of every chunk reads, for each run."""
    outcome = Outcome()
    for run in case.runs:
        given = case.inputs | run
        num_rows = run["audio_lengths"]
        grid = ChunkGrid(
            given["frame_num"], given["motion_frame"], family=replace(INFINITETALK, audio_window=given["window"])
        )
        # Where speakers differ in length, the published video ends with the last one; ours are brought to one length.
        plans = grid.plans(min(run["max_frames_num"], num_rows[-1]))
        rows = [torch.stack([grid.window_rows(plan, rows) for rows in num_rows]) for plan in plans]
        outcome.tensors[run["name"]] = torch.stack(rows)
        outcome.facts += [
            (f"{run['name']} chunks", len(plans), run["chunks"]),
            (f"{run['name']} chunk starts", [plan.start for plan in plans], run["chunk_starts"]),
            (f"{run['name']} frames", sum(plan.num_new_frames for plan in plans), run["output_frames"]),
        ]
    return outcome
