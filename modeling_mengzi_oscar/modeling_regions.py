"""What every region model takes and returns, whatever it looks for in the pixels (VinVL detections, grid cells).

The box geometry follows the 2,054-d rows that Oscar and VinVL features have: appearance first, then six numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .checksums import share_weights
from .photos import array_to_image, check_size
from .supported_transformers import OLDEST  # noqa: F401  (importing it checks the installed release)

PIXELS_PER_PASS = 700_000  # of a region model on a CPU: one photo of VinVL, ten of the mini; memory follows them
PIXELS_PER_PASS_ON_GPU = 8 * PIXELS_PER_PASS


@dataclass
class RegionModelOutput(ModelOutput):
    """Regions of a batch of images, best first where the model ranks them. What a model does not have is None.

    Shapes: B images, R regions (padded to the longest image of the batch), D feature size, A attributes per region.
    """

    region_features: torch.FloatTensor | None = None  # (B, R, D), the last six numbers are the box geometry
    region_attention_mask: torch.LongTensor | None = None  # (B, R), 1 = a region, 0 = padding
    boxes: torch.FloatTensor | None = None  # (B, R, 4), x1 y1 x2 y2 in pixels of the original image
    scores: torch.FloatTensor | None = None  # (B, R)
    class_ids: torch.LongTensor | None = None  # (B, R), 0 = none
    attribute_ids: torch.LongTensor | None = None  # (B, R, A), 0 = none
    attribute_scores: torch.FloatTensor | None = None  # (B, R, A), falling
    tag_ids: torch.LongTensor | None = None  # (B, L), tags of the whole image, 0 = none
    tag_scores: torch.FloatTensor | None = None  # (B, L), falling
    proposals: torch.FloatTensor | None = None  # (B, P, 4), pixels of the resized image; on request


class RegionModel(PreTrainedModel):
    """What region models have in common beside their output."""

    calibration: dict | None = None  # what openvino_networks.py needs to know for 8 bits, where that lies beside it
    in_8_bits = False

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, with weights that whoever may read config.json may read too."""
        super().save_pretrained(save_directory, *args, **kwargs)
        share_weights(save_directory)


def box_geometry(boxes: torch.Tensor, original_sizes: torch.Tensor) -> torch.Tensor:
    """Six numbers per box: x1/W, y1/H, x2/W, y2/H, w/W, h/H.

    Args:
        boxes: (B, R, 4) x1 y1 x2 y2 in pixels of the original image.
        original_sizes: (B, 2) height and width of the original images in pixels.

    Returns:
        (B, R, 6) in the dtype of `boxes`. The order of the last two is the one of the code nearest to the authors of
        the released features; the Oscar paper's text says "height and/or width" (see docs/feature_row.md).
    """
    height, width = original_sizes.to(boxes).unbind(-1)  # (B,), (B,)
    corners = boxes / torch.stack([width, height, width, height], dim=-1)[:, None]  # (B, R, 4)
    return torch.cat([corners, corners[..., 2:] - corners[..., :2]], dim=-1)


def photos_per_pass(pixel_values: torch.Tensor, device: torch.device) -> int:
    """How many photos of this size, (..., H, W), share a pass of a region model: memory follows their pixels."""
    most = PIXELS_PER_PASS if device.type == "cpu" else PIXELS_PER_PASS_ON_GPU
    return max(1, most // (pixel_values.shape[-2] * pixel_values.shape[-1]))


def as_pictures(images) -> list[Image.Image]:
    """What image processors are given -> PIL images, in the mode that they have.

    Args:
        images: a PIL image, a uint8 array or tensor of a shape that `photos.array_to_image` takes, or several: a list,
            a column of a dataset, an array with one dimension more. Other types are refused: whether they are rescaled
            already only the caller knows.

    Raises:
        ValueError: no image, one that is something else, or without a pixel.
    """
    stacked = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
    several = stacked or (isinstance(images, Sequence) and not isinstance(images, str))
    pictures = [_as_picture(image, number) for number, image in enumerate(images if several else [images])]
    if not pictures:
        raise ValueError("images is empty: give at least one image")
    return pictures


def _as_picture(image, number: int) -> Image.Image:
    if isinstance(image, (np.ndarray, torch.Tensor)):
        if image.dtype not in (np.uint8, torch.uint8):
            raise ValueError(
                f"image {number} is an array of shape {tuple(image.shape)} and type {image.dtype}; "
                "give (height, width, 3) RGB in uint8"
            )
        return array_to_image(image, f"image {number}")
    if not isinstance(image, Image.Image):
        raise ValueError(f"image {number} is a {type(image).__name__}; give a PIL image or a uint8 array")
    check_size(image.size, picture_name(image, number))
    return image


def picture_name(picture, number: int) -> str:
    """What to call one of several images: as `open_photo` named it, else by its number."""
    return getattr(picture, "filename", "") or f"image {number}"
