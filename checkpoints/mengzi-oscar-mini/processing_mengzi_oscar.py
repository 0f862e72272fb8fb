"""Captions or questions, tags and regions -> tensors. The one place that knows the layout of the text.

Two layouts, as Oscar trained them: "caption" keeps the tags at positions `tag_position_offset` on, whatever the
length of the caption; "pair" lets the tags follow the text (VQA, GQA, retrieval, pre-training). The original pads the
caption to a fixed number of slots for the first; here the positions are given instead and nothing is computed on the
padding between.
"""

import re
from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from .confidence import CALIBRATIONS
from .configuration_mengzi_oscar import MengziOscarConfig
from .fields import check_fields, mapping, one_of, optional, whole, word

if TYPE_CHECKING:  # transformers before 5.10 brings only the files that the file of a class names itself
    from .supported_transformers import OLDEST  # noqa: F401

# Ideographs, kana, CJK punctuation, full-width forms: no space stands between these in Chinese text.
CJK = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef“”‘’…—"
CONTEXT, PADDING = -1, -2  # in `pack_captions`: slots all queries attend to, slots none does
SPACE_BETWEEN_CJK = re.compile(f"(?<=[{CJK}])\\s+(?=[{CJK}])")

FIELDS = {
    "layout": one_of("caption", "pair"),
    "tag_position_offset": whole(0, 1_000_000),
    "max_length": whole(4, 1_000_000),
    "max_regions": whole(1, 1_000_000),
    "max_tags": optional(whole(0, 1_000_000)),
    "tag_language": optional(one_of("zh", "en")),
    "styles": optional(mapping(word, word)),
    "style_lengths": optional(mapping(word, whole(2, 1_000_000))),
    "learnt_length": optional(whole(2, 1_000_000)),
    "confidence": optional(CALIBRATIONS),
}


