"""The VinVL X152-C4 object and attribute detector, which makes the region features that Oscar models read.

Network and decisions are those of microsoft/scene_graph_benchmark (MIT), vinvl_x152c4 with the options of the
Mengzi-Oscar commands; the paper is Zhang et al. 2021, "VinVL: Revisiting Visual Representations in Vision-Language
Models". Parameter names are the original's. What a reader who knows Faster R-CNN from torchvision or detectron2 will
not expect:

* frozen norms have no epsilon; the stride sits in the 3x3; anchors are Detectron's, rounded and off by half a pixel;
* boxes are decoded and clipped with the +1/-1 of integer pixels, but no NMS has it; class 0 is background;
* one C4 map, RoIAlign 14x14 not aligned with adaptive sampling, and layer4 of the ResNeXt runs on every region;
* regions are the proposals themselves (no regression), each labelled with the best class in which it survived NMS;
* attributes come from a softmax over all attributes, with the region's label as input.

What is ours is speed. Everything runs channels-last, where a 1x1 convolution is one matrix product. The first 1x1
convolutions of layer4 run on the map instead of on every region: they are linear and so is RoIAlign, hence they
commute. RoIAlign is a weighted sum of rows of that map. One IoU matrix serves the NMS of all classes. The attribute
head reuses the region vectors instead of computing them again.
"""

import math
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_vinvl import VinVLConfig
from .modeling_regions import RegionModel, RegionModelOutput, box_geometry

if TYPE_CHECKING:  # transformers before 5.10 brings only the files that the file of a class names itself
    from .checksums import share_weights  # noqa: F401
    from .fields import Rule  # noqa: F401
    from .photos import PhotoError  # noqa: F401
    from .supported_transformers import OLDEST  # noqa: F401

STRIDE = 16  # pixels of the resized image per cell of the C4 map
POOLED = 14  # RoIAlign gives 14x14 bins, which layer4 halves
LARGEST_LOG_SCALE = math.log(1000 / 16)  # proposals grow at most 62.5 times beyond their anchor
NEEDS_TORCHVISION = "VinVLModel needs torchvision: pip install torchvision"


class VinVLFrozenNorm(nn.Module):
    """Batch norm with fixed statistics and without epsilon; `convolve` multiplies its scale into the weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.folded = False  # True after `VinVLModel.fold_norms`: the scale is 1 and already in the weights

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        scale = self.weight.float() * self.running_var.float().rsqrt()
        return scale, self.bias.float() - self.running_mean.float() * scale


def weight_and_shift(conv: nn.Conv2d, norm: VinVLFrozenNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """One affine step for convolution and norm: weights times scale, and the shift as bias."""
    if norm.folded:
        return conv.weight, norm.bias.to(conv.weight.dtype)
    scale, shift = norm.scale_and_shift()
    return (conv.weight * scale[:, None, None, None]).to(conv.weight.dtype), shift.to(conv.weight.dtype)


def convolve(x: torch.Tensor, conv: nn.Conv2d, norm: VinVLFrozenNorm) -> torch.Tensor:
    """Convolution and norm, (B, C, H, W) channels-last in and out."""
    weight, shift = weight_and_shift(conv, norm)
    if conv.kernel_size == (1, 1):
        return pointwise(x[:, :, :: conv.stride[0], :: conv.stride[1]], weight, shift)
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, groups=conv.groups)


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A 1x1 convolution as one matrix product: 1.4 times as fast as `conv2d` on the 7x7 maps of layer4 (CPU)."""
    rows = x.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C), no copy when channels-last
    return F.linear(rows, weight.flatten(1), bias).permute(0, 3, 1, 2)


class VinVLStem(nn.Module):
    def __init__(self, config: VinVLConfig):
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = VinVLFrozenNorm(config.stem_channels)

    def forward(self, x):
        return F.max_pool2d(convolve(x, self.conv1, self.bn1).relu_(), 3, stride=2, padding=1)


