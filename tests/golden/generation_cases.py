"""Cases 12, 15, 16: TeaCache, and whole runs of the pipeline."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.family import INFINITETALK, Family
from infinitetalk.generation.pipeline import Chunk, Conditions
from infinitetalk.generation.sampling import EulerStepper, GenerationSettings
from infinitetalk.media.speech import VIDEO_FPS
from infinitetalk.network.teacache import TeaCache
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.networks import Networks
from tests.golden.folder import Case, Outcome
from tests.golden.formulas import formula_image, picture_size
from tests.golden.network_cases import pad_prompt, speaker_inputs
from tests.golden.picture_cases import source_regions
from tests.golden.weights import build_transformer, build_vae
from tools.recording import RecordingPipeline


@dataclass
class FormulaSource:
    """A picture, or a video whose frame f is `formula_image(height, width, f)`; its last frame stays."""

    height: int
    width: int
    num_frames: int

    @classmethod
    def parse(cls, text: str) -> "FormulaSource":
        """From "picture formula_image(96,64)" or "video of 20 frames, frame f = formula_image(96,64,f)"."""
        video = re.search(r"video of (\d+) frames", text)
        return cls(*picture_size(text), int(video[1]) if video else 1)

    def frame_at(self, seconds: float) -> Tensor:
        frame = min(round(seconds * VIDEO_FPS), self.num_frames - 1)
        return torch.from_numpy(formula_image(self.height, self.width, frame)).permute(2, 0, 1)


class FormulaPipeline(RecordingPipeline):
    """The pipeline with a case's resolution, random draws and image features instead of its own."""

    def __init__(
        self,
        case: Case,
        transformer: InfiniteTalkTransformer3DModel,
        run: Mapping[str, Any],
        family: Family = INFINITETALK,
    ) -> None:
        self.case, self.run = case, run
        self._chunks_seen = count()
        super().__init__(
            Networks(
                choice=NetworkChoice(torch.float32),
                device=torch.device("cpu"),
                family=family,
                size_scale=1.0,
                transformer=transformer,
                vae=build_vae(case, "vae_manifest"),
                prompt_encoder=None,  # type: ignore[arg-type]  # prompts come embedded
                image_encoder=self.image_features,  # type: ignore[arg-type]
                audio_encoder=None,  # type: ignore[arg-type]  # speech comes embedded
            )
        )

    def image_features(self, frame: Tensor) -> Tensor:
        """Those of the next chunk: the formula source makes a new frame, and so a new reference, for every chunk."""
        return self.case.formula(self.run["inputs"]["clip"], chunk=next(self._chunks_seen))

    def choose_resolution(self, source: Any, size: str) -> tuple[int, int]:
        height, width = self.run.get("target_h_w") or (source.height, source.width)
        return height, width

    def draw_noise(self, seed: int, chunk: int, shape: tuple[int, ...], draw: int) -> Tensor:
        drawn = _noise_draws(self.run.get("draw_shapes", [list(shape[1:])]))[chunk]
        return self.case.formula({"shape": shape[1:], **self.run["inputs"]["noise"]}, k=drawn)[None]


def _noise_draws(shapes: list[list[int]]) -> list[int]:
    """Which random draws of a run were the chunks' noise; the others, shorter, noised motion latents in vain."""
    return [index for index, shape in enumerate(shapes) if shape == shapes[0]]


def generation(case: Case) -> Outcome:
    """Cases 15 and 16: a run's latents and video."""
    settings = case.entry["settings"]
    run = {**case.entry, "target_h_w": settings["target_h_w"]}
    pipeline, chunks = _generate(case, build_transformer(case), run, settings)
    tensors = {
        "final_latent": torch.cat(pipeline.latents),
        "cond_latent": torch.cat(pipeline.references),
        "video": pipeline.new_video(chunks),
    }
    states = [chunk.state for chunk in chunks if chunk.state is not None]
    if states:
        tensors["motion_latent"] = torch.cat([state.motion_latents for state in states])
    facts = [
        ("chunks", len(chunks), case.entry["chunks"]),
        ("frames", tensors["video"].shape[1], case.entry["output_frames"]),
    ]
    return Outcome(tensors, facts)


