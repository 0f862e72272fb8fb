"""A region model without a detector: any timm backbone, one region per grid cell, tags for the whole image.

Grid features served captioning and VQA as well as detected regions in "In Defense of Grid Features" (Jiang et al.
2020). Config, image processor and model stand in this one file, because each is short and none is of use alone.
"""

from collections.abc import Mapping
from copy import copy, deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import BaseImageProcessor, BatchFeature, PretrainedConfig

from .fields import (
    COMMON,
    Rule,
    check_fields,
    either,
    flag,
    listed,
    mapping,
    number,
    one_of,
    optional,
    plain_name,
    whole,
    word,
)
from .modeling_regions import RegionModel, RegionModelOutput, as_pictures, box_geometry
from .photos import to_rgb

if TYPE_CHECKING:  # transformers before 5.10 brings only the files that the file of a class names itself
    from .checksums import share_weights  # noqa: F401
    from .supported_transformers import OLDEST  # noqa: F401

try:  # not where a model is built: `from_pretrained` does that on no device and with torch's initialisers replaced
    import timm
except ImportError:  # named when a model is built
    timm = None

# What a model of timm may be told in a file: its sizes and choices, nothing that reads, downloads or changes the form.
CHOICE = either(number(-4_096, 4_096), flag, plain_name)
OWN_CHOICE = Rule(
    "the name of a size or choice of the model itself",
    lambda name: (
        plain_name.holds(name)
        and not name.startswith(("pretrained", "checkpoint", "cache"))
        and name not in ("num_classes", "global_pool", "features_only", "scriptable", "exportable", "no_jit")
    ),
)
FIELDS = COMMON | {
    "backbone": plain_name,
    "backbone_kwargs": optional(mapping(OWN_CHOICE, optional(either(CHOICE, listed(CHOICE))))),
    "num_features": whole(1, 65_536),
    "grid_size": whole(1, 32),
    "tag_labels": optional(listed(word)),
    "tag_classes": optional(listed(whole(1, 1_000_000))),
    "tag_stage": whole(0, 100),
    "max_tags": whole(0, 1_000),
    "tag_threshold": number(0, 1),
    "tag_sure": optional(number(0, 1)),
    "initializer_range": number(0, 100),
}
CHANNELS = either(number(-65_536, 65_536), listed(number(-65_536, 65_536), 3))
PIXELS = whole(1, 2_048)
IMAGE_FIELDS = {
    "size": either(mapping(one_of("height", "width"), PIXELS), listed(PIXELS, 2), PIXELS),
    "do_convert_rgb": flag,
    "do_resize": flag,
    "resample": whole(0, 5),
    "do_rescale": flag,
    "rescale_factor": number(1e-9, 1e9),
    "do_normalize": flag,
    "image_mean": CHANNELS,
    "image_std": either(number(1e-9, 65_536), listed(number(1e-9, 65_536), 3)),
}