class VinVLBottleneck(nn.Module):
    """1x1, grouped 3x3 (it has the stride), 1x1, each with a frozen norm; the first of a layer projects its input."""

    def __init__(self, in_channels: int, width: int, out_channels: int, groups: int, stride: int, project: bool):
        super().__init__()
        if project:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, VinVLFrozenNorm(out_channels))
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = VinVLFrozenNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = VinVLFrozenNorm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = VinVLFrozenNorm(out_channels)
        self.project = project

    def forward(self, x):
        shortcut = convolve(x, *self.downsample) if self.project else x
        return self.after_conv1(convolve(x, self.conv1, self.bn1).relu_(), shortcut)

    def after_conv1(self, x, shortcut):
        x = convolve(x, self.conv2, self.bn2).relu_()
        return convolve(x, self.conv3, self.bn3).add_(shortcut).relu_()


def build_layer(config: VinVLConfig, index: int) -> nn.Sequential:
    """layer`index` + 1: index 0 keeps the resolution, the others halve it."""
    width = config.groups * config.width_per_group * 2**index
    channels = config.stage_channels * 2**index
    before = config.stem_channels if index == 0 else channels // 2
    stride = 1 if index == 0 else 2
    first = VinVLBottleneck(before, width, channels, config.groups, stride, project=True)
    rest = [
        VinVLBottleneck(channels, width, channels, config.groups, 1, project=False)
        for _ in range(config.depths[index] - 1)
    ]
    return nn.Sequential(first, *rest)


class VinVLBackbone(nn.Module):
    """Pixels to the C4 map."""

    def __init__(self, config: VinVLConfig):
        super().__init__()
        layers = {f"layer{index + 1}": build_layer(config, index) for index in range(3)}
        self.body = nn.ModuleDict({"stem": VinVLStem(config), **layers})

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = pixel_values.to(self.body["stem"].conv1.weight.dtype, memory_format=torch.channels_last)
        for stage in self.body.values():
            x = stage(x)
        return x  # (B, C4, H / 16, W / 16)


def cell_anchors(sizes, ratios) -> torch.Tensor:
    """Anchors of the top left cell as Detectron builds them: (ratios x sizes, 4) x1 y1 x2 y2, ratio by ratio."""
    anchors = []
    for ratio in ratios:
        width = round(math.sqrt(STRIDE * STRIDE / ratio))  # rounded before it is scaled: an odd 23 x 12 for 0.5
        height = round(width * ratio)
        centre = (STRIDE - 1) / 2
        for size in sizes:
            half_width = (width * size / STRIDE - 1) / 2
            half_height = (height * size / STRIDE - 1) / 2
            anchors.append([centre - half_width, centre - half_height, centre + half_width, centre + half_height])
    return torch.tensor(anchors)


def decode_boxes(boxes: torch.Tensor, deltas: torch.Tensor, weights=(1.0, 1.0, 1.0, 1.0)) -> torch.Tensor:
    """Boxes (..., 4) moved by dx, dy, dw, dh (..., 4), with sides counted in whole pixels (x2 - x1 + 1)."""
    sides = boxes[..., 2:] - boxes[..., :2] + 1
    centres = boxes[..., :2] + 0.5 * sides
    shifts, log_scales = (deltas / deltas.new_tensor(weights)).split(2, dim=-1)
    centres = shifts * sides + centres
    sides = log_scales.clamp(max=LARGEST_LOG_SCALE).exp() * sides
    return torch.cat([centres - 0.5 * sides, centres + 0.5 * sides - 1], dim=-1)


def clip_boxes(boxes: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4) into an image of height and width `size` (2,), whose last pixel is W - 1, H - 1."""
    limit = size.flip(0).repeat(2).to(boxes) - 1
    return torch.minimum(boxes.clamp(min=0), limit)


class VinVLCellAnchors(nn.Module):
    """Holds the anchors of a cell under the original's key."""

    def __init__(self, config: VinVLConfig):
        super().__init__()
        self.sizes, self.ratios = config.anchor_sizes, config.anchor_ratios
        self.register_buffer("0", cell_anchors(self.sizes, self.ratios))


class VinVLAnchors(nn.Module):
    """Computes the anchors instead of reading the held ones, so that no cast to bfloat16 can round them."""

    def __init__(self, config: VinVLConfig):
        super().__init__()
        self.sizes, self.ratios = config.anchor_sizes, config.anchor_ratios
        self.cell_anchors = VinVLCellAnchors(config)

    def forward(self, height: int, width: int, device) -> torch.Tensor:
        """(height x width x anchors, 4): row by row, cell by cell, anchor by anchor."""
        anchors = cell_anchors(self.sizes, self.ratios).to(device)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        corners = STRIDE * torch.stack([x, y, x, y], dim=-1).to(device)  # (height, width, 4)
        return (corners[:, :, None] + anchors).reshape(-1, 4)


