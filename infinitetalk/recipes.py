"""Recipes: named ways to make a video, from the best quality to the lowest price.

A recipe is data: the model and the LoRAs that it needs, and values for fields that a job leaves out. Fields go by the
names that jobs use. This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from infinitetalk.family import FLASHTALK, INFINITETALK, REPOSITORIES, Family, Repository, how_to_get

Value = int | float | bool


@dataclass(frozen=True)
class NeededLora:
    """A LoRA that a recipe needs.

    Attributes:
        word: part of the file's name, in small letters; any file with it in its name will do.
        repository: where one is published.
    """

    word: str
    repository: Repository

    def is_met_by(self, name: str) -> bool:
        """Whether a LoRA of this name, as jobs name it, is such a one."""
        return self.word in name.lower()

    def choose(self, names: Sequence[str]) -> str | None:
        """The LoRA to use of those with these names: the published file, else the first that fits; None: none fits."""
        fit = [name for name in names if self.is_met_by(name)]
        published = {PurePath(pattern).name for pattern in self.repository.patterns}
        return next((name for name in fit if PurePath(name).name in published), fit[0] if fit else None)


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
        name: its name in jobs.
        family: the family of the checkpoint that it needs.
        loras: the LoRAs that it needs.
        values: field of a job -> value where the job leaves it out.
        fixed: fields whose value must be the recipe's, since the model cannot be run otherwise.
    """

    name: str
    family: Family
    loras: tuple[NeededLora, ...]
    values: Mapping[str, Value]
    fixed: frozenset[str]

    def serves(self, num_speakers: int) -> bool:
        """Whether the recipe's model is made for this number of speakers."""
        return num_speakers == 1 or "multi" in self.family.adapters

    def fixed_value(self, field: str) -> Value | None:
        """The value of a fixed field; None if the field is not fixed."""
        return self.values[field] if field in self.fixed else None

    def contradictions(self, given: Mapping[str, Value | None]) -> dict[str, tuple[Value, Value]]:
        """Fixed fields that a job's own values contradict, each with the job's value and the recipe's.

        A value of None leaves the choice to the recipe.
        """
        return {
            field: (value, self.values[field])
            for field, value in given.items()
            if field in self.fixed and value is not None and value != self.values[field]
        }


def _published_values(family: Family) -> dict[str, Value]:
    """The values published for a family's model. The shift is that of the job's size."""
    defaults = family.defaults
    return {
        "frame_num": defaults.frame_num,
        "motion_frame": defaults.motion_frame,
        "sample_steps": defaults.num_inference_steps,
        "sample_text_guide_scale": defaults.text_guide_scale,
        "sample_audio_guide_scale": defaults.audio_guide_scale,
        "color_correction_strength": defaults.color_correction_strength,
    }


#: As the authors of InfiniteTalk advise for step-distilled LoRAs.
_FEW_STEPS = _published_values(INFINITETALK) | {
    "sample_shift": 2.0,
    "sample_text_guide_scale": 1.0,
    "sample_audio_guide_scale": 2.0,
}
# Public download scripts name both files, InfiniteTalk's own README the first one too. Neither has been fetched by this
# project: their tensors are unchecked.
_FUSIONX = NeededLora(
    "fusionx",
    Repository(
        "vrgamedevgirl84/Wan14BT2VFusioniX", "LORA_DIR", ("FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors",)
    ),
)
_LIGHTX2V = NeededLora(
    "lightx2v",
    Repository(
        "lightx2v/Wan2.1-I2V-14B-480P-StepDistill-CfgDistill-Lightx2v",
        "LORA_DIR",
        ("loras/Wan21_I2V_14B_lightx2v_cfg_step_distill_lora_rank64.safetensors",),
    ),
)

#: FlashTalk has no guidance, for which TeaCache and adaptive projected guidance are made.
_FLASHTALK = _published_values(FLASHTALK) | {
    "sample_shift": FLASHTALK.size(FLASHTALK.defaults.size).shift,
    "use_teacache": False,
    "use_apg": False,
}
#: Colours can be corrected more or less; everything else is as the model was distilled.
_FLASHTALK_FIXED = frozenset(_FLASHTALK) - {"color_correction_strength"}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("quality", INFINITETALK, (), _published_values(INFINITETALK), frozenset()),
        Recipe("lora-8", INFINITETALK, (_FUSIONX,), _FEW_STEPS | {"sample_steps": 8}, frozenset()),
        Recipe("lora-4", INFINITETALK, (_LIGHTX2V,), _FEW_STEPS | {"sample_steps": 4}, frozenset()),
        Recipe("flashtalk", FLASHTALK, (), _FLASHTALK, _FLASHTALK_FIXED),
        # The configuration that was published later.
        Recipe(
            "flashtalk-12",
            FLASHTALK,
            (),
            _FLASHTALK | {"sample_steps": 12, "sample_shift": 3.0, "color_correction_strength": 0.7},
            _FLASHTALK_FIXED,
        ),
    )
}

#: The recipe with the published values.
QUALITY = RECIPES["quality"]

#: Words in the names of LoRAs that need few steps and no text guidance.
STEP_DISTILLED = {lora.word for recipe in RECIPES.values() for lora in recipe.loras}

_LORAS = {lora.word: lora.repository for recipe in RECIPES.values() for lora in recipe.loras}

#: What can be downloaded, by name: each model's repositories, each LoRA, and the LoRAs of each recipe that needs some.
DOWNLOADS: dict[str, tuple[Repository, ...]] = {
    **{name: (repository,) for name, repository in (REPOSITORIES | _LORAS).items()},
    **{name: tuple(lora.repository for lora in recipe.loras) for name, recipe in RECIPES.items() if recipe.loras},
}


def missing(recipe: Recipe, absent: Mapping[str, Sequence[str]], loras: Collection[str]) -> str | None:
    """What a worker lacks to run a recipe, and how to get it; None if nothing.

    Args:
        absent: for each family without complete weights, by its name: names of the repositories that are not there.
        loras: the worker's LoRAs, as jobs name them.
    """
    repositories = {name: recipe.family.repositories[name] for name in absent.get(recipe.family.name, ())}
    wanted = {name: (repository.name, repository.setting) for name, repository in repositories.items()}
    for lora in recipe.loras:
        if not any(lora.is_met_by(name) for name in loras):
            wanted[lora.word] = (f'a LoRA with "{lora.word}" in its name', lora.repository.setting)
    return how_to_get(f"recipe {recipe.name}", wanted) if wanted else None
