"""Configuration of the VinVL X152-C4 region detector.

The defaults are the detector that Microsoft released as vinvl_vg_x152c4 with the options of the Mengzi-Oscar commands
(`NMS_FILTER 1`, `SCORE_THRESH 0.2`, `IGNORE_BOX_REGRESSION True`). Another size of the same network is other numbers.
"""

from transformers import PretrainedConfig

from .fields import COMMON, check_fields, flag, labels, listed, mapping, number, one_of, optional, text, whole, word
from .supported_transformers import OLDEST  # noqa: F401  (importing it checks the installed release)

FIELDS = COMMON | {
    "depths": listed(whole(1, 200), 4),
    "stem_channels": whole(1, 65_536),
    "stage_channels": whole(1, 65_536),
    "groups": whole(1, 65_536),
    "width_per_group": whole(1, 65_536),
    "num_classes": whole(2, 1_000_000),
    "num_attributes": whole(2, 1_000_000),
    "anchor_sizes": listed(number(1, 65_536)),
    "anchor_ratios": listed(number(0.001, 1_000)),
    "rpn_pre_nms_top_n": whole(1, 1_000_000),
    "rpn_post_nms_top_n": whole(1, 1_000_000),
    "rpn_nms_threshold": number(0, 1),
    "nms_filter": one_of(0, 1, 2),
    "class_nms_threshold": number(0, 1),
    "nms_threshold": number(0, 1),
    "score_threshold": number(0, 1),
    "min_detections": whole(0, 100_000),
    "max_detections": whole(1, 100_000),
    "ignore_box_regression": flag,
    "predict_attributes": flag,
    "class_embedding_size": whole(1, 65_536),
    "attribute_hidden_size": whole(1, 65_536),
    "attribute_threshold": number(0, 1),
    "max_attributes_per_region": whole(1, 10_000),
    "geometry_order": one_of("wh", "hw"),
    "rois_per_chunk": whole(1, 1_000_000),
    "id2attribute": optional(labels),
    "id2label_zh": optional(labels),
    "id2attribute_zh": optional(labels),
    "labels_zh": optional(mapping(text, word)),
}