class MengziOscarProcessor(ProcessorMixin):
    """
    Args:
        tokenizer: a BERT tokenizer.
        layout: "caption" or "pair".
        tag_position_offset: position of the first tag in the caption layout.
        max_length: text and tags together, in tokens. max_regions: best regions kept per image.
        max_tags: tag words kept per image; 0 = the checkpoint was trained without tags.
        tag_language: of the tags of the training, "zh" or "en"; None: not known.
        styles: for captioners that write in several: {style: the token that begins a caption of it}.
        style_lengths: {style: tokens of a caption of it at the most, with start and end}, of those that have another
            length than generation_config.json says.
        learnt_length: tokens of the longest sentence that a captioner was trained on, with start and end; None: not
            known. A training on longer ones begins where it ends.
        confidence: {token that begins captions: how sure one can be of them}, see confidence.py; None: not known.
    """

    def __init__(
        self,
        tokenizer,
        layout="caption",
        tag_position_offset=40,
        max_length=70,
        max_regions=50,
        max_tags=None,
        styles=None,
        style_lengths=None,
        learnt_length=None,
        tag_language=None,
        confidence=None,
        **kwargs,
    ):
        self.layout = layout
        self.tag_position_offset = tag_position_offset
        self.max_length = max_length
        self.max_regions = max_regions
        self.max_tags = max_tags
        self.styles = styles
        self.style_lengths = style_lengths
        self.learnt_length = learnt_length
        self.tag_language = tag_language
        self.confidence = confidence
        check_fields(vars(self), FIELDS)
        super().__init__(tokenizer, **kwargs)

    @property
    def tag_room(self) -> int:
        """Positions that the tags of the caption layout take; 0 for a checkpoint without tags."""
        return 0 if self.max_tags == 0 else max(self.max_length - self.tag_position_offset, 0)

    @property
    def model_input_names(self):
        return [
            *("input_ids", "attention_mask", "token_type_ids", "position_ids"),
            *("region_features", "region_attention_mask", "tag_input_ids", "tag_attention_mask"),
        ]

    def __call__(
        self,
        text=None,
        tags=None,
        regions=None,
        layout=None,
        max_length=None,
        max_regions=None,
        return_tensors="pt",
        padding=True,
        truncation=True,
        **others,
    ) -> BatchFeature:
        """
        Args:
            text: a caption or question per image (a list, or one string for one image); None to generate.
            tags: per image a list of words or one string; same ids either way.
            regions: per image an (R, D) array, or a dict with "region_features"; or one output of a region model.
            layout, max_length, max_regions: override the processor's own.
            return_tensors: "pt" or "np".
            padding: True or "longest": to the longest text of the batch; "max_length": to `max_length`.
            truncation: True: texts and tags are cut to `max_length`. There is no other way.

        Returns:
            With text: `input_ids`, `attention_mask`, `token_type_ids`, `position_ids` (B, T). Without: `tag_input_ids`,
            `tag_attention_mask` (B, L), if tags were given. With regions: `region_features` (B, R, D),
            `region_attention_mask` (B, R). Padding stands on the right.

        Raises:
            ValueError: numbers of texts, tags and regions that differ, regions of differing widths, something of
                another form, an argument that is not known.
        """
        max_length, max_regions = max_length or self.max_length, max_regions or self.max_regions
        layout = layout or self.layout
        check_arguments(layout, max_length, max_regions, return_tensors, padding, truncation, others)
        texts = as_texts(text, "text") if text is not None else None
        if tags is not None:
            tags = [tags] if isinstance(tags, str) or (texts and len(texts) == 1 and is_words(tags)) else tags
            tags = [" ".join(self._first_tags(row)) for row in as_tags(tags)]
        regions = split_regions(regions) if regions is not None else None
        sizes = {
            name: len(rows)
            for name, rows in (("text", texts), ("tags", tags), ("regions", regions))
            if rows is not None
        }
        if len(set(sizes.values())) != 1:
            raise ValueError(f"text, tags and regions must be of the same number of images, got {sizes or 'nothing'}")
        if 0 in sizes.values():
            raise ValueError(f"there is no image: {', '.join(sizes)} are empty")
        batch = {}
        if texts is not None:
            least = max_length if padding == "max_length" else 0
            batch |= self._encode_text(texts, tags, layout, max_length, least)
        elif tags is not None:
            batch |= self._encode_tags(tags, max_length)
        if regions is not None:
            batch |= pad_regions(regions, max_regions)
        return BatchFeature(batch).convert_to_tensors(return_tensors)

    def _first_tags(self, words):
        return words.split()[: self.max_tags] if isinstance(words, str) else list(words)[: self.max_tags]

    def _encode_text(self, texts, tags, layout, max_length, least):
        """[CLS] text [SEP] tags [SEP] of every image, padded."""
        tag_ids = [self.token_ids(words) for words in tags] if tags is not None else [[]] * len(texts)
        rows = [
            self.lay_out(self.token_ids(text), ids, layout, max_length)
            for text, ids in zip(texts, tag_ids, strict=True)
        ]
        padding = {"input_ids": self.tokenizer.pad_token_id}
        return {name: pad_rows([row[name] for row in rows], padding.get(name, 0), least) for name in rows[0]}

    def tag_ids(self, tags, max_length=None) -> list[int]:
        """Tags of one image (words or one string) in the caption layout: their token ids with [SEP]; [] if none."""
        room = max((max_length or self.max_length) - self.tag_position_offset - 1, 0)
        ids = self.token_ids(" ".join(self._first_tags(tags)))[:room]
        return [*ids, self.tokenizer.sep_token_id] if ids else []

    def lay_out(self, text_ids, tag_ids, layout, max_length) -> dict[str, list[int]]:
        """Token ids -> one row: [CLS] text [SEP] tags [SEP], types 0 and 1, positions by the layout."""
        if layout == "caption":
            text_ids = text_ids[: min(self.tag_position_offset, max_length) - 2]
            tag_ids = tag_ids[: max(max_length - self.tag_position_offset - 1, 0)]
        elif tag_ids:
            text_ids, tag_ids = truncate_pair(text_ids, tag_ids, max_length - 3)
        else:
            text_ids = text_ids[: max_length - 2]
        text_ids = [self.tokenizer.cls_token_id, *text_ids, self.tokenizer.sep_token_id]
        tag_ids = [*tag_ids, self.tokenizer.sep_token_id] if tag_ids else []
        tag_start = self.tag_position_offset if layout == "caption" else len(text_ids)
        return {
            "input_ids": text_ids + tag_ids,
            "attention_mask": [1] * (len(text_ids) + len(tag_ids)),
            "token_type_ids": [0] * len(text_ids) + [1] * len(tag_ids),
            "position_ids": [*range(len(text_ids)), *range(tag_start, tag_start + len(tag_ids))],
        }

    def begin(self, style: str | None, number: int) -> torch.LongTensor:
        """What `number` captions of a style begin with, (number, 1): `input_ids` of `generate`. None = [CLS].

        Raises:
            ValueError: the checkpoint has no such style.
        """
        styles = {None: self.tokenizer.cls_token} | (self.styles or {})
        if style not in styles:
            known = ", ".join(self.styles or ["one style only"])
            raise ValueError(f"this checkpoint does not write in the style {style!r}; it has: {known}")
        token = styles[style]
        return torch.full((number, 1), self.tokenizer.convert_tokens_to_ids(token))

    def _encode_tags(self, tags, max_length):
        rows = [self.tag_ids(words, max_length) for words in tags]
        return {
            "tag_input_ids": pad_rows(rows, self.tokenizer.pad_token_id),
            "tag_attention_mask": pad_rows([[1] * len(row) for row in rows], 0),
        }

    def token_ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def batch_decode(self, sequences, skip_special_tokens=True, **kwargs) -> list[str]:
        """Token ids (B, T) -> texts, cut at the first [SEP], without spaces between Chinese characters."""
        return [self.decode(row, skip_special_tokens, **kwargs) for row in sequences]

    def decode(self, token_ids, skip_special_tokens=True, **kwargs) -> str:
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        if self.tokenizer.sep_token_id in ids:
            ids = ids[: ids.index(self.tokenizer.sep_token_id)]
        text = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)
        return SPACE_BETWEEN_CJK.sub("", text).strip()


