"""Cases 17 and 18: FlashTalk's schedule, and runs of it by the conventions of its own code.

Three of these conventions are not those of the pipeline, and are kept here:

* Every chunk drops its first motion frames, the first chunk too; the pipeline shows the first chunk whole.
* Windows stop at the first and last row of the speech; the pipeline's last chunk continues with reversed rows.
* One reference, of the picture, serves all chunks, and chunks may start at any row of the speech.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.family import FLASHTALK
from infinitetalk.generation.chunks import ChunkPlan
from infinitetalk.generation.pipeline import Conditions, Reference, Video
from infinitetalk.generation.sampling import (
    TRAIN_TIMESTEPS,
    ChunkConditions,
    GenerationSettings,
    RenoisingStepper,
    SampledChunk,
    make_sampler,
)
from infinitetalk.media.decode import Picture
from tests.golden.folder import Case, Outcome
from tests.golden.formulas import number_after
from tests.golden.generation_cases import FormulaPipeline, FormulaSource
from tests.golden.network_cases import pad_prompt
from tests.golden.weights import build_transformer


def timesteps(case: Case) -> Outcome:
    """Case 17: names say the number of steps and the shift."""
    outcome = Outcome()
    for name in case.tensors:
        settings = GenerationSettings(
            num_inference_steps=int(number_after("steps", name)), shift=number_after("shift", name)
        )
        stepper = make_sampler(settings, FLASHTALK).stepper
        assert isinstance(stepper, RenoisingStepper)
        outcome.tensors[name] = torch.cat([stepper.timesteps, stepper.sigmas[-1:] * TRAIN_TIMESTEPS])
    return outcome


class FlashTalkPipeline(FormulaPipeline):
    """The pipeline with FlashTalk's windows and its count of random draws.

    Attributes:
        step_latents: float32 (1, 16, t, h, w), the latents after each step of each chunk, motion latents in place.
    """

    def __init__(self, case: Case) -> None:
        super().__init__(case, build_transformer(case), case.entry, FLASHTALK)
        self.step_latents: list[Tensor] = []

    def image_features(self, frame: Tensor) -> Tensor:
        """Those of the picture."""
        return self.case.input("clip")

    def draw_noise(self, seed: int, chunk: int, shape: tuple[int, ...], draw: int) -> Tensor:
        """One generator serves all chunks, and each draws once before its steps and once after each."""
        drawn = chunk * (1 + self.case.entry["settings"]["sampling_steps"]) + draw
        return self.case.formula({"shape": shape[1:], **self.case.inputs["noise"]}, k=drawn)[None]

    def chunk_conditions(
        self, video: Video, plan: ChunkPlan, reference: Reference, motion_latents: Tensor
    ) -> ChunkConditions:
        """Like the pipeline's, with the case's start of the chunk and windows that stop at both ends of the speech."""
        conditions = super().chunk_conditions(video, plan, reference, motion_latents)
        (speech,) = video.conditions.speech
        window = FLASHTALK.audio_window
        frames = self.case.entry["chunk_starts"][plan.index] + torch.arange(plan.num_frames)
        rows = (frames[:, None] + torch.arange(window) - window // 2).clamp(0, len(speech) - 1)
        return replace(conditions, audio_windows=speech.rows(rows)[None])

    def sample(
        self,
        plan: ChunkPlan,
        conditions: ChunkConditions,
        settings: GenerationSettings,
        should_stop: Callable[[], bool],
        on_step: Callable[[int, int], None],
    ) -> SampledChunk:
        """Like the pipeline's; records the latents that the network sees after each step but the last, and the last."""
        seen: list[Tensor] = []

        def record(module: Any, args: Any, given: dict[str, Any]) -> None:
            seen.append(given["hidden_states"][:, : FLASHTALK.latent_channels].clone())

        transformer: Any = self.networks.transformer
        handle = transformer.register_forward_pre_hook(record, with_kwargs=True)
        try:
            sampled = super().sample(plan, conditions, settings, should_stop, on_step)
        finally:
            handle.remove()
        self.step_latents += [*seen[1:], sampled.latents]
        return sampled


def generation(case: Case) -> Outcome:
    """Case 18: a run's latents and video."""
    given, inputs = case.entry["settings"], case.inputs
    conditions = Conditions(
        source=Picture(FormulaSource.parse(given["source"]).frame_at(0.0)),
        speech=[SpeechEmbeddings.from_tensor(case.input("audio1"))],
        prompt_embeds=pad_prompt(case.formula(inputs["context"]), case.manifest()["config"]["text_len"]),
        negative_prompt_embeds=None,
    )
    stride = given["frame_num"] - given["motion_frame"]
    settings = GenerationSettings(
        size=FLASHTALK.defaults.size,
        frame_num=given["frame_num"],
        # As long as the case's chunks reach.
        max_frame_num=given["frame_num"] + (case.entry["chunks"] - 1) * stride,
        motion_frame=given["motion_frame"],
        num_inference_steps=given["sampling_steps"],
        shift=given["shift"],
        text_guide_scale=FLASHTALK.defaults.text_guide_scale,
        audio_guide_scale=FLASHTALK.defaults.audio_guide_scale,
        color_correction_strength=given["color_correction_strength"],
    )
    pipeline = FlashTalkPipeline(case)
    chunks = list(pipeline.generate(conditions, settings))
    video = torch.cat([decoded[0, :, given["motion_frame"] :] for decoded in pipeline.decoded], dim=1)
    tensors = {
        "cond_latent": torch.cat(pipeline.references),
        "final_latent": torch.cat(pipeline.latents),
        "step_latents": torch.cat(pipeline.step_latents),
        "decoded": torch.cat(pipeline.decoded, dim=2)[0],
        "video": video,
    }
    states = [chunk.state for chunk in chunks if chunk.state is not None]
    if states:
        tensors["motion_latent"] = torch.cat([state.motion_latents for state in states])
    facts = [
        ("chunks", len(chunks), case.entry["chunks"]),
        ("frames", video.shape[1], case.entry["output_frames"]),
        ("evaluations a chunk", {chunk.evaluations for chunk in chunks}, {given["sampling_steps"]}),
    ]
    return Outcome(tensors, facts)