class VinVLConfig(PretrainedConfig):
    """Sizes, decision rules and label maps of a VinVL detector.

    Args:
        depths: bottlenecks in layer1, layer2, layer3 (the trunk) and layer4 (run on every region).
        stem_channels: channels after the 7x7 convolution.
        stage_channels: output channels of layer1; each later layer doubles them.
        groups: groups of every 3x3 convolution.
        width_per_group: channels per group in layer1; each later layer doubles them.
        num_classes: object classes with background, which is class 0.
        num_attributes: attributes with "no attribute", which is attribute 0.
        anchor_sizes: sides of the square anchors in pixels of the resized image.
        anchor_ratios: height / width of the anchors.
        rpn_pre_nms_top_n: anchors that enter the NMS of the region proposal network.
        rpn_post_nms_top_n: proposals per image.
        rpn_nms_threshold: an overlap (IoU) above it suppresses a proposal.
        nms_filter: how proposals become detections. 1: per-class NMS, each proposal keeps the best class in which it
            survived (Mengzi-Oscar). 2: best class first, then one NMS for all classes (the features Microsoft
            published for Oscar+). 0: per-class NMS, a proposal may give several detections.
        class_nms_threshold: IoU threshold of filter 1 (a literal 0.3 in the original).
        nms_threshold: IoU threshold of filters 0 and 2.
        score_threshold: detections below it only fill up to `min_detections`.
        min_detections: least number of detections per image, as far as there are proposals.
        max_detections: greatest number of detections per image.
        ignore_box_regression: the boxes are the proposals, so features, scores and boxes describe one rectangle.
        predict_attributes: run the attribute head.
        class_embedding_size: width of the label embedding that enters the attribute head.
        attribute_hidden_size: hidden width of the attribute head.
        attribute_threshold: attributes with a probability at or below it are dropped.
        max_attributes_per_region: A of `attribute_ids` (B, R, A).
        geometry_order: order of the last two numbers of a feature row, "wh" (width, height) or "hw".
        rois_per_chunk: proposals that go through layer4 at a time. Changes memory and speed, not results; small
            chunks stay in the cache of a CPU, a GPU wants a few hundred.
        id2attribute: {attribute id: English}. `id2label` is {class id: English}; neither has an entry for 0.
        id2label_zh, id2attribute_zh: the same in Chinese, as conversion writes them.
        labels_zh: {English: Chinese} of the captioner's training; goes before `id2label_zh`.

    Raises:
        ValueError: a value that `FIELDS` does not allow, by name, or filter 2 with box regression (the original mixes
            up rows there).
    """

    model_type = "vinvl"

    def __init__(
        self,
        *,
        depths: list[int] | tuple[int, ...] = (3, 8, 36, 3),
        stem_channels: int = 64,
        stage_channels: int = 256,
        groups: int = 32,
        width_per_group: int = 8,
        num_classes: int = 1595,
        num_attributes: int = 525,
        anchor_sizes: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512),
        anchor_ratios: list[float] | tuple[float, ...] = (0.5, 1.0, 2.0),
        rpn_pre_nms_top_n: int = 6000,
        rpn_post_nms_top_n: int = 300,
        rpn_nms_threshold: float = 0.7,
        nms_filter: int = 1,
        class_nms_threshold: float = 0.3,
        nms_threshold: float = 0.5,
        score_threshold: float = 0.2,
        min_detections: int = 10,
        max_detections: int = 100,
        ignore_box_regression: bool = True,
        predict_attributes: bool = True,
        class_embedding_size: int = 256,
        attribute_hidden_size: int = 512,
        attribute_threshold: float = 0.05,
        max_attributes_per_region: int = 16,
        geometry_order: str = "wh",
        rois_per_chunk: int = 20,
        id2label: dict[int, str] | dict[str, str] | None = None,
        id2attribute: dict[int, str] | dict[str, str] | None = None,
        id2label_zh: dict[int, str] | None = None,
        id2attribute_zh: dict[int, str] | None = None,
        labels_zh: dict[str, str] | None = None,
        **kwargs,
    ):
        if nms_filter == 2 and not ignore_box_regression:
            raise ValueError("nms_filter 2 has no meaning with regressed boxes: set ignore_box_regression=True")
        maps = {"id2attribute": id2attribute, "id2label_zh": id2label_zh, "id2attribute_zh": id2attribute_zh}
        self.depths = depths
        self.stem_channels = stem_channels
        self.stage_channels = stage_channels
        self.groups = groups
        self.width_per_group = width_per_group
        self.num_classes = num_classes
        self.num_attributes = num_attributes
        self.anchor_sizes = anchor_sizes
        self.anchor_ratios = anchor_ratios
        self.rpn_pre_nms_top_n = rpn_pre_nms_top_n
        self.rpn_post_nms_top_n = rpn_post_nms_top_n
        self.rpn_nms_threshold = rpn_nms_threshold
        self.nms_filter = nms_filter
        self.class_nms_threshold = class_nms_threshold
        self.nms_threshold = nms_threshold
        self.score_threshold = score_threshold
        self.min_detections = min_detections
        self.max_detections = max_detections
        self.ignore_box_regression = ignore_box_regression
        self.predict_attributes = predict_attributes
        self.class_embedding_size = class_embedding_size
        self.attribute_hidden_size = attribute_hidden_size
        self.attribute_threshold = attribute_threshold
        self.max_attributes_per_region = max_attributes_per_region
        self.geometry_order = geometry_order
        self.rois_per_chunk = rois_per_chunk
        self.labels_zh = labels_zh
        check_fields(vars(self) | {"id2label": id2label} | maps | kwargs, FIELDS)
        if id2label and {*map(int, id2label)} != {*range(1, num_classes)}:
            raise ValueError(f"id2label does not name the classes 1 to {num_classes - 1}, each once")
        super().__init__(id2label=id2label or {}, **kwargs)  # None would become two invented labels
        self.id2attribute = with_numbers(id2attribute)
        self.id2label_zh = with_numbers(id2label_zh)
        self.id2attribute_zh = with_numbers(id2attribute_zh)

    @property
    def appearance_size(self) -> int:
        """Length of a region's appearance vector: the channels of layer4."""
        return self.stage_channels * 8

    @property
    def region_feature_size(self) -> int:
        """Length of a feature row: appearance and 6 numbers of box geometry (2,054)."""
        return self.appearance_size + 6


def with_numbers(names) -> dict[int, str]:
    """Names by id, whose numbers JSON makes strings."""
    return {int(key): name for key, name in (names or {}).items()}