def check_arguments(layout, max_length, max_regions, return_tensors, padding, truncation, others):
    """
    Raises:
        ValueError: names the argument, and what it can be or what to use.
    """
    if "images" in others:
        raise ValueError("images: this processor takes regions; MengziOscarPipeline finds them in photos")
    if others:
        known = "text, tags, regions, layout, max_length, max_regions, padding, truncation, return_tensors"
        raise ValueError(f"the processor does not know {', '.join(map(repr, others))}; it takes {known}")
    choices = {
        "layout": (layout, ("caption", "pair")),
        "return_tensors": (return_tensors, ("pt", "np")),
        "padding": (padding, (True, "longest", "max_length")),
        "truncation": (truncation, (True, "longest_first")),
    }
    for name, (value, allowed) in choices.items():
        if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
            raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")
    for name, value, least in (("max_length", max_length, 3), ("max_regions", max_regions, 1)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} on, not {value!r}")


def as_texts(texts, name: str) -> list[str]:
    """One text, or several in whatever holds them (list, tuple, generator, column, array) -> a list.

    Raises:
        ValueError: something that is no text; which.
    """
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, (bytes, Mapping)) or not hasattr(texts, "__iter__") or getattr(texts, "ndim", 1) != 1:
        raise ValueError(f"{name} is of the type {type(texts).__name__}; give a string or a list of strings")
    texts = list(texts)
    wrong = {}
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            wrong[number] = f"is of the type {type(text).__name__}"
        elif not is_unicode(text):
            wrong[number] = f"is no Unicode text: {text[:40]!r}"
    if wrong:
        raise ValueError(f"{name}{numbered(wrong)}; give strings")
    return [str(text) for text in texts]  # numpy has strings of its own


