"""N photos x M texts -> image-text matching (ITM) scores and answers, by a cross-encoder that computes nothing twice.

The original scores one pair per row, 70 text and 70 region slots whatever their content. Here

* the regions of an image are embedded once; if regions do not attend to the text (`regions_read_text: false`),
  they pass through all layers once, and every text only attends to their keys and values;
* texts stand in order of length and meet an image in batches of one length: no padding, no mask; equal texts once;
* where there are fewer texts than a pass holds, several images share it, padded to the most regions and longest tags;
* the last layer is computed only for the first position, the classifier's input.

Rows and columns of a pair with a text of three tokens and two regions, in the two kinds of checkpoint:

    as published                          regions_read_text: false
         t1 t2 t3 r1 r2  <- keys               t1 t2 t3 | r1 r2      the right half is the same for all texts
    t1    1  1  1  1  1                   t1    1  1  1 |  1  1      of an image: a `RegionMemory` per layer
    t2    1  1  1  1  1                   t2    1  1  1 |  1  1
    t3    1  1  1  1  1                   t3    1  1  1 |  1  1
    r1    1  1  1  1  1                   r1            |  1  1      computed once per image
    r2    1  1  1  1  1                   r2            |  1  1

Scores are those of `MengziOscarForImageTextRetrieval.score`, as log-odds: with two classes the
difference of the logits, whose sigmoid is the probability; log-odds keep their order in float16 where probabilities
near 0 and 1 would become equal. With one label (the original's regression) the raw output.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .processing_mengzi_oscar import pad_rows

NOT_SCORED = -np.inf


@dataclass
class PreparedImages:
    """What texts need of I images. `mask` (I, R) is None where every region is real."""

    states: torch.Tensor | None  # (I, R, H) embedded regions, where regions read the text
    memories: list["RegionMemory"] | None  # one per layer, where they do not
    mask: torch.BoolTensor | None

    def one(self, row: int) -> "PreparedImages":
        """An image of them as a batch of its own, copied, without padding."""
        real = slice(None) if self.mask is None else self.mask[row]
        if self.memories is None:
            return PreparedImages(self.states[row, real][None].clone(), None, None)
        kept = [(memory.keys[row][:, real].clone(), memory.values[row][:, real].clone()) for memory in self.memories]
        return PreparedImages(None, [RegionMemory(keys[None], values[None]) for keys, values in kept], None)

    @classmethod
    def join(cls, images: Sequence["PreparedImages"]) -> "PreparedImages":
        """Of several images that `one` gave a batch, padded to the most regions."""
        if len(images) == 1:
            return images[0]
        parts = [image.states if image.memories is None else image.memories[0].keys for image in images]
        sizes = torch.tensor([part.shape[-2] for part in parts], device=parts[0].device)
        longest = int(sizes.max())
        mask = None if (sizes == longest).all() else torch.arange(longest, device=sizes.device) < sizes[:, None]

        def padded(parts):
            return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[-2])) for part in parts])

        if images[0].memories is None:
            return cls(padded(parts), None, mask)
        layers = zip(*(image.memories for image in images), strict=True)
        memories = [
            RegionMemory(padded([one.keys for one in layer]), padded([one.values for one in layer]), mask)
            for layer in layers
        ]
        return cls(None, memories, mask)

    @property
    def bytes(self) -> int:
        tensors = [self.states] if self.memories is None else [t for m in self.memories for t in (m.keys, m.values)]
        return sum(tensor.nbytes for tensor in tensors)


def prepare_images(model, region_features, region_attention_mask=None) -> PreparedImages:
    """(I, R, D), (I, R; None = every region is real) -> what `match_logits` needs of the images."""
    bert = model.bert
    states = bert.embed_regions(region_features)  # (I, R, H)
    mask = None if region_attention_mask is None else region_attention_mask.bool()
    if model.config.regions_read_text:
        return PreparedImages(states, None, mask)
    seen, memories = bert.who_sees_whom(mask), []
    for number, layer in enumerate(bert.encoder.layer, start=1):
        memories.append(RegionMemory(*layer.attention.self.keys_values(states), mask))
        if number < len(bert.encoder.layer):
            states, _ = layer(states, seen)
    return PreparedImages(None, memories, mask)


def match_logits(model, images: PreparedImages, input_ids, token_type_ids, position_ids, attention_mask=None):
    """Logits (I, n, num_labels) of I images with n texts each.

    Args:
        images: of `prepare_images`.
        input_ids, token_type_ids, position_ids: (I, n, T), or (1, n, T) for the same texts with every image.
        attention_mask: the same shape; None where no text is padded.
    """
    shape = input_ids.shape
    tensors = (tensor.flatten(0, 1) for tensor in (input_ids, token_type_ids, position_ids))
    text = model.bert.embeddings(*tensors).view(*shape, -1)  # (I or 1, n, T, H)
    mask = None if attention_mask is None else attention_mask.bool()
    encode = encode_together if images.memories is None else encode_with_memories
    first = encode(model.bert, images, text, mask)  # (I, n, H)
    pooled = model.bert.pooler(first.flatten(0, 1)[:, None])
    return model.classifier(model.dropout(pooled)).view(*first.shape[:2], -1)


def encode_together(bert, images, text, text_mask):
    """Text and regions attend to one another, as published: first position of each pair (I, n, H)."""
    (number, regions, _), texts = images.states.shape, text.shape[1]
    states = torch.cat(
        [text.expand(number, -1, -1, -1), images.states[:, None].expand(-1, texts, -1, -1)], dim=2
    ).flatten(0, 1)  # (I * n, T + R, H)
    mask = None
    if text_mask is not None or images.mask is not None:
        text_mask = text.new_ones(text.shape[:3], dtype=torch.bool) if text_mask is None else text_mask
        regions_mask = images.mask
        if regions_mask is None:
            regions_mask = text.new_ones((number, regions), dtype=torch.bool)
        parts = [text_mask.expand(number, -1, -1), regions_mask[:, None].expand(-1, texts, -1)]
        mask = torch.cat(parts, dim=2).flatten(0, 1)
    return first_position(bert, states, bert.who_sees_whom(mask)).unflatten(0, (number, texts))


def encode_with_memories(bert, images, text, text_mask):
    """Texts read themselves and the keys and values of the regions: first positions (I, n, H)."""
    number, texts = len(images.memories[0].keys), text.shape[1]
    states = text.expand(number, -1, -1, -1).flatten(0, 1)  # (I * n, T, H)
    mask = None if text_mask is None else text_mask.expand(number, -1, -1).flatten(0, 1)[:, None, None]
    return first_position(bert, states, mask, images.memories).unflatten(0, (number, texts))


def first_position(bert, states, seen, memories=None):
    """All layers, the last one for the first position only: (N, S, H) -> (N, H)."""
    memories = memories or [None] * len(bert.encoder.layer)
    *layers, last = zip(bert.encoder.layer, memories, strict=True)
    for layer, memory in layers:
        states, _ = layer(states, seen, memory=memory)
    layer, memory = last
    return layer(states[:, :1], seen, context=states, memory=memory)[0][:, 0]


class RegionMemory:
    """The keys and values (I, heads, R, d) of the regions of I images in one layer: the `memory` of that layer.

    They serve all texts of an image without a copy: the queries of its n texts stand in one row for them.
    """

    def __init__(self, keys, values, mask=None):
        self.keys, self.values, self.mask = keys, values, mask

    def attend(self, attention, query, key, value, text_mask, output_attentions):
        """(I * n, heads, Q, d) and (I * n, heads, T, d) twice -> (I * n, Q, heads, d)"""
        images = len(self.keys)
        of_text = query @ key.transpose(-1, -2)  # (I * n, heads, Q, T)
        if text_mask is not None:
            of_text = of_text.masked_fill(~text_mask, torch.finfo(of_text.dtype).min)
        rows = query.unflatten(0, (images, -1)).transpose(1, 2)  # (I, heads, n, Q, d)
        of_regions = (rows.flatten(2, 3) @ self.keys.transpose(-1, -2)).unflatten(2, rows.shape[2:4])
        if self.mask is not None:
            of_regions = of_regions.masked_fill(~self.mask[:, None, None, None], torch.finfo(of_regions.dtype).min)
        of_regions = of_regions.transpose(1, 2).flatten(0, 1)  # (I * n, heads, Q, R)
        scores = torch.cat([of_text, of_regions], dim=-1) * attention.head_size**-0.5
        weights = attention.dropout(scores.softmax(dim=-1))
        of_text, of_regions = weights.split([key.shape[2], self.keys.shape[2]], dim=-1)
        of_regions = of_regions.unflatten(0, (images, -1)).transpose(1, 2)  # (I, heads, n, Q, R)
        from_regions = (of_regions.flatten(2, 3) @ self.values).unflatten(2, rows.shape[2:4])
        attended = of_text @ value + from_regions.transpose(1, 2).flatten(0, 1)  # (I * n, heads, Q, d)
        return attended.transpose(1, 2), None


def log_odds(logits) -> torch.FloatTensor:
    """(..., 2) -> how much more a match is likely than none; (..., 1), regression -> the raw score."""
    logits = logits.float()
    return logits[..., 1] - logits[..., 0] if logits.shape[-1] == 2 else logits[..., 0]


def to_device(tensor, device) -> torch.Tensor:
    """Only from pinned memory does the copy to a GPU go on while the batch before is computed."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class EncodedTexts:
    """M texts as token ids, ready to be laid out with the tags of any image.

    Args:
        share_equal: equal texts stand in one row and are scored once; `row_of` (M,) says in which.
    """

    def __init__(self, processor, texts: Sequence[str], share_equal: bool = False):
        self.processor = processor
        self.row_of = np.arange(len(texts))
        if share_equal:
            rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
            self.row_of, texts = np.array([rows[text] for text in texts], dtype=np.int64), rows
        rows = processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
        rows = [row[: processor.max_length] for row in rows]
        self.lengths = np.array([len(row) for row in rows], dtype=np.int64)
        self.ids = pad_rows(rows, 0) if rows else np.zeros((0, 0), dtype=np.int64)
        self.order = np.argsort(self.lengths, kind="stable")

    def __len__(self):
        return len(self.row_of)

    def batches(
        self, tag_ids: Sequence[list[int]], batch_size: int, row_numbers=None
    ) -> Iterator[tuple[np.ndarray, dict]]:
        """Numbers of rows (n,) and their tensors (I, n, T) with the tags of I images, by length.

        A batch ends where it is full, and where the length changes unless it is still small: then it is padded. Where
        all the images have the same tags the tensors are (1, n, T).

        Args:
            tag_ids: token ids of the tags of each image; empty = none of any.
            row_numbers: numbers of the rows wanted; None = all.
        """
        tag_ids = tag_ids or [[]]
        tag_ids = tag_ids[:1] if all(ids == tag_ids[0] for ids in tag_ids) else tag_ids
        order = (
            self.order
            if row_numbers is None
            else np.asarray(row_numbers)[np.argsort(self.lengths[row_numbers], kind="stable")]
        )
        start = 0
        for end in range(1, len(order) + 1):
            full = end - start == batch_size
            longer = end < len(order) and self.lengths[order[end]] != self.lengths[order[start]]
            if full or end == len(order) or (longer and end - start >= batch_size // 4):
                yield order[start:end], self._tensors(order[start:end], tag_ids)
                start = end

    def _tensors(self, numbers, tag_ids):
        """(I, n, T): rows of texts with the tags of I images."""
        ids, lengths = self.ids[numbers], self.lengths[numbers]
        # The layout depends on the length alone: it is asked for once per length and image, with token k of the text
        # standing as k - length, below every real id.
        known = np.unique(lengths).tolist()
        layouts = [
            self.processor.lay_out(list(range(-n, 0)), words, "pair", self.processor.max_length)
            for words in tag_ids
            for n in known
        ]
        padded = {
            name: pad_rows([layout[name] for layout in layouts], 0).reshape(len(tag_ids), len(known), -1)[
                :, np.searchsorted(known, lengths)
            ]
            for name in ("input_ids", "token_type_ids", "position_ids", "attention_mask")
        }
        image, row, slot = np.nonzero(padded["input_ids"] < 0)
        padded["input_ids"][image, row, slot] = ids[row, padded["input_ids"][image, row, slot] + lengths[row]]
        if padded["attention_mask"].all():
            del padded["attention_mask"]
        return {name: torch.from_numpy(values) for name, values in padded.items()}


class Matcher:
    """Scores every text with every image; `Matcher(model, processor).scores(images, texts)`.

    Args:
        model: `MengziOscarForImageTextRetrieval`, or another `MengziOscarClassifier`, on its device and in its dtype.
        processor: of the same checkpoint: `max_length`, `max_regions` and `max_tags` hold here too.
        batch_size: pairs in one pass.
    """

    def __init__(self, model, processor, batch_size: int | None = None):
        self.model, self.processor = model.eval(), processor
        self.batch_size = batch_size or (32 if model.device.type == "cpu" else 512)
        self._kept = (None, ())  # batches of all texts without tags: the same for every image

    def encode(self, texts) -> EncodedTexts:
        return texts if isinstance(texts, EncodedTexts) else EncodedTexts(self.processor, texts, share_equal=True)

    @torch.inference_mode()
    def prepare(self, images) -> list[PreparedImages]:
        """What texts need of each image, computed in passes of up to `batch_size` images."""
        prepared = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            rows = [torch.as_tensor(image["region_features"])[: self.processor.max_regions] for image in batch]
            features = pad_sequence([row.to(self.model.device, self.model.dtype) for row in rows], batch_first=True)
            sizes = torch.tensor([len(row) for row in rows], device=features.device)
            mask = None
            if (sizes < features.shape[1]).any():
                mask = torch.arange(features.shape[1], device=sizes.device) < sizes[:, None]
            together = prepare_images(self.model, features, mask)
            prepared += [together.one(row) for row in range(len(batch))] if len(batch) > 1 else [together]
        return prepared

    @torch.inference_mode()
    def logits(
        self, images, texts: EncodedTexts, text_numbers=None, prepared=None, update=lambda pairs: None
    ) -> torch.FloatTensor:
        """Logits (I, n, num_labels) of images with the texts, on the model's device.

        Images share a pass where it holds all the texts more than once.

        Args:
            images: each {"region_features": (R, D), "tags": words or one string, may be missing}.
            text_numbers: numbers of the texts wanted; None = all.
            prepared: what `prepare` gave for them earlier.
            update: called after each pass with the number of its pairs.
        """
        device, tags = self.model.device, [self._tag_ids(image) for image in images]
        rows = None if text_numbers is None else np.unique(texts.row_of[text_numbers])
        together = max(1, self.batch_size // max(1, len(texts.lengths) if rows is None else len(rows)))
        result = torch.empty(len(images), len(texts.lengths), self.model.config.num_labels, device=device)
        for start in range(0, len(images), together):
            chunk = slice(start, min(start + together, len(images)))
            regions = PreparedImages.join(self.prepare(images[chunk]) if prepared is None else prepared[chunk])
            for numbers, batch in self._batches(texts, tags[chunk], rows):
                batch = {name: to_device(tensor, device) for name, tensor in batch.items()}
                result[chunk, numbers] = match_logits(self.model, regions, **batch).float()
                update((chunk.stop - chunk.start) * len(numbers))
        wanted = texts.row_of if text_numbers is None else texts.row_of[text_numbers]
        return result[:, torch.from_numpy(wanted).to(device)]

    def row(self, image, texts: EncodedTexts, text_numbers=None, update=lambda pairs: None) -> torch.FloatTensor:
        """Log-odds (n,) of one image with the texts, as `logits` takes them, on the model's device."""
        return log_odds(self.logits([image], texts, text_numbers, update=update))[0]

    def probabilities(self, scores) -> np.ndarray:
        """Log-odds -> probabilities of a match; raw scores (one label) stay what they are. float32."""
        scores = torch.as_tensor(np.asarray(scores, dtype=np.float32))
        return (scores.sigmoid() if self.model.config.num_labels == 2 else scores).numpy()

    def scores(self, images, texts, candidates=None) -> np.ndarray:
        """Log-odds (N, M) float32, in memory; -inf for pairs that `candidates` (per image text numbers) leaves out."""
        texts = self.encode(texts)
        matrix = np.full((len(images), len(texts)), NOT_SCORED, dtype=np.float32)
        for index in range(len(images)):
            text_numbers = slice(None) if candidates is None else candidates[index]
            matrix[index, text_numbers] = self.row(
                images[index], texts, None if candidates is None else text_numbers
            ).cpu()
        return matrix

    def _tag_ids(self, image):
        words = " ".join(self.processor._first_tags(image.get("tags") or ()))
        return self.processor.token_ids(words) if words else []

    def _batches(self, texts, tag_ids, rows):
        if any(tag_ids) or rows is not None:
            return texts.batches(tag_ids, self.batch_size, rows)
        if self._kept[0] is not texts:
            device = self.model.device
            batches = [
                (torch.from_numpy(numbers).to(device), {name: tensor.to(device) for name, tensor in batch.items()})
                for numbers, batch in texts.batches([], self.batch_size)
            ]
            self._kept = (texts, batches)
        return self._kept[1]
