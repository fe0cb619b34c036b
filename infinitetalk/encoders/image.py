"""Turns a reference frame into CLIP features."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


class ImageEncoder:
    """CLIP's vision tower; its output is that of the second to last layer."""

    def __init__(self, model: CLIPVisionModel) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Tensor:
        """Features (1, tokens, dim) of a frame, float (1, 3, height, width) in [-1, 1].

        The frame is squeezed to CLIP's square by bicubic interpolation without antialiasing, as in the published model.
        """
        side = self.model.config.image_size
        resized = F.interpolate(frame.float(), size=(side, side), mode="bicubic", align_corners=False)
        mean = torch.tensor(OPENAI_CLIP_MEAN, device=frame.device)[:, None, None]
        deviation = torch.tensor(OPENAI_CLIP_STD, device=frame.device)[:, None, None]
        pixels = (resized / 2 + 0.5 - mean) / deviation
        output = self.model(pixels.to(self.model.device, self.model.dtype), output_hidden_states=True)
        return output.hidden_states[-2]