def is_unicode(text) -> bool:
    """False where bytes were read that are no UTF-8: a tokenizer does not take them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def numbered(wrong: dict[int, str], most: int = 5) -> str:
    """Numbers of rows and what is wrong with them, in one line."""
    more = f" and {len(wrong) - most:,} more" if len(wrong) > most else ""
    return ", ".join(f"[{number}] {what}" for number, what in list(wrong.items())[:most]) + more


def as_tags(tags) -> list:
    """Per image words or one string.

    Raises:
        ValueError: another nesting; of which image.
    """
    form = "give per image a list of words, or one string"
    if isinstance(tags, (bytes, Mapping)) or not hasattr(tags, "__iter__"):
        raise ValueError(f"tags are of the type {type(tags).__name__}; {form}")
    rows = [row if isinstance(row, str) or not hasattr(row, "__iter__") else list(row) for row in tags]
    wrong = {
        number: f"is {row!r:.60}"
        for number, row in enumerate(rows)
        if not (isinstance(row, str) or (isinstance(row, list) and all(isinstance(word, str) for word in row)))
    }
    if wrong:
        raise ValueError(f"tags{numbered(wrong)}; {form}")
    return rows


def is_words(tags) -> bool:
    return len(tags) > 0 and all(isinstance(word, str) for word in tags)


def truncate_pair(first, second, room):
    """Oscar's rule: take from the longer one, from the second when they are equal, until both fit."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


def pad_rows(rows, value, least=0):
    """Lists of numbers -> (B, the longest's length, or `least`)."""
    longest = max(least, *(len(row) for row in rows))
    return np.array([row + [value] * (longest - len(row)) for row in rows], dtype=np.int64).reshape(len(rows), longest)


def split_regions(regions) -> list[np.ndarray]:
    """What a user has -> one (R, D) array per image, without padding.

    Raises:
        ValueError: an image's regions have other dimensions, or are not finite numbers; which image's.
    """
    if hasattr(regions, "keys"):  # an output of a region model, or a batch in its shape
        features, mask = to_array(features_in(regions, "regions")), regions.get("region_attention_mask")
        if features.ndim == 3:
            mask = np.ones(features.shape[:2], bool) if mask is None else to_array(mask).astype(bool)
            if mask.shape != features.shape[:2]:
                shapes = f"{mask.shape}, region_features {features.shape}"
                raise ValueError(f"region_attention_mask has the shape {shapes}; give (B, R) and (B, R, D)")
            rows = zip(features, mask, strict=True)
            return [checked_regions(row[valid], number) for number, (row, valid) in enumerate(rows)]
        regions = [features]
    elif getattr(regions, "ndim", None) == 2:  # one image
        regions = [regions]
    if isinstance(regions, (str, bytes)) or not hasattr(regions, "__iter__"):
        raise ValueError(f"regions are of the type {type(regions).__name__}; give an (R, D) array per image")
    rows = (features_in(row, f"regions[{i}]") if hasattr(row, "keys") else row for i, row in enumerate(regions))
    return [checked_regions(to_array(row), number) for number, row in enumerate(rows)]


def features_in(regions, name):
    features = regions.get("region_features")
    if features is None:
        raise ValueError(f"{name} has no region_features; it has {', '.join(map(str, regions.keys())) or 'nothing'}")
    return features


def checked_regions(row: np.ndarray, number: int) -> np.ndarray:
    if row.ndim != 2 or not row.shape[1]:
        raise ValueError(f"regions[{number}] has the shape {row.shape}; give (R, D), np.zeros((0, D)) for no region")
    if not np.issubdtype(row.dtype, np.number):
        raise ValueError(f"regions[{number}] is of the type {row.dtype}; give numbers")
    if not np.isfinite(row).all():
        raise ValueError(f"regions[{number}] has numbers that are not finite (nan or inf)")
    return row


def to_array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().float().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:  # lists of differing lengths
        raise ValueError(f"regions are no array: {error}") from None