def teacache(case: Case) -> Outcome:
    """Case 12: the decisions of several schedules, and one run with the cache on."""
    transformer = build_transformer(case)
    outcome = Outcome()
    for run in case.runs:
        decisions, changes, distances = _decisions(transformer, run)
        outcome.tensors |= {
            f"calc_{run['name']}": decisions,
            f"rel_{run['name']}": changes,
            f"acc_{run['name']}": distances,
        }
        outcome.facts.append((f"{run['name']} skipped", int((decisions == 0).sum()), run["skipped_calls"]))
    if "loop" in case.entry:
        loop = case.entry["loop"]
        settings = {
            "frame_num": loop["frame_num"],
            "max_frames_num": loop["frame_num"],
            "shift": loop["shift"],
            "sampling_steps": loop["steps"],
            "text_guide_scale": loop["text_scale"],
            "audio_guide_scale": loop["audio_scale"],
            "use_teacache": True,
            "teacache_thresh": loop["thresh"],
            "model_scale": loop["model_scale"],
            "people": loop["people"],
            "source": f"picture {loop['image']}",
        }
        pipeline, _ = _generate(case, transformer, loop, settings)
        outcome.tensors |= {"final_latent": pipeline.latents[0][0], "cond_latent": pipeline.references[0][0]}
    return outcome


def _decisions(transformer: InfiniteTalkTransformer3DModel, run: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Of three branches' caches: whether each call computes; of the first, the change and the distance at each step."""
    caches = [TeaCache(INFINITETALK.sizes[run["model_scale"]].teacache_polynomial, run["thresh"]) for _ in range(3)]
    decisions, changes, distances = [], [], []
    for timestep in EulerStepper(run["steps"], run["shift"]).timesteps:
        _, projection = transformer.embed_timestep(timestep[None])
        decisions += [cache.should_compute(projection) for cache in caches]
        changes.append(caches[0].relative_change)
        distances.append(caches[0].distance)
    return torch.tensor(decisions, dtype=torch.uint8), torch.tensor(changes), torch.tensor(distances)


def _generate(
    case: Case, transformer: InfiniteTalkTransformer3DModel, run: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[FormulaPipeline, list[Chunk]]:
    """Run the pipeline on a run's inputs with the index's settings; it has recorded what its chunks went through."""
    inputs = run["inputs"]
    source = FormulaSource.parse(given["source"])
    text_length = case.manifest()["config"]["text_len"]
    embeddings = [case.formula(inputs[name]) for name in speaker_inputs(inputs)]
    # The rows by which one speaker's outlast another's lie beyond what a case of several speakers reads.
    num_rows = min(map(len, embeddings))
    speakers = [SpeechEmbeddings.from_tensor(rows[:num_rows]) for rows in embeddings]
    boxes, face_scale = given.get("bbox"), given.get("face_scale", 0.05)
    conditions = Conditions(
        source=source,
        speech=speakers,
        prompt_embeds=pad_prompt(case.formula(inputs["context"]), text_length),
        negative_prompt_embeds=pad_prompt(case.formula(inputs["context_null"]), text_length),
        regions=source_regions(given["people"], boxes, face_scale, source.height, source.width),
    )
    settings = GenerationSettings(
        size=given.get("model_scale", "infinitetalk-480"),
        frame_num=given["frame_num"],
        max_frame_num=given["max_frames_num"],
        motion_frame=given.get("motion_frame", 1),
        num_inference_steps=given["sampling_steps"],
        shift=given["shift"],
        text_guide_scale=given["text_guide_scale"],
        audio_guide_scale=given["audio_guide_scale"],
        use_apg=given.get("use_apg", False),
        apg_momentum=given.get("apg_momentum", 0.0),
        apg_norm_threshold=given.get("apg_norm_threshold", 0.0),
        teacache_threshold=given.get("teacache_thresh", 0.2) if given.get("use_teacache") else None,
        color_correction_strength=given.get("color_correction_strength", 0.0),
    )
    pipeline = FormulaPipeline(case, transformer, run)
    return pipeline, list(pipeline.generate(conditions, settings))
