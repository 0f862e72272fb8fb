"""A region model with a small detector: detected objects first, then the cells of a grid; tags of both.

The objects' features are pooled inside their boxes from the grid model's last feature map (RoIAlign, He et al. 2017;
detector and features apart, as features of one network for the boxes of another). The detector is a
`NanoDetForObjectDetection`, or any of transformers' object detection models (D-FINE, RT-DETR, DETR, ..).
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForObjectDetection,
    BaseImageProcessor,
    BatchFeature,
    PretrainedConfig,
)

from .fields import COMMON, Rule, check_fields, flag, listed, mapping, number, optional, whole, word
from .modeling_grid_regions import GridRegionConfig, GridRegionImageProcessor, GridRegionModel, height_and_width
from .modeling_nanodet import NanoDetConfig, NanoDetForObjectDetection
from .modeling_regions import RegionModel, RegionModelOutput, as_pictures, box_geometry
from .photos import to_rgb

if TYPE_CHECKING:  # transformers before 5.10 brings only the files that the file of a class names itself
    from .checksums import share_weights  # noqa: F401
    from .supported_transformers import OLDEST  # noqa: F401

DOUBT = "？"  # written behind the word of a tag that may be wrong
FETCHING = (
    "auto_map",
    "trust",
    "cache",
    "checkpoint",
    "attn_",
    "_attn_",
)  # begin fields that read or run
REPEATED = ("layers", "depth", "blocks", "stages", "levels")  # in names of fields that say how many modules are built
BOXES_BEFORE_NMS = 300  # the most probable ones; a detector of queries has about as many


def _is_harmless(value, name="", depth=0) -> bool:
    """Sizes, choices and names: nothing that reads, downloads or runs, or is too large to be built."""
    if isinstance(value, Mapping):
        if name in ("id2label", "label2id"):  # COMMON looks at them
            return True
        fetched = any(value.get(one) for one in ("use_pretrained_backbone", "pretrained", "_name_or_path"))
        names = all(isinstance(one, (str, int)) and not str(one).startswith(FETCHING) for one in value)
        return names and not fetched and depth < 6 and all(_is_harmless(value[n], str(n), depth + 1) for n in value)
    if isinstance(value, (list, tuple)):
        return len(value) <= 10_000 and depth < 6 and all(_is_harmless(one, name, depth + 1) for one in value)
    if isinstance(value, str):  # a slash is in what the Hub or the disk has: a backbone's config, attention's code
        return len(value) < 200 and "/" not in value and "\\" not in value and not value.startswith((".", "~"))
    if isinstance(value, int):
        return abs(value) <= (1_000 if any(part in name for part in REPEATED) else 100_000)
    return value is None or isinstance(value, float)


DETECTOR = Rule(
    "the config of an object detection model: its model_type and sizes (up to 100,000, 1,000 layers), nothing that is "
    "downloaded",
    lambda value: isinstance(value, Mapping) and isinstance(value.get("model_type"), str) and _is_harmless(value),
)
FIELDS = COMMON | {
    "grid": mapping(Rule("names", lambda name: isinstance(name, str)), Rule("anything", lambda value: True)),
    "detector": DETECTOR,
    "object_labels": optional(listed(word)),
    "max_objects": whole(0, 1_000),
    "object_threshold": number(0, 1),
    "object_tag_threshold": number(0, 1),
    "object_sure": number(0, 1),
    "nms_threshold": number(0, 1),
    "absent_labels": optional(mapping(word, word)),
}
IMAGE_FIELDS = {
    "grid": FIELDS["grid"],
    "detector_mean": listed(number(-1_000, 1_000), 3),
    "detector_std": listed(number(1e-6, 1_000), 3),
    "detector_bgr": flag,
    "detector_keep_ratio": flag,
}


class ObjectRegionConfig(PretrainedConfig):
    """
    Args:
        grid: fields of a `GridRegionConfig`: the backbone whose feature map is pooled, its cells and its words.
        detector: config of the detector with its `model_type`: "nanodet", or one of transformers' object detection
            models.
        object_labels: words of its classes, in their order. None: as the detector's `id2label` has them.
        max_objects: objects per image. object_threshold: least probability of an object.
        object_tag_threshold: least probability of an object whose word is a tag of the image. object_sure: a tag below
            this probability is low-confidence: its word is followed by "？".
        nms_threshold: of two boxes of one class that overlap more (IoU), the less probable one goes.
        absent_labels: {word of a class: tag where the word is none}, e.g. {"人": "无人"}. It is followed by "？" if
            there is an object of the class nevertheless.

    Raises:
        ValueError: a value that `FIELDS` does not allow, by name, or labels that contradict each other.
    """

    model_type = "object_regions"

    def __init__(
        self,
        *,
        grid: dict | None = None,
        detector: dict | None = None,
        object_labels: list[str] | None = None,
        max_objects: int = 10,
        object_threshold: float = 0.3,
        object_tag_threshold: float = 0.3,
        object_sure: float = 0.5,
        nms_threshold: float = 0.6,
        absent_labels: dict[str, str] | None = None,
        **kwargs,
    ):
        self.grid = {} if grid is None else grid
        self.detector = {"model_type": NanoDetConfig.model_type} if detector is None else detector
        self.object_labels = object_labels
        self.max_objects = max_objects
        self.object_threshold = object_threshold
        self.object_tag_threshold = object_tag_threshold
        self.object_sure = object_sure
        self.nms_threshold = nms_threshold
        self.absent_labels = absent_labels
        check_fields(vars(self) | kwargs, FIELDS)
        check_fields(self.detector, COMMON)
        self.grid_config()
        names = self.detector_config().id2label
        words = self.object_words
        check_fields({"object_labels": words}, FIELDS)
        if len(words) != len(names) or len(set(words)) != len(words):
            raise ValueError(f"object_labels has {len(set(words))} different words for {len(names)} classes")
        if strangers := set(absent_labels or ()) - set(words):
            raise ValueError(f"absent_labels names {sorted(strangers)[0]!r}, which is no word of the detector")
        super().__init__(**kwargs)

    def grid_config(self) -> GridRegionConfig:
        return GridRegionConfig(**{name: value for name, value in self.grid.items() if name != "model_type"})

    def detector_config(self) -> PretrainedConfig:
        """
        Raises:
            ValueError: a kind of model that transformers does not know.
        """
        fields = {name: deepcopy(value) for name, value in self.detector.items() if name != "model_type"}
        kind = self.detector["model_type"]
        if kind == NanoDetConfig.model_type:
            return NanoDetConfig(**fields)
        try:
            return AutoConfig.for_model(kind, **fields)
        except ValueError as error:
            if "Unrecognized model identifier" not in str(error):
                raise
            raise ValueError(f"detector has the model_type {kind!r}, which transformers does not know") from None

    @property
    def region_feature_size(self) -> int:
        """Length of a feature row: appearance and 6 numbers of box geometry."""
        return self.grid_config().region_feature_size

    @property
    def object_words(self) -> list[str]:
        """Words of the detector's classes, in their order."""
        names = self.detector_config().id2label
        return list(self.object_labels or (names[index] for index in sorted(names)))

    @property
    def tag_labels(self) -> list[str]:
        """Texts of tag ids: words of objects (class ids are theirs), of the grid, of the absent; then all in doubt."""
        grid = self.grid_config()
        theirs = (grid.tag_labels or [])[: len(grid.tag_labels or []) // (1 if grid.tag_sure is None else 2)]
        words = [*dict.fromkeys([*self.object_words, *theirs, *(self.absent_labels or {}).values()])]
        return words + [word + DOUBT for word in words]


class ObjectRegionImageProcessor(BaseImageProcessor):
    """Photos -> `pixel_values` of the grid model, `detector_pixel_values` (B, 3, S, S), `original_sizes` (B, 2).

    And `detector_extents` (B, 2): the share of the detector's height and width that the photo takes.

    Args:
        grid: fields of a `GridRegionImageProcessor`.
        detector_size: height and width of the detector's pixels.
        detector_keep_ratio: photos keep their proportions, with black below or beside them; else they are squashed.
        detector_mean, detector_std: of the values 0 to 1, red, green, blue.
        detector_bgr: blue, green, red instead, as NanoDet wants it.
    """

    model_input_names = ["pixel_values", "detector_pixel_values", "detector_extents", "original_sizes"]

    def __init__(
        self,
        grid: dict | None = None,
        detector_size: dict[str, int] | tuple[int, int] | int = 416,
        detector_mean: list[float] = (0.485, 0.456, 0.406),
        detector_std: list[float] = (0.229, 0.224, 0.225),
        detector_bgr: bool = True,
        detector_keep_ratio: bool = True,
        **kwargs,
    ):
        height, width = height_and_width(detector_size)
        self.grid = dict(grid or {})
        self.detector_size = {"height": height, "width": width}
        self.detector_mean, self.detector_std = list(detector_mean), list(detector_std)
        self.detector_bgr, self.detector_keep_ratio = detector_bgr, detector_keep_ratio
        check_fields(vars(self), IMAGE_FIELDS)
        self.grid_processor()
        super().__init__(**kwargs)

    def grid_processor(self) -> GridRegionImageProcessor:
        return GridRegionImageProcessor(**self.grid)

    def preprocess(self, images, return_tensors: str | None = None, **kwargs) -> BatchFeature:
        """
        Args:
            images: one or several, as `as_pictures` takes them. return_tensors: "pt" or "np"; None: lists.
        """
        pictures = as_pictures(images)
        data = dict(self.grid_processor().preprocess(pictures))
        height, width = self.detector_size["height"], self.detector_size["width"]
        sizes = [self.size_for_detector(picture) for picture in pictures]
        data["detector_pixel_values"] = [self.detector_pixels(*pair) for pair in zip(pictures, sizes, strict=True)]
        data["detector_extents"] = np.array([(h / height, w / width) for h, w in sizes], np.float32)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def size_for_detector(self, picture: Image.Image) -> tuple[int, int]:
        """Height and width that the detector sees a photo in."""
        height, width = self.detector_size["height"], self.detector_size["width"]
        if not self.detector_keep_ratio:
            return height, width
        scale = min(height / picture.height, width / picture.width)
        return max(1, round(scale * picture.height)), max(1, round(scale * picture.width))

    def detector_pixels(self, picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """-> (3, H, W) float32, the photo at the top left."""
        height, width = size
        values = np.zeros((self.detector_size["height"], self.detector_size["width"], 3), np.float32)
        values[:height, :width] = to_rgb(picture).resize((width, height), Image.Resampling.BILINEAR)
        values = (values / 255 - np.array(self.detector_mean, np.float32)) / np.array(self.detector_std, np.float32)
        return np.ascontiguousarray((values[:, :, ::-1] if self.detector_bgr else values).transpose(2, 0, 1))


class ObjectRegionModel(RegionModel):
    """Pixels -> detected objects, most probable first, then the cells of the grid; tags of the whole image."""

    config: ObjectRegionConfig
    config_class = ObjectRegionConfig
    base_model_prefix = "object_regions"
    main_input_name = "pixel_values"

    def __init__(self, config: ObjectRegionConfig):
        super().__init__(config)
        self.grid = GridRegionModel(config.grid_config())
        detector = config.detector_config()
        if isinstance(detector, NanoDetConfig):
            self.detector = NanoDetForObjectDetection(detector)
        else:
            try:
                self.detector = AutoModelForObjectDetection.from_config(detector)
            except ValueError as error:
                if "Unrecognized configuration class" not in str(error):
                    raise
                kind = config.detector["model_type"]
                raise ValueError(f"detector has the model_type {kind!r}, which is no object detection model") from None
        self.words, self.tag_labels = config.object_words, config.tag_labels
        self.post_init()

    def fold_batch_norms(self) -> "ObjectRegionModel":
        """As `GridRegionModel.fold_batch_norms`; the detector stays as it is."""
        self.grid.fold_batch_norms()
        return self

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        detector_pixel_values: torch.FloatTensor,
        detector_extents: torch.FloatTensor,
        original_sizes: torch.LongTensor,
        **kwargs,
    ) -> RegionModelOutput:
        """
        Args:
            pixel_values, detector_pixel_values, detector_extents, original_sizes: as `ObjectRegionImageProcessor` makes
                them.

        Returns:
            Per image up to `max_objects` objects and the cells, R of the image with most; `class_ids` and `scores` are
            0 for cells. `tag_ids` and `tag_scores` (B, L), falling.
        """
        feature_map, cells, cell_boxes, word_probabilities = self.grid.look(pixel_values, original_sizes)
        detected = self.detect(detector_pixel_values.to(self.dtype), detector_extents)
        boxes, class_probabilities = detected  # (B, Q, 4), (B, Q, C)
        objects = [self.choose(*image) for image in zip(boxes, class_probabilities, strict=True)]
        pooled = self.pool(feature_map, [found[0] for found in objects])
        rows = []
        for (unit_boxes, scores, class_ids), features, size, own_cells, own_boxes in zip(
            objects, pooled, original_sizes, cells, cell_boxes, strict=True
        ):
            height, width = size.to(unit_boxes.dtype)
            object_boxes = unit_boxes * torch.stack([width, height, width, height])
            geometry = box_geometry(object_boxes[None], size[None])[0]
            none = own_boxes.new_zeros(len(own_cells))
            rows.append(
                {
                    "region_features": torch.cat([torch.cat([features, geometry], dim=-1), own_cells]),
                    "boxes": torch.cat([object_boxes, own_boxes]),
                    "scores": torch.cat([scores, none]),
                    "class_ids": torch.cat([class_ids, none.long()]),
                    "region_attention_mask": none.new_ones(len(object_boxes) + len(own_cells), dtype=torch.long),
                }
            )
        padded = {name: nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True) for name in rows[0]}
        tag_ids, tag_scores = self.rank_tags(class_probabilities.amax(dim=1), word_probabilities)
        return RegionModelOutput(**padded, tag_ids=tag_ids, tag_scores=tag_scores)

    def detect(self, pixel_values, extents) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """-> boxes (B, Q, 4), x1 y1 x2 y2 of the photo's sides, and probabilities (B, Q, C), float32."""
        output = self.detector(pixel_values)
        logits = output.logits.float()
        if logits.shape[-1] == self.detector.config.num_labels + 1:  # DETR: the last class is "no object"
            probabilities = logits.softmax(dim=-1)[..., :-1]
        else:
            probabilities = logits.sigmoid()
        centre, size = output.pred_boxes.float().split(2, dim=-1)
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)  # of the sides of the detector's pixels
        return (boxes / extents.float().flip(-1).repeat(1, 2)[:, None]).clamp(0, 1), probabilities

    def choose(self, boxes, probabilities):
        """Of one image: boxes (N, 4), scores (N,) and class ids from 1 on (N,), most probable first."""
        scores, classes = probabilities.max(dim=-1)
        real = (boxes[:, 2:] > boxes[:, :2]).all(dim=-1) & (scores >= self.config.object_threshold)
        scores = scores.masked_fill(~real, -1)
        best = scores.topk(min(BOXES_BEFORE_NMS, len(scores)))
        boxes, scores, classes = boxes[best.indices], best.values, classes[best.indices]
        boxes, scores, classes = boxes[scores >= 0], scores[scores >= 0], classes[scores >= 0]
        kept = torchvision_ops().batched_nms(boxes, scores, classes, self.config.nms_threshold)[
            : self.config.max_objects
        ]
        return boxes[kept], scores[kept], classes[kept] + 1

    def pool(self, feature_map, unit_boxes) -> list[torch.FloatTensor]:
        """Mean of the feature map inside each box: per image (N, C)."""
        feature_map, (height, width) = feature_map.float(), feature_map.shape[-2:]
        scale = unit_boxes[0].new_tensor([width, height, width, height])
        boxes = [boxes * scale for boxes in unit_boxes]
        settings = {"output_size": 1, "sampling_ratio": 4, "aligned": True}
        pooled = torchvision_ops().roi_align(feature_map.contiguous(), boxes, **settings).flatten(1)
        return list(pooled.split([len(image) for image in boxes]))

    def rank_tags(self, class_probabilities, word_probabilities) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """Of the best objects (B, C) and of the grid's words (B, W) or None -> tag ids and scores (B, L)."""
        config, grid = self.config, self.grid.config
        number = {label: index for index, label in enumerate(self.tag_labels, start=1)}
        images = []
        for row, best in enumerate(class_probabilities.tolist()):
            found = {}  # word -> whether it is sure, and its probability
            for label, score in zip(self.words, best, strict=True):
                if score >= config.object_tag_threshold:
                    found[label] = score >= config.object_sure, score
                elif absent := (config.absent_labels or {}).get(label):
                    found[absent] = score < config.object_threshold, 1 - score
            if word_probabilities is not None:
                best_words = word_probabilities[row].topk(min(grid.max_tags, word_probabilities.shape[-1]))
                for score, index in zip(best_words.values.tolist(), best_words.indices.tolist(), strict=True):
                    label, seen = grid.tag_labels[index], (score >= (grid.tag_sure or 0), score)
                    if score >= grid.tag_threshold:
                        found[label] = max(seen, found.get(label, seen))  # the surer of the two
            ranked = sorted(found.items(), key=lambda item: -item[1][1])
            images.append([(number[label if sure else label + DOUBT], score) for label, (sure, score) in ranked])
        length = max(1, *map(len, images))
        ids = torch.zeros((len(images), length), dtype=torch.long, device=class_probabilities.device)
        scores = torch.zeros((len(images), length), device=class_probabilities.device)
        for row, tags in enumerate(images):
            for place, (index, score) in enumerate(tags):
                ids[row, place], scores[row, place] = index, score
        return ids, scores

    def tags(self, output: RegionModelOutput) -> list[list[str]]:
        """The words of an output's tags, best first, per image."""
        return [[self.tag_labels[index - 1] for index in row if index > 0] for row in output.tag_ids.tolist()]

    def describe(self, output: RegionModelOutput, language: str = "zh") -> list[list[dict]]:
        """Per image, per region {"box"}, with "label" and "score" where it is an object.

        Args:
            language: of the labels: "zh" as `object_labels` has them, "en" as the detector's `id2label`.
        """
        names = self.detector.config.id2label
        labels = self.words if language == "zh" else [names[index] for index in sorted(names)]
        images = []
        for row, mask in enumerate(output.region_attention_mask.tolist()):
            regions = []
            for box, score, class_id in zip(
                output.boxes[row].tolist(), output.scores[row].tolist(), output.class_ids[row].tolist(), strict=True
            ):
                named = {"label": labels[class_id - 1], "score": score} if class_id else {}
                regions.append({"box": box} | named)
            images.append(regions[: sum(mask)])
        return images


def torchvision_ops():
    """Imported here because it takes seconds, and in a try because transformers wants everything else installed."""
    try:
        from torchvision import ops
    except ImportError:
        raise ImportError("ObjectRegionModel needs torchvision: pip install torchvision") from None
    return ops