class GridRegionConfig(PretrainedConfig):
    """
    Args:
        backbone: name of a timm model; `backbone_kwargs` go to `timm.create_model`.
        num_features: channels of its last feature map, D = num_features + 6.
        grid_size: cells per side; the feature map is average-pooled to it. R = grid_size x grid_size.
        tag_labels: words of the tags; the id of `tag_labels[i]` is i + 1, 0 = none.
        tag_classes: the tag id of each class of the backbone's own classifier: tags are then what the backbone was
            trained to name (`ClassBranch`; EfficientNets). None: a tag head of its own, to be trained on sentences.
        tag_stage: with `tag_classes`: the first stage that the branch of the classes does not share with the regions.
        max_tags: tags returned per image. tag_threshold: least probability of a tag.
        tag_sure: a tag below this probability is low-confidence. `tag_labels` are then the words, followed by the same
            words as they are written with low confidence ("火箭？"). None: never.

    Raises:
        ValueError: a value that `FIELDS` does not allow, or tags that contradict each other, by name.
    """

    model_type = "grid_regions"

    def __init__(
        self,
        *,
        backbone: str = "tf_efficientnet_lite2",
        backbone_kwargs: dict | None = None,
        num_features: int = 1280,
        grid_size: int = 7,
        tag_labels: list[str] | None = None,
        tag_classes: list[int] | None = None,
        tag_stage: int = 5,
        max_tags: int = 10,
        tag_threshold: float = 0.3,
        tag_sure: float | None = None,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        self.backbone = backbone
        self.backbone_kwargs = backbone_kwargs
        self.num_features = num_features
        self.grid_size = grid_size
        self.tag_labels = tag_labels
        self.tag_classes = tag_classes
        self.tag_stage = tag_stage
        self.max_tags = max_tags
        self.tag_threshold = tag_threshold
        self.tag_sure = tag_sure
        self.initializer_range = initializer_range
        check_fields(vars(self) | kwargs, FIELDS)
        # with `tag_sure` each word stands there twice, the second time as it is written with low confidence
        words = len(tag_labels or []) // (1 if tag_sure is None else 2)
        if tag_classes and max(tag_classes) > words:
            raise ValueError(f"tag_classes names word {max(tag_classes)}, tag_labels has {words}")
        if tag_sure is not None and len(tag_labels or []) != 2 * words:
            raise ValueError(f"tag_labels has {len(tag_labels)} words; with tag_sure each is there twice")
        super().__init__(**kwargs)

    @property
    def region_feature_size(self) -> int:
        """Length of a feature row: appearance and 6 numbers of box geometry."""
        return self.num_features + 6


class GridRegionImageProcessor(BaseImageProcessor):
    """Photos -> `pixel_values` (B, 3, H, W), squashed to one size, and `original_sizes` (B, 2) height and width.

    Args:
        size: in pixels, as `height_and_width` takes it.
        resample: a filter of Pillow.
        image_mean, image_std: of the values after `rescale_factor`, one number or one per channel.
    """

    model_input_names = ["pixel_values", "original_sizes"]

    def __init__(
        self,
        size: dict[str, int] | tuple[int, int] | int = 260,
        do_convert_rgb: bool = True,
        do_resize: bool = True,
        resample: int = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | list[float] = (0.5, 0.5, 0.5),
        image_std: float | list[float] = (0.5, 0.5, 0.5),
        **kwargs,
    ):
        height, width = height_and_width(size)
        self.size = {"height": height, "width": width}
        self.do_convert_rgb = do_convert_rgb
        self.do_resize = do_resize
        self.resample = int(resample)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = image_mean
        self.image_std = image_std
        check_fields(vars(self), IMAGE_FIELDS)
        super().__init__(**kwargs)

    def preprocess(self, images, return_tensors: str | None = None, **changes) -> BatchFeature:
        """
        Args:
            images: one or several, as `as_pictures` takes them.
            return_tensors: "pt" or "np"; None: lists.
            changes: for this call, of what `__init__` takes. None changes nothing.

        Raises:
            TypeError: `changes` has a name that `__init__` does not.
        """
        setting = copy(self)
        for name, value in changes.items():
            if name not in vars(self):
                raise TypeError(f"GridRegionImageProcessor has no {name}")
            if value is not None:
                setattr(setting, name, value)
        pictures = as_pictures(images)
        original_sizes = [(picture.height, picture.width) for picture in pictures]
        data = {"pixel_values": [setting.pixels(picture) for picture in pictures], "original_sizes": original_sizes}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """-> (3, H, W), float32 unless it is neither rescaled nor normalised. Rescaled in double: so it was trained."""
        if self.do_convert_rgb:
            picture = to_rgb(picture)
        if self.do_resize:
            height, width = height_and_width(self.size)
            picture = picture.resize((width, height), self.resample)
        values = np.asarray(picture)  # (H, W, 3)
        if self.do_rescale:
            values = (values.astype(np.float64) * self.rescale_factor).astype(np.float32)
        if self.do_normalize:
            mean, std = np.array(self.image_mean, np.float32), np.array(self.image_std, np.float32)
            values = (values.astype(np.float32) - mean) / std
        return values.transpose(2, 0, 1)


def height_and_width(size) -> tuple[int, int]:
    """{"height", "width"}, (height, width), or one number for a square.

    Raises:
        ValueError: something else, as a size that keeps the proportions of a photo.
    """
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return size["height"], size["width"]
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return size[0], size[1]
    raise ValueError(f"size is {size}; give height and width: photos are squashed to one size")


class ClassBranch(nn.Module):
    """The last stages of an EfficientNet and its classifier, as they were before the regions' stages were tuned.

    Tuned on a few thousand photos the backbone forgets most of its classes; the stages before are shared. The weights
    of the classifier are stored in 8 bits, a scale per class.
    """

    def __init__(self, backbone: nn.Module, first_stage: int, num_classes: int):
        super().__init__()
        self.blocks = deepcopy(backbone.blocks[first_stage:])
        self.conv_head, self.bn2 = deepcopy(backbone.conv_head), deepcopy(backbone.bn2)
        self.register_buffer("weight", torch.zeros((num_classes, backbone.num_features), dtype=torch.int8))
        self.register_buffer("scale", torch.ones(num_classes))
        self.register_buffer("bias", torch.zeros(num_classes))

    def set_classifier(self, weight: torch.FloatTensor, bias: torch.FloatTensor):
        """Takes over a trained classifier: (num_classes, num_features) and (num_classes,)."""
        self.scale.copy_(weight.abs().amax(dim=1) / 127)
        self.weight.copy_((weight / self.scale[:, None]).round())
        self.bias.copy_(bias)

    def forward(self, trunk: torch.FloatTensor) -> torch.FloatTensor:
        """What the stages before made of the image -> probabilities (B, num_classes)."""
        return self.logits(self.pool(trunk)).softmax(dim=-1)

    def pool(self, trunk: torch.FloatTensor) -> torch.FloatTensor:
        """-> what the classifier judges, (B, num_features) float32."""
        return self.bn2(self.conv_head(self.blocks(trunk))).mean(dim=(2, 3)).float()

    def logits(self, pooled: torch.FloatTensor) -> torch.FloatTensor:
        return (F.linear(pooled, self.weight.float()) * self.scale + self.bias).float()


class GridRegionModel(RegionModel):
    """Pixels -> one region per grid cell, row by row from the top left, and tags of the whole image.

    Runs in the dtype of its weights; features, boxes and probabilities are always float32.
    """

    config: GridRegionConfig
    config_class = GridRegionConfig
    base_model_prefix = "grid_regions"
    main_input_name = "pixel_values"

    def __init__(self, config: GridRegionConfig):
        super().__init__(config)
        if timm is None:
            raise ImportError("GridRegionModel needs timm: pip install timm")
        self.backbone = timm.create_model(
            config.backbone, pretrained=False, num_classes=0, global_pool="", **(config.backbone_kwargs or {})
        )
        if self.backbone.num_features != config.num_features:
            raise ValueError(
                f"{config.backbone} has {self.backbone.num_features} channels, config.num_features says "
                f"{config.num_features}"
            )
        if config.tag_classes:
            self.tag_branch = ClassBranch(self.backbone, config.tag_stage, len(config.tag_classes))
        elif config.tag_labels:
            self.tag_classifier = nn.Linear(config.num_features, len(config.tag_labels))
        self.post_init()

    def _init_weights(self, module):
        if module is getattr(self, "tag_classifier", None):  # timm initialises its own modules ...
            super()._init_weights(module)
        elif hasattr(module, "init_non_persistent_buffers"):  # ... which `from_pretrained` builds without values
            module.init_non_persistent_buffers()

    def fold_batch_norms(self) -> "GridRegionModel":
        """Multiplies the norms of an EfficientNet into its convolutions, which saves a fifth of its time.

        For inference: such a model is not to be saved. Other backbones stay as they are. Returns the model.
        """
        if hasattr(self.backbone, "conv_stem"):  # there a norm follows the convolution that stands before it
            for module in list(self.modules()):
                for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
                    if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                        setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                        setattr(module, norm_name, norm.act)
        return self

    def forward(self, pixel_values: torch.FloatTensor, original_sizes: torch.LongTensor, **kwargs) -> RegionModelOutput:
        """
        Args:
            pixel_values: (B, 3, H, W). original_sizes: (B, 2), height and width of the photos in pixels.

        Returns:
            `region_features` (B, R, num_features + 6), `boxes` (B, R, 4) in pixels of the photos, `tag_ids` and
            `tag_scores` (B, L) if there are tag labels, falling, cut at `tag_threshold`.
        """
        _, features, boxes, probabilities = self.look(pixel_values, original_sizes)
        tag_ids = tag_scores = None
        if probabilities is not None:
            tag_ids, tag_scores = self.rank_tags(probabilities)
        return RegionModelOutput(
            region_features=features,
            region_attention_mask=torch.ones(boxes.shape[:2], dtype=torch.long, device=boxes.device),
            boxes=boxes,
            tag_ids=tag_ids,
            tag_scores=tag_scores,
        )

    def look(self, pixel_values, original_sizes):
        """-> last feature map (B, C, h, w), `cells`, and probabilities of the words (B, words) or None."""
        feature_map, probabilities = self.encode(pixel_values)
        features, boxes = self.cells(feature_map, original_sizes)
        if probabilities is None and self.config.tag_labels:
            probabilities = self.tag_logits(features).float().sigmoid()
        return feature_map, features, boxes, probabilities

    def encode(self, pixel_values) -> tuple[torch.FloatTensor, torch.FloatTensor | None]:
        """-> last feature map (B, C, h, w), and with `tag_classes` the probabilities of the words (B, words)."""
        pixel_values = pixel_values.to(self.dtype)
        if not self.config.tag_classes:
            return self.channels_first(self.backbone.forward_features(pixel_values)), None
        net, trunk = self.backbone, self.trunk(pixel_values)
        feature_map = net.bn2(net.conv_head(net.blocks[self.config.tag_stage :](trunk)))
        return self.channels_first(feature_map), self.word_probabilities(self.tag_branch(trunk))

    def trunk(self, pixel_values) -> torch.FloatTensor:
        """The stages that regions and classes share."""
        net = self.backbone
        return net.blocks[: self.config.tag_stage](net.bn1(net.conv_stem(pixel_values)))

    def cells(self, feature_map, original_sizes) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """Feature map -> feature rows (B, R, num_features + 6) and boxes (B, R, 4) of the cells."""
        boxes = self.cell_boxes(original_sizes)
        tokens = F.adaptive_avg_pool2d(feature_map, self.config.grid_size).flatten(2).transpose(1, 2)  # (B, R, C)
        return torch.cat([tokens.float(), box_geometry(boxes, original_sizes)], dim=-1), boxes

    def channels_first(self, features: torch.FloatTensor) -> torch.FloatTensor:
        """Last feature map of the backbone, whatever its layout, as (B, C, h, w)."""
        if features.dim() == 3:  # a ViT: (B, prefix tokens + h x w, C)
            features = features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
            side = round(features.shape[1] ** 0.5)
            features = features.transpose(1, 2).unflatten(2, (side, side))
        elif features.shape[1] != self.config.num_features:  # channels last, as Swin has them
            features = features.permute(0, 3, 1, 2)
        return features

    def cell_boxes(self, original_sizes: torch.LongTensor) -> torch.FloatTensor:
        """Boxes (B, R, 4) of the cells, x1 y1 x2 y2 in pixels of photos of the given (height, width)."""
        cells = self.config.grid_size
        edges = torch.arange(cells + 1, dtype=torch.float32, device=original_sizes.device) / cells
        y1, x1 = torch.meshgrid(edges[:-1], edges[:-1], indexing="ij")
        y2, x2 = torch.meshgrid(edges[1:], edges[1:], indexing="ij")
        unit = torch.stack([x1, y1, x2, y2], dim=-1).flatten(0, 1)  # (R, 4), of the photo's sides
        height, width = original_sizes.to(unit.dtype).unbind(-1)
        return unit * torch.stack([width, height, width, height], dim=-1)[:, None]

    def tag_logits(self, region_features: torch.FloatTensor) -> torch.FloatTensor:
        """(B, R, D) -> (B, number of tag labels), from the mean over the cells."""
        pooled = region_features[..., : self.config.num_features].mean(dim=1)
        return self.tag_classifier(pooled.to(self.tag_classifier.weight.dtype))

    def word_probabilities(self, probabilities: torch.FloatTensor) -> torch.FloatTensor:
        """Of classes (B, num_classes) -> of tag labels: the sum over the classes of a word."""
        words = torch.tensor(self.config.tag_classes, device=probabilities.device) - 1
        return probabilities.new_zeros(len(probabilities), len(self.config.tag_labels)).index_add(
            1, words, probabilities
        )

    def rank_tags(self, probabilities: torch.FloatTensor) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """Tag ids (0 = none) and probabilities (B, L), falling, those under `tag_threshold` set to 0."""
        scores, indices = probabilities.topk(min(self.config.max_tags, probabilities.shape[-1]), dim=-1)
        likely = scores >= self.config.tag_threshold
        if self.config.tag_sure is not None:
            indices = indices + (scores < self.config.tag_sure) * (len(self.config.tag_labels) // 2)
        return (indices + 1) * likely, scores * likely

    def tags(self, output: RegionModelOutput) -> list[list[str]]:
        """The words of an output's tags, best first, per image; empty lists where there is no tag head."""
        if output.tag_ids is None:
            return [[] for _ in output.region_features]
        return [[self.config.tag_labels[i - 1] for i in row if i > 0] for row in output.tag_ids.tolist()]
