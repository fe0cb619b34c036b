"""Turns prompts into UMT5 embeddings, and caches them between jobs."""

from functools import lru_cache

import torch
from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

TEXT_LENGTH = 512
#: Number of prompts with cached embeddings; one takes 8 MB for the published model in float32.
KEPT_PROMPTS = 32


def count_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Number of tokens of a prompt, including the end token; `PromptEncoder` cuts it after `TEXT_LENGTH`."""
    return len(tokenizer(prompt_clean(prompt), add_special_tokens=True, verbose=False).input_ids)


class PromptEncoder:
    """UMT5 with its tokenizer; the embeddings of the last `KEPT_PROMPTS` different prompts are cached."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, text_encoder: UMT5EncoderModel, text_length: int = TEXT_LENGTH
    ) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder.eval()
        self.text_length = text_length
        self._encode_cleaned = lru_cache(maxsize=KEPT_PROMPTS)(self._encode)

    def __call__(self, prompt: str) -> Tensor:
        """Embeddings (1, text_length, dim) of a prompt, cleaned of HTML entities, broken Unicode and extra white space.

        Positions after the prompt are zero; tokens after `text_length` are cut. The tensor is shared between calls and
        must not be modified.
        """
        return self._encode_cleaned(prompt_clean(prompt))

    @torch.no_grad()
    def _encode(self, cleaned_prompt: str) -> Tensor:
        tokens = self.tokenizer(
            [cleaned_prompt],
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).to(self.text_encoder.device)
        embeddings = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return embeddings * tokens.attention_mask[..., None].to(embeddings)