class VinVLRegionProposals(nn.Module):
    """C4 map to proposals."""

    def __init__(self, config: VinVLConfig):
        super().__init__()
        channels = config.stage_channels * 4
        count = len(config.anchor_sizes) * len(config.anchor_ratios)
        self.config = config
        self.anchor_generator = VinVLAnchors(config)
        self.head = nn.ModuleDict(
            {
                "conv": nn.Conv2d(channels, channels, 3, padding=1),
                "cls_logits": nn.Conv2d(channels, count, 1),
                "bbox_pred": nn.Conv2d(channels, count * 4, 1),
            }
        )

    def forward(self, c4: torch.Tensor, sizes: torch.Tensor) -> list[torch.Tensor]:
        """(B, C4, H, W) and the resized sizes (B, 2) -> per image (P, 4) in pixels of the resized image, best first."""
        conv, cls_logits, bbox_pred = self.head.values()
        hidden = conv(c4.to(conv.weight.dtype)).relu_()
        logits = pointwise(hidden, cls_logits.weight, cls_logits.bias).permute(0, 2, 3, 1).flatten(1).float()
        deltas = pointwise(hidden, bbox_pred.weight, bbox_pred.bias).permute(0, 2, 3, 1).float()
        deltas = deltas.reshape(len(c4), -1, 4)  # (B, N, 4), as the anchors are ordered
        anchors = self.anchor_generator(*c4.shape[-2:], c4.device)
        # the scores, not the logits: saturated ones tie, and topk decides the ties
        scores, index = logits.sigmoid().topk(min(self.config.rpn_pre_nms_top_n, len(anchors)), dim=1)
        boxes = decode_boxes(anchors[index], deltas.gather(1, index[..., None].expand(-1, -1, 4)))
        proposals = []
        for image_boxes, image_scores, size in zip(boxes, scores, sizes, strict=True):
            image_boxes = clip_boxes(image_boxes, size)
            wanted = self.config.rpn_post_nms_top_n
            for count in (5 * wanted, len(image_boxes)):  # NMS decides from the top: a long enough start is the answer
                survivors = nms(image_boxes[:count], image_scores[:count], self.config.rpn_nms_threshold)[:wanted]
                if len(survivors) == wanted:
                    break
            proposals.append(image_boxes[survivors])
        return proposals


def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """torchvision's: rows of (N, 4) that stand, best first. torchvision is imported here because it takes seconds."""
    try:  # transformers wants everything installed that is imported outside of a try, even where no detector runs
        from torchvision.ops import nms as torchvision_nms
    except ImportError:
        raise ImportError(NEEDS_TORCHVISION) from None
    return torchvision_nms(boxes, scores, threshold)


