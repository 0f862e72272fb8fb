"""NanoDet-g, a detector of COCO's 80 classes with 3.8 M parameters, in plain PyTorch (RangiLyu 2021, Apache-2.0).

Convolutions only: a backbone of cross-stage partial blocks, a pyramid that adds resized maps, and per level a head
that says for every point how probable each class is and how far the four sides of its box are, each side as a
distribution over 0 to `reg_max` strides (generalized focal loss, Li et al. 2020). BatchNorm is folded into the
convolutions, as in the files that are published for browsers; their weights are kept in 8 bits. For inference: it is
not trained here.

It returns what transformers' object detection models return, so that `ObjectRegionModel` takes any of them.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .fields import COMMON, check_fields, listed, whole

WIDTHS = listed(whole(2, 4_096))
FIELDS = COMMON | {
    "stem_channels": whole(2, 4_096),
    "num_blocks": listed(whole(1, 100), 4),
    "neck_channels": whole(1, 4_096),
    "reg_max": whole(1, 100),
}
STRIDES = (8, 16, 32)  # of the three levels, in pixels
SLOPE = 0.1  # of LeakyReLU


class NanoDetConfig(PretrainedConfig):
    """
    Args:
        stem_channels: of the first stage; each stage after it has twice as many.
        num_blocks: residual blocks of the four stages.
        neck_channels: of the pyramid and the heads.
        reg_max: a side of a box is at most that many strides from its point.
        id2label: names of the classes (transformers' own field); their number is `num_labels`.

    Raises:
        ValueError: a value that `FIELDS` does not allow, by name.
    """

    model_type = "nanodet"

    def __init__(
        self,
        *,
        stem_channels=32,
        num_blocks=(1, 2, 2, 3),
        neck_channels=128,
        reg_max=10,
        **kwargs,
    ):
        self.stem_channels = stem_channels
        self.num_blocks = list(num_blocks)
        self.neck_channels = neck_channels
        self.reg_max = reg_max
        check_fields(vars(self) | kwargs, FIELDS)
        super().__init__(**kwargs)


@dataclass
class NanoDetOutput(ModelOutput):
    """P points of the three levels, the finest first, row by row."""

    logits: torch.FloatTensor | None = None  # (B, P, num_labels); their sigmoid is the probability of each class
    pred_boxes: torch.FloatTensor | None = None  # (B, P, 4), centre x, centre y, width, height, of the image's sides


class Int8Conv2d(nn.Module):
    """A convolution whose weights are stored as 8-bit integers, a scale per output channel: half the size of float16.

    They are unpacked when they are first used; what is computed is no 8-bit product. The padding keeps height and
    width, up to the stride.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1):
        super().__init__()
        self.stride, self.padding = stride, kernel_size // 2
        weight = torch.empty(out_channels, in_channels, kernel_size, kernel_size)
        self.register_buffer("weight", torch.empty_like(weight, dtype=torch.int8))
        self.scale = nn.Parameter(torch.empty(out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.register_buffer("unpacked", None, persistent=False)
        self.set_weights(nn.init.kaiming_normal_(weight), torch.zeros(out_channels))

    @torch.no_grad()
    def set_weights(self, weight: torch.FloatTensor, bias: torch.FloatTensor):
        """Takes over those of a convolution: (out, in, kernel, kernel), rounded here, and (out,)."""
        self.scale.copy_(weight.abs().amax(dim=(1, 2, 3)).clamp(min=1e-6) / 127)  # a channel may be all zeros
        self.weight.copy_((weight / self.scale[:, None, None, None]).round())
        self.bias.copy_(bias)
        self.unpacked = None

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.unpacked = None

    def forward(self, x: torch.FloatTensor) -> torch.FloatTensor:
        if self.unpacked is None:
            with torch.inference_mode(False), torch.no_grad():  # may be used outside of inference mode, too
                self.unpacked = self.weight * self.scale[:, None, None, None]
        return F.conv2d(x, self.unpacked, self.bias, self.stride, self.padding)


class ConvUnit(nn.Sequential):
    """3 x 3 convolution and LeakyReLU."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__(Int8Conv2d(in_channels, out_channels, 3, stride), nn.LeakyReLU(SLOPE, inplace=True))


class TinyResBlock(nn.Module):
    """Half of the channels, and what a convolution makes of them."""

    def __init__(self, channels):
        super().__init__()
        self.in_conv = ConvUnit(channels, channels // 2)
        self.mid_conv = ConvUnit(channels // 2, channels // 2)

    def forward(self, x):
        x = self.in_conv(x)
        return torch.cat([self.mid_conv(x), x], dim=1)


class CspBlock(nn.Module):
    """A stage: C channels in, what the blocks make of them beside them, 2 C out."""

    def __init__(self, channels, num_blocks, stride):
        super().__init__()
        self.in_conv = ConvUnit(channels, channels, stride)
        self.res_blocks = nn.Sequential(*[TinyResBlock(channels) for _ in range(num_blocks)])
        self.res_out_conv = ConvUnit(channels, channels)

    def forward(self, x):
        x = self.in_conv(x)
        return torch.cat([self.res_out_conv(self.res_blocks(x)), x], dim=1)


class NanoDetForObjectDetection(PreTrainedModel):
    """Pixels -> for every point of three grids the probability of each class and a box."""

    config: NanoDetConfig
    config_class = NanoDetConfig
    base_model_prefix = "nanodet"
    main_input_name = "pixel_values"

    def __init__(self, config: NanoDetConfig):
        super().__init__(config)
        widths = [config.stem_channels * 2**stage for stage in range(4)]  # of what goes into the four stages
        self.stem = ConvUnit(3, widths[0], stride=2)
        self.stages = nn.ModuleList(
            CspBlock(width, blocks, 1 if stage == 0 else 2)
            for stage, (width, blocks) in enumerate(zip(widths, config.num_blocks, strict=True))
        )
        neck, out = config.neck_channels, config.num_labels + 4 * (config.reg_max + 1)
        self.lateral_convs = nn.ModuleList(Int8Conv2d(2 * width, neck, 1) for width in widths[1:])
        self.heads = nn.ModuleList(nn.Sequential(ConvUnit(neck, neck), Int8Conv2d(neck, out, 1)) for _ in STRIDES)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, **kwargs) -> NanoDetOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), blue, green, red, normalised by ImageNet's mean and deviation. H and W are
                multiples of 32; published results are of 416.
        """
        height, width = pixel_values.shape[-2:]
        predicted = [head(level) for head, level in zip(self.heads, self.pyramid(pixel_values), strict=True)]
        boxes = [self.boxes(level, stride, height, width) for level, stride in zip(predicted, STRIDES, strict=True)]
        flat = torch.cat([level.flatten(2) for level in predicted], dim=2).transpose(1, 2)  # (B, P, out)
        return NanoDetOutput(logits=flat[..., : self.config.num_labels], pred_boxes=torch.cat(boxes, dim=1))

    def pyramid(self, pixel_values) -> list[torch.FloatTensor]:
        """Feature maps (B, neck_channels, h, w) of strides 8, 16, 32: each adds the coarser ones, then the finer."""
        x = F.max_pool2d(self.stem(pixel_values), 3, 2, 1)
        stages = []
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        fine, middle, coarse = (conv(x) for conv, x in zip(self.lateral_convs, stages[1:], strict=True))
        middle = middle + resized(coarse, middle)
        fine = fine + resized(middle, fine)
        middle = middle + resized(fine, middle)
        return [fine, middle, coarse + resized(middle, coarse)]

    def boxes(self, predicted, stride, height, width) -> torch.FloatTensor:
        """Of one level (B, out, h, w) -> (B, h w, 4) centre and size, of the image's sides; cut at its border."""
        bins = self.config.reg_max + 1
        sides = predicted[:, self.config.num_labels :].flatten(2).unflatten(1, (4, bins)).float()  # (B, 4, bins, h w)
        steps = torch.arange(bins, dtype=sides.dtype, device=sides.device)[:, None]
        left, top, right, bottom = ((sides.softmax(dim=2) * steps).sum(dim=2) * stride).unbind(1)  # (B, h w) each
        rows, columns = predicted.shape[-2:]
        y, x = torch.meshgrid(
            torch.arange(rows, device=sides.device), torch.arange(columns, device=sides.device), indexing="ij"
        )
        x, y = (x.flatten() + 0.5) * stride, (y.flatten() + 0.5) * stride  # a point is the middle of its cell
        x1, x2 = ((x - left).clamp(0, width) / width, (x + right).clamp(0, width) / width)
        y1, y2 = ((y - top).clamp(0, height) / height, (y + bottom).clamp(0, height) / height)
        return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)


def resized(x, like):
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