def pad_regions(regions, max_regions):
    """List of (R, D) -> region_features (B, R, D) padded with zeros, region_attention_mask (B, R)."""
    regions = [row[:max_regions] for row in regions]
    widths = {row.shape[1] for row in regions}
    if len(widths) != 1:
        raise ValueError(f"the regions of one batch must have one width, got {sorted(widths)}")
    features = np.zeros((len(regions), max(len(row) for row in regions), widths.pop()), dtype=np.float32)
    mask = np.zeros(features.shape[:2], dtype=np.int64)
    for index, row in enumerate(regions):
        features[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return {"region_features": features, "region_attention_mask": mask}


def pack_captions(captions, region_attention_mask, mask_token_id, pad_token_id=0, tags=None, tag_position_offset=40):
    """Several finished captions of each image over one set of regions, with a [MASK] query at every position.

    A caption [CLS] c1 ... cn [SEP] takes n + 1 slots for what is written ([CLS] c1 ... cn, positions 0 to n) and n + 1
    for [MASK] queries (positions 1 to n + 1, labels c1 ... cn [SEP]). The query at position p attends to the
    tokens of its caption before p, itself, tags and regions, as the decoding step that writes p does. Captions do not
    attend to one another, tags and regions attend to no caption. One caption [CLS] c [SEP], a region:

                       [CLS]  c  M1 M2  r     <- keys; M1 asks for c, M2 for [SEP]
        [CLS], pos. 0     1   .   .  .  1
            c, pos. 1     1   1   .  .  1
           M1, pos. 1     1   .   1  .  1     M1 stands where c stands and must not attend to it
           M2, pos. 2     1   1   .  1  1
               region     .   .   .  .  1

    Args:
        captions: per image a list of token id lists, [CLS] first and [SEP] last.
        region_attention_mask: (B, R).
        tags: per image the token ids of the tags with their [SEP], or None.

    Returns:
        dict of `input_ids`, `token_type_ids`, `position_ids`, `labels` (B, T; -100 where nothing is asked) and
        `attention_mask` (B, T + R, T + R), ready for `MengziOscarForImageCaptioning`.
    """
    tags = tags if tags is not None else [[]] * len(captions)
    names = ("input_ids", "token_type_ids", "position_ids", "labels", "caption", "written")
    rows = [{name: [] for name in names} for _ in captions]
    for row, image_captions, tag_ids in zip(rows, captions, tags, strict=True):
        for number, ids in enumerate(image_captions):
            steps = len(ids) - 1
            row["input_ids"] += [*ids[:-1], *[mask_token_id] * steps]
            row["position_ids"] += [*range(steps), *range(1, steps + 1)]
            row["labels"] += [*[-100] * steps, *ids[1:]]
            row["written"] += [1] * steps + [0] * steps
            row["caption"] += [number] * (2 * steps)
            row["token_type_ids"] += [0] * (2 * steps)
        row["input_ids"] += tag_ids
        row["position_ids"] += range(tag_position_offset, tag_position_offset + len(tag_ids))
        row["labels"] += [-100] * len(tag_ids)
        row["written"] += [0] * len(tag_ids)
        row["caption"] += [CONTEXT] * len(tag_ids)
        row["token_type_ids"] += [1] * len(tag_ids)
    padding = {"input_ids": pad_token_id, "labels": -100, "caption": PADDING}
    batch = {name: torch.from_numpy(pad_rows([row[name] for row in rows], padding.get(name, 0))) for name in names}
    caption, written = batch.pop("caption"), batch.pop("written")
    text, regions = caption.shape[1], region_attention_mask.shape[1]
    caption = torch.cat([caption, torch.where(region_attention_mask.bool(), CONTEXT, PADDING)], dim=1)  # (B, S)
    keys_written = torch.cat([written.bool(), written.new_zeros((len(rows), regions), dtype=torch.bool)], dim=1)
    position = torch.cat([batch["position_ids"], written.new_zeros((len(rows), regions))], dim=1)
    before = (
        (caption[:, :, None] == caption[:, None, :])
        & keys_written[:, None, :]
        & (position[:, None, :] < position[:, :, None])
    )
    itself = torch.eye(text + regions, dtype=torch.bool)
    batch["attention_mask"] = before | (caption == CONTEXT)[:, None, :] | itself
    return batch


if not __name__.startswith("transformers_modules"):  # as code of a Hub repo it must not stand in for other repos
    AutoProcessor.register(MengziOscarConfig, MengziOscarProcessor, exist_ok=True)