def axis_taps(start, extent, length: int, bins: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """RoIAlign along one axis: which cells each bin averages, and their weights.

    A bin takes ceil(extent / bins) samples at the centres of equal parts; a sample blends its two neighbours, counts
    nothing beyond one cell outside the map, and sticks to the border cell within that one.

    Args:
        start, extent: (R,) first coordinate and length of each region in cells; the length is at least one cell.
        length: cells of the map.
        bins: bins per region; every `step`-th of them is wanted.

    Returns:
        cells (R, bins / step, T) and weights (R, bins / step, T); T is the most cells that any bin touches.
    """
    extent = extent.clamp(min=1)[:, None, None]
    samples = (extent / bins).ceil()
    number = torch.arange(int(samples.max()), device=start.device)
    bin_index = torch.arange(0, bins, step, device=start.device)[:, None]
    position = start[:, None, None] + bin_index * (extent / bins) + (number + 0.5) * (extent / bins / samples)
    counts = (number < samples) & (position >= -1) & (position <= length)  # (R, n, S)
    position = position.clamp(0, length - 1)
    low = position.floor()
    weights = position.new_zeros(*position.shape[:2], length)
    weights.scatter_add_(2, low.long(), (1 - position + low) * counts / samples)
    weights.scatter_add_(2, (low.long() + 1).clamp(max=length - 1), (position - low) * counts / samples)
    touched = weights > 0  # neighbouring cells: samples are at most one cell apart
    first = touched.int().argmax(-1, keepdim=True)
    cells = first + torch.arange(int(touched.sum(-1).max()), device=start.device)
    inside = cells < length
    cells = cells.clamp(max=length - 1)
    return cells, weights.gather(2, cells) * inside


def roi_align(rows, height: int, width: int, image_index, boxes, bins: int = POOLED, step: int = 1) -> torch.Tensor:
    """RoIAlign (not aligned, adaptive sampling) as a weighted sum of rows, which keeps channels together.

    Args:
        rows: (B x height x width, C) the map, one row per cell.
        image_index: (R,) which image of the batch a box is in.
        boxes: (R, 4) x1 y1 x2 y2 in pixels of the resized image.
        bins, step: bins per side, of which every `step`-th is computed.

    Returns:
        (R, C, bins / step, bins / step) channels-last, in float32.
    """
    start, end = (boxes / STRIDE).split(2, dim=-1)
    columns, column_weights = axis_taps(start[:, 0], end[:, 0] - start[:, 0], width, bins, step)
    lines, line_weights = axis_taps(start[:, 1], end[:, 1] - start[:, 1], height, bins, step)
    lines = lines + image_index[:, None, None] * height
    cells = lines[:, :, None, :, None] * width + columns[:, None, :, None, :]  # (R, n, n, T, T)
    weights = line_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    used = weights > 0
    per_bin = used.sum((-2, -1)).flatten()
    pooled = F.embedding_bag(
        cells[used], rows.float(), per_bin.cumsum(0) - per_bin, mode="sum", per_sample_weights=weights[used]
    )
    side = bins // step
    return pooled.view(len(boxes), side, side, -1).permute(0, 3, 1, 2)


class VinVLRegionExtractor(nn.Module):
    """C4 map and boxes to one appearance vector per box: RoIAlign, layer4, mean."""

    def __init__(self, config: VinVLConfig):
        super().__init__()
        self.config = config
        self.head = nn.ModuleDict({"layer4": build_layer(config, 3)})

    def forward(self, c4: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
        """(B, C4, H, W) and per image (P, 4) in pixels of the resized image -> (all P together, 2048) float32."""
        first = self.head["layer4"][0]
        dtype = first.conv1.weight.dtype
        inner, _ = weight_and_shift(first.conv1, first.bn1)
        outer, _ = weight_and_shift(*first.downsample)
        height, width = c4.shape[-2:]
        c4 = c4.to(dtype)
        # before RoIAlign, so without the shifts: a sample outside the map counts as 0 and not as a shift
        inner_rows = pointwise(c4, inner, None).permute(0, 2, 3, 1).flatten(0, 2).float()
        outer_rows = pointwise(c4, outer, None).permute(0, 2, 3, 1).flatten(0, 2).float()
        count = torch.tensor([len(image_boxes) for image_boxes in boxes], device=c4.device)
        image_index = torch.arange(len(boxes), device=c4.device).repeat_interleave(count)
        vectors = []
        for chunk, images in zip(
            torch.cat(boxes).split(self.config.rois_per_chunk),
            image_index.split(self.config.rois_per_chunk),
            strict=True,
        ):
            x = roi_align(inner_rows, height, width, images, chunk).to(dtype)
            shortcut = roi_align(outer_rows, height, width, images, chunk, step=2).to(dtype)  # its stride is 2
            vectors.append(self.after_pooling(x, shortcut))
        return torch.cat(vectors)

    def after_pooling(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """What conv1 and shortcut of layer4 gave, without their shifts, to (R, 2048) float32; changes what it is given.

        Args:
            x: (R, C, 14, 14). shortcut: (R, 2048, 7, 7).
        """
        first, rest = self.head["layer4"][0], self.head["layer4"][1:]
        _, inner_shift = weight_and_shift(first.conv1, first.bn1)
        _, outer_shift = weight_and_shift(*first.downsample)
        x = x.add_(inner_shift[:, None, None]).relu_()
        x = first.after_conv1(x, shortcut.add_(outer_shift[:, None, None]))
        return rest(x).mean((2, 3), dtype=torch.float32)


class VinVLBoxHead(nn.Module):
    """Holds the region extractor and the two linear layers under the original's keys."""

    def __init__(self, config: VinVLConfig):
        super().__init__()
        self.feature_extractor = VinVLRegionExtractor(config)
        self.predictor = nn.ModuleDict(
            {
                "cls_score": nn.Linear(config.appearance_size, config.num_classes),
                "bbox_pred": nn.Linear(config.appearance_size, config.num_classes * 4),
            }
        )

    def probabilities(self, appearance: torch.Tensor) -> torch.Tensor:
        """(P, 2048) -> (P, classes) float32, background first."""
        cls_score = self.predictor["cls_score"]
        return cls_score(appearance.to(cls_score.weight.dtype)).float().softmax(-1)

    def regressed(self, appearance, proposals, size) -> torch.Tensor:
        """(P, 2048), (P, 4) and height and width -> (P, classes, 4), a box for every class."""
        bbox_pred = self.predictor["bbox_pred"]
        deltas = bbox_pred(appearance.to(bbox_pred.weight.dtype)).float().view(len(proposals), -1, 4)
        return clip_boxes(decode_boxes(proposals[:, None], deltas, weights=(10.0, 10.0, 5.0, 5.0)), size)


def iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(..., 4) twice -> (...), sides without +1. Two boxes without area give NaN, which is above no threshold."""
    area, other_area = ((rows[..., 2] - rows[..., 0]) * (rows[..., 3] - rows[..., 1]) for rows in (boxes, others))
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    return overlap / (area + other_area - overlap)


def pairwise_iou(boxes: torch.Tensor) -> torch.Tensor:
    """(N, 4) -> (N, N)"""
    return iou(boxes[:, None], boxes[None])


def class_wise_nms(boxes, scores, candidates, threshold: float) -> torch.Tensor:
    """NMS within every class, for all classes at once, with the decisions of `torchvision.ops.nms` class by class.

    All classes decide of their best box, then of their second best, and so on: one that stands takes the boxes that
    overlap it out of its class. Boxes that the classes share have one IoU matrix. The work is as many steps as a class
    has candidates, each over classes x boxes, whatever the scores.

    Args:
        boxes: (N, 4), or (N, K, 4) where every class has its own.
        scores: (N, K).
        candidates: (N, K) bool, what takes part; within a class these must be the highest scores.
        threshold: an IoU above it suppresses.

    Returns:
        (N, K) bool, the candidates that survive.
    """
    depth = int(candidates.sum(0).max()) if candidates.any() else 0
    # equal scores: the first row goes first. In double because torchvision compares with a double threshold on CPU
    order = scores.masked_fill(~candidates, -1).argsort(dim=0, descending=True, stable=True)[:depth]  # (depth, K)
    stands = candidates.t().contiguous()  # (K, N): neither suppressed nor out
    classes = torch.arange(len(stands), device=scores.device)
    if shared := boxes.dim() == 2:
        apart = ~(pairwise_iou(boxes).double() > threshold).fill_diagonal_(False)
    else:
        boxes = boxes.transpose(0, 1)  # (K, N, 4)
    for best in order:  # (K,)
        if shared:
            spared = apart[best]  # (K, N)
        else:
            spared = ~(iou(boxes[classes, best][:, None], boxes).double() > threshold)
            spared[classes, best] = True
        # A better box that stands cannot be taken out here: it would have taken out this one, as overlaps are mutual.
        stands &= spared.logical_or_(~stands[classes, best][:, None])
    return stands.t()


def detect_best_surviving_class(boxes, probabilities, config: VinVLConfig):
    """NMS_FILTER 1: a proposal's label is its best class among those in which it survived. See `DETECT`."""
    foreground = probabilities[:, 1:]
    # Low scores cannot suppress high ones, so classes without a high score need not be looked at unless too few
    # detections come out. The last round looks at everything.
    for floor in (config.score_threshold, config.score_threshold / 10, config.score_threshold / 100, 0):
        candidates = foreground >= floor
        classes = candidates.any(0).nonzero()[:, 0]
        class_boxes = boxes if boxes.dim() == 2 else boxes[:, classes + 1]
        scores, candidates = foreground[:, classes], candidates[:, classes]
        survivors = class_wise_nms(class_boxes, scores, candidates, config.class_nms_threshold)
        scores = scores * survivors
        if int((scores > 0).any(1).sum()) >= config.min_detections:
            break
    best, label = scores.max(1)
    best, rows = best.sort(descending=True, stable=True)
    count = int((best >= config.score_threshold).sum().clamp(config.min_detections, config.max_detections))
    rows = rows[:count][best[:count] > 0]
    return rows, classes[label[rows]] + 1, best[: len(rows)]


def detect_every_class(boxes, probabilities, config: VinVLConfig):
    """NMS_FILTER 0: whatever survives in a class is a detection; class by class, best first. See `DETECT`."""
    foreground = probabilities[:, 1:]
    for halvings in range(11):  # too few detections: up to ten more tries with half the threshold
        candidates = foreground > config.score_threshold / 2**halvings
        classes = candidates.any(0).nonzero()[:, 0]
        class_boxes = boxes if boxes.dim() == 2 else boxes[:, classes + 1]
        survivors = class_wise_nms(class_boxes, foreground[:, classes], candidates[:, classes], config.nms_threshold)
        if int(survivors.sum()) >= config.min_detections:
            break
    column, rows = survivors.t().nonzero().unbind(1)
    labels = classes[column] + 1
    scores = probabilities[rows, labels]
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score[labels[by_score].argsort(stable=True)]
    if len(order) > config.max_detections:
        lowest = scores[by_score[config.max_detections - 1]]  # its ties stay, so there may be more
        order = order[scores[order] >= lowest]
    return rows[order], labels[order], scores[order]


def detect_best_class(boxes, probabilities, config: VinVLConfig):
    """NMS_FILTER 2: the best class of every proposal, then one NMS over all classes. See `DETECT`."""
    best, label = probabilities[:, 1:].max(1)
    rows = (best > 0.01 * config.score_threshold).nonzero()[:, 0]
    rows = rows[nms(boxes[rows], best[rows], config.nms_threshold)]
    count = int((best[rows] >= config.score_threshold).sum().clamp(config.min_detections, config.max_detections))
    rows = rows[:count]
    return rows, label[rows] + 1, best[rows]


# (boxes (P, 4) or (P, classes, 4), probabilities (P, classes), config) -> rows of the proposals, labels, scores: (N,)
DETECT = {0: detect_every_class, 1: detect_best_surviving_class, 2: detect_best_class}


class VinVLAttributeHead(nn.Module):
    """Appearance and label to attributes."""

    def __init__(self, config: VinVLConfig):
        super().__init__()
        self.config = config
        in_features = config.appearance_size + config.class_embedding_size
        self.predictor = nn.ModuleDict(
            {
                "cls_embedding": nn.Embedding(config.num_classes, config.class_embedding_size),
                "fc_attr": nn.Linear(in_features, config.attribute_hidden_size),
                "attr_score": nn.Linear(config.attribute_hidden_size, config.num_attributes),
            }
        )

    def forward(self, appearance: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 2048) and (N,) -> attribute ids and scores (N, A), falling; ids are 0 where the score is 0."""
        cls_embedding, fc_attr, attr_score = self.predictor.values()
        x = torch.cat([appearance.to(fc_attr.weight.dtype), cls_embedding(labels)], dim=-1)
        scores = attr_score(fc_attr(x).relu_()).float().softmax(-1)
        scores = scores * (scores > self.config.attribute_threshold)
        scores[:, 0] = 0  # "no attribute"
        scores, ids = scores.topk(min(self.config.max_attributes_per_region, scores.shape[1]), dim=-1)
        return ids * (scores > 0), scores


class VinVLModel(RegionModel):
    """Images to regions: boxes, labels, attributes and 2,054-d feature rows.

    Runs in the dtype of its weights; boxes, scores and features are always float32, and every part casts what it gets
    to its own dtype, so one part alone can run in bfloat16 (`model.roi_heads.bfloat16()`).
    """

    config: VinVLConfig
    config_class = VinVLConfig
    base_model_prefix = "vinvl"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["VinVLBottleneck"]
    _keep_in_fp32_modules_strict = ["bn1", "bn2", "bn3", "downsample.1"]  # rounded once, after they met the weights

    def __init__(self, config: VinVLConfig):
        super().__init__(config)
        if find_spec("torchvision") is None:
            raise ImportError(NEEDS_TORCHVISION)
        self.backbone = VinVLBackbone(config)
        self.rpn = VinVLRegionProposals(config)
        self.roi_heads = nn.ModuleDict({"box": VinVLBoxHead(config)})
        self.attribute = VinVLAttributeHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module.__class__.__name__ == "VinVLFrozenNorm":
            nn.init.ones_(module.weight)  # while a checkpoint is loaded these leave alone what it has
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)
            nn.init.ones_(module.running_var)
        elif module.__class__.__name__ == "VinVLCellAnchors":
            module.get_buffer("0").copy_(cell_anchors(module.sizes, module.ratios))

    @torch.no_grad()
    def fold_norms(self) -> "VinVLModel":
        """Multiply the norms' scales into the convolutions for good, instead of anew on every call.

        The keys stay, and a folded model saves and loads as the same function. Before `.bfloat16()` it also keeps the
        scales from being rounded on their own. Returns the model.
        """
        for module in self.modules():
            if not hasattr(module, "conv1"):
                continue
            pairs = [
                (getattr(module, f"conv{i}"), getattr(module, f"bn{i}")) for i in (1, 2, 3) if hasattr(module, f"bn{i}")
            ]
            pairs += [module.downsample] if hasattr(module, "downsample") else []
            for conv, norm in pairs:
                if not norm.folded:
                    scale, shift = norm.scale_and_shift()
                    conv.weight.copy_(conv.weight * scale[:, None, None, None])
                    norm.bias.copy_(shift)
                    norm.running_mean.zero_()
                    norm.weight.fill_(1)
                    norm.running_var.fill_(1)
                    norm.folded = True
        return self

    def forward(
        self,
        pixel_values: torch.Tensor,
        original_sizes: torch.Tensor,
        reshaped_input_sizes: torch.Tensor | None = None,
        return_proposals: bool = False,
        **kwargs,
    ) -> RegionModelOutput:
        """Detect regions.

        Args:
            pixel_values: (B, 3, H, W) from `VinVLImageProcessor`. Where sizes differ, images are padded; that changes
                the result a little, as it did in the original.
            original_sizes: (B, 2) height and width of the photos in pixels.
            reshaped_input_sizes: (B, 2) height and width after resizing; without it nothing is padding.
            return_proposals: also return the proposals (B, P, 4) in pixels of the resized image, padded with zeros.

        Returns:
            RegionModelOutput, regions by falling score (with `nms_filter=0` class by class, as in the original).

        Raises:
            ValueError: sizes that do not fit `pixel_values`.
        """
        original_sizes, sizes = self._check_sizes(pixel_values, original_sizes, reshaped_input_sizes)
        c4 = self.backbone(pixel_values)
        proposals = self.rpn(c4, sizes)
        appearance = self.roi_heads["box"].feature_extractor(c4, proposals)
        images = zip(appearance.split([len(boxes) for boxes in proposals]), proposals, sizes, strict=True)
        detections = [self._detect(*image) for image in images]
        appearance, boxes, labels, scores = (list(column) for column in zip(*detections, strict=True))
        attribute_ids, attribute_scores = self._attributes(c4, appearance, boxes, labels)
        scale = (original_sizes / sizes).flip(1).repeat(1, 2)  # (B, 4): width, height, width, height
        boxes = pad([image_boxes * ratio for image_boxes, ratio in zip(boxes, scale, strict=True)])
        return RegionModelOutput(
            region_features=torch.cat([pad(appearance), self._geometry(boxes, original_sizes)], dim=-1),
            region_attention_mask=pad([torch.ones_like(row) for row in labels]),
            boxes=boxes,
            scores=pad(scores),
            class_ids=pad(labels),
            attribute_ids=attribute_ids,
            attribute_scores=attribute_scores,
            proposals=pad(proposals) if return_proposals else None,
        )

    def _check_sizes(self, pixel_values, original_sizes, reshaped_input_sizes):
        """Both sizes as (B, 2) float32 on the device of the pixels."""
        batch, _, height, width = pixel_values.shape
        if reshaped_input_sizes is None:
            reshaped_input_sizes = torch.tensor([[height, width]] * batch)
        sizes = []
        for name, value in (("original_sizes", original_sizes), ("reshaped_input_sizes", reshaped_input_sizes)):
            value = torch.as_tensor(value, dtype=torch.float32, device=pixel_values.device)
            if value.shape != (batch, 2):
                raise ValueError(f"{name} has shape {tuple(value.shape)}; {batch} images need ({batch}, 2)")
            sizes.append(value)
        if (sizes[1] > sizes[1].new_tensor([height, width])).any():
            raise ValueError(f"reshaped_input_sizes exceed pixel_values, which are {height} high and {width} wide")
        return sizes

    def _detect(self, appearance, proposals, size):
        """One image: (P, 2048), (P, 4), height and width -> appearance, boxes (resized pixels), labels, scores."""
        head = self.roi_heads["box"]
        boxes = proposals if self.config.ignore_box_regression else head.regressed(appearance, proposals, size)
        rows, labels, scores = DETECT[self.config.nms_filter](boxes, head.probabilities(appearance), self.config)
        return appearance[rows], boxes[rows] if boxes.dim() == 2 else boxes[rows, labels], labels, scores

    def _attributes(self, c4, appearance, boxes, labels):
        """Attribute ids and scores (B, R, A), or None and None."""
        if not self.config.predict_attributes:
            return None, None
        counts = [len(row) for row in labels]
        appearance = torch.cat(appearance)
        if not self.config.ignore_box_regression and sum(counts):  # other boxes than the proposals: look again
            appearance = self.roi_heads["box"].feature_extractor(c4, boxes)
        ids, scores = self.attribute(appearance, torch.cat(labels))
        return pad(ids.split(counts)), pad(scores.split(counts))

    def _geometry(self, boxes, original_sizes):
        geometry = box_geometry(boxes, original_sizes)
        return geometry if self.config.geometry_order == "wh" else geometry[..., [0, 1, 2, 3, 5, 4]]

    def tags(self, output: RegionModelOutput, language: str = "zh") -> list[list[str]]:
        """The regions' labels as words, one list per image, in the order of the regions.

        Args:
            output: what the model returned.
            language: "zh" (words without a translation stay English) or "en".

        Raises:
            ValueError: another language, or a class that `config.id2label` does not name.
        """
        return [[region["label"] for region in regions] for regions in self.describe(output, language)]

    def describe(self, output: RegionModelOutput, language: str = "zh") -> list[list[dict]]:
        """The regions in words, one list per image.

        Returns:
            Per region {"box": [x1, y1, x2, y2] in pixels of the photo, "label", "score",
            "attributes": [{"label", "score"}, ...]}.

        Raises:
            ValueError: as `tags`.
        """
        if language not in ("zh", "en"):
            raise ValueError(f"language is {language!r}; there are 'zh' and 'en'")
        images = []
        for image, mask in enumerate(output.region_attention_mask.tolist()):
            regions = []
            for row in range(sum(mask)):
                region = {
                    "box": output.boxes[image, row].tolist(),
                    "label": self._word(self.config.id2label, "label", int(output.class_ids[image, row]), language),
                    "score": output.scores[image, row].item(),
                    "attributes": [],
                }
                if output.attribute_ids is not None:
                    ids, scores = (
                        output.attribute_ids[image, row].tolist(),
                        output.attribute_scores[image, row].tolist(),
                    )
                    region["attributes"] = [
                        {"label": self._word(self.config.id2attribute, "attribute", index, language), "score": score}
                        for index, score in zip(ids, scores, strict=True)
                        if score > 0
                    ]
                regions.append(region)
            images.append(regions)
        return images

    def _word(self, names: dict, kind: str, index: int, language: str) -> str:
        if index not in names:
            raise ValueError(
                f"config.id2{kind} has no name for id {index}: convert the checkpoint together with its label map"
            )
        if language == "en":
            return names[index]
        if kind == "attribute":  # a captioner's dictionary has the senses of objects: "light" is 灯 there, 浅色 here
            return self.config.id2attribute_zh.get(index) or in_chinese(names[index], "attribute_to_chinese")
        trained = self.config.labels_zh or {}
        return trained.get(names[index]) or self.config.id2label_zh.get(index) or in_chinese(names[index], "to_chinese")


def in_chinese(name: str, function: str) -> str:
    """By the library's dictionary, for detectors that were not converted by it and carry no Chinese words.

    As code of a Hub repo this file stands alone: the word stays English there.
    """
    if __name__.startswith("transformers_modules"):
        return name
    return getattr(import_module(".labels.chinese", __package__), function)(name)


def pad(rows) -> torch.Tensor:
    """Per image (N, ...) -> (B, longest N, ...), zeros below."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
