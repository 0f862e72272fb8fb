"""Collators: rows joined to their regions when a batch is made, masked or packed, as tensors.

Every random draw for a row comes from `SeededRows.draws`: seed, epoch and row decide it, whatever process, worker or
resumed run asks.
"""

import random

import torch
from PIL import ImageOps
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop, v2

from modeling_mengzi_oscar import ObjectRegionImageProcessor
from modeling_mengzi_oscar.features.stored_photos import tag_words
from modeling_mengzi_oscar.photos import open_photo
from modeling_mengzi_oscar.processing_mengzi_oscar import pack_captions, pad_regions, pad_rows

# Mild, so that "red", "two" and "beside" stay true: a crop of at least 75 % of the photo, some brightness.
CROP = {"scale": (0.75, 1.0), "ratio": (0.85, 1.18)}
BRIGHTEN = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.1)

PIXELS = ("pixel_values", "detector_pixel_values", "detector_extents", "original_sizes")  # of a region model
CONTEXT = ("region_features", "region_attention_mask", "tag_input_ids", "tag_attention_mask")  # captions start from


def open_image(image):
    """The photo of an undecoded `datasets.Image`: a path, or the bytes of a file as in Parquet of the Hub."""
    if image["bytes"] is not None:
        return open_photo(image["bytes"], name=image["path"] or "a photo of --dataset")
    return open_photo(image["path"])


def start_tokens(styles, processor) -> list[int]:
    """What the captions of each row begin with.

    Raises:
        ValueError: names the first row whose style the checkpoint does not write.
    """
    starts = {}
    for row, style in enumerate(styles, start=1):
        if style not in starts:
            try:
                starts[style] = processor.begin(style, 1).item()
            except ValueError as error:
                raise ValueError(f"--dataset, row {row}: {error}") from None
    return [starts[style] for style in styles]


class SeededRows(Dataset):
    """Rows whose draws depend on seed, epoch and row only. The epoch lives in memory that worker processes share."""

    def __init__(self, seed=0):
        self.seed, self.epoch = seed, torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch):
        self.epoch.fill_(epoch)

    def draws(self, index) -> random.Random:
        return random.Random(f"{self.seed} {int(self.epoch)} {index}")


class StoresOfRows:
    """The region stores that hold the photo of each row.

    Args:
        rows: a split with image_id, and dataset where its photos are of several data sets.
        stores: of `arguments.stores_of_datasets`: {data set: its stores}, or {None: those of all rows}; or these in a
            list. The first is the plain one, the others hold augmented photos.
    """

    def __init__(self, rows, stores):
        self.stores = stores if isinstance(stores, dict) else {None: stores}
        self.image_ids = rows["image_id"][:]
        self.datasets = rows["dataset"][:] if "dataset" in rows.column_names else [None] * len(rows)

    def __getitem__(self, index):
        """The stores of a row."""
        return self.stores[self.datasets[index] if self.datasets[index] in self.stores else None]

    def read(self, index, draws=None):
        """What a row's plain store holds of its photo, or with `draws` one of its stores."""
        stores = self[index]
        return (draws.choice(stores) if draws else stores[0])[self.image_ids[index]]


class DrawnOrder(Dataset):
    """`SeededRows` in an order that `draw_order` makes of some randomness; seed and epoch decide it, as every draw."""

    def __init__(self, rows):
        self.rows, self.epoch, self.order = rows, None, []

    def __len__(self):
        return len(self.rows)

    def draw_order(self, draws) -> list[int]:
        raise NotImplementedError

    def __getitem__(self, index):
        if self.epoch != int(self.rows.epoch):
            self.epoch = int(self.rows.epoch)
            self.order = self.draw_order(random.Random(f"{self.rows.seed} {self.epoch}"))
        return self.rows[self.order[index]]

    def set_epoch(self, epoch):
        self.rows.set_epoch(epoch)


class LikeLengths(DrawnOrder):
    """Batches of like lengths.

    Random chunks of 50 steps, each sorted, as transformers has them. The longest row is the first of all: what does not
    fit into memory shows at once.
    """

    def __init__(self, rows, step_size):
        super().__init__(rows)
        self.lengths, self.chunk = rows.lengths, 50 * step_size

    def draw_order(self, draws) -> list[int]:
        shuffled = draws.sample(range(len(self)), len(self))
        chunks = [shuffled[first : first + self.chunk] for first in range(0, len(self), self.chunk)]
        chunks = [sorted(chunk, key=self.lengths.__getitem__, reverse=True) for chunk in chunks]
        longest = max(range(len(chunks)), key=lambda number: self.lengths[chunks[number][0]])
        chunks.insert(0, chunks.pop(longest))
        return [index for chunk in chunks for index in chunk]


class CaptionRows(SeededRows):
    """One item per photo: its regions (from stores) or its pixels, its tags, and its sentences as token ids.

    Args:
        rows: a split of a caption builder: image_id, captions; image (path), style (of the captions, one of the
            processor's) and dataset where there are any.
        processor: of the captioner. max_length: tokens of a sentence with [CLS] and [SEP].
        stores: region stores to draw from, as `StoresOfRows` takes them.
        labels: texts of the stores' tag or class ids, to give the captioner tags; None = no tags.
        image_processor: of a region model, instead of stores: pixels, in training mirrored, cropped and brightened at
            random. Photos for a detector stay whole: whom a crop cuts off the sentences still name, and the captioner
            would learn to mention people where no person is detected.
        tag_labels: words whose presence in the sentences is the target of the region model's tag head.
        training: draw augmentations and `corruption`; else everything is as it stands.
        sentences_per_photo: in training so many of a photo's sentences are drawn; None = all.
        tag_dropout: share of the photos that go without their tags.
    """

    def __init__(
        self,
        rows,
        processor,
        stores=(),
        labels=None,
        image_processor=None,
        tag_labels=(),
        training=False,
        sentences_per_photo=None,
        tag_dropout=0.0,
        corruption=0.0,
        max_length=20,
        seed=0,
    ):
        super().__init__(seed)
        self.stores, self.labels, self.image_processor = StoresOfRows(rows, stores), labels, image_processor
        self.training, self.processor, self.corruption = training, processor, corruption
        self.tokenizer, self.max_length = processor.tokenizer, max_length
        self.sentences_per_photo, self.tag_dropout = sentences_per_photo, tag_dropout
        self.image_ids = rows["image_id"]
        self.references = rows["captions"] if "captions" in rows.column_names else [[] for _ in self.image_ids]
        self.styles = rows["style"][:] if "style" in rows.column_names else [None] * len(rows)
        images = rows["image"] if "image" in rows.column_names else [None] * len(rows)
        self.paths = [image and image["path"] for image in images]
        self.images = rows.select_columns("image") if image_processor is not None else None  # may carry their bytes
        self.starts = start_tokens(self.styles, processor)
        self.captions = list(map(self.encode, self.references, self.starts))
        self.tag_labels = torch.tensor(
            [[any(word in s for s in sentences) for word in tag_labels] for sentences in self.references]
        ).float()

    def __len__(self):
        return len(self.image_ids)

    def encode(self, sentences, start):
        """Texts -> token ids between `start` and [SEP]."""
        ids = self.tokenizer(list(sentences), add_special_tokens=False)["input_ids"] if sentences else []
        return [[start, *row[: self.max_length - 2], self.tokenizer.sep_token_id] for row in ids]

    def __getitem__(self, index):
        draws = self.draws(index)
        captions = list(self.captions[index])
        if self.training and self.sentences_per_photo:
            captions = draws.sample(captions, min(self.sentences_per_photo, len(captions)))
        item = {"index": index, "captions": captions, "inputs": [self.corrupt(ids, draws) for ids in captions]}
        if self.image_processor is not None:
            return item | self._pixels(index, draws) | {"tag_labels": self.tag_labels[index]}
        return item | self.regions(index, draws)

    def num_regions(self, index) -> int:
        """Of a photo, in the plain store; 0 from pixels, where a region model has to look first."""
        return self.stores[index][0].num_regions(self.image_ids[index]) if self.image_processor is None else 0

    def regions(self, index, draws):
        """`region_features` (R, D) of a photo, and its tags as token ids with their [SEP]."""
        regions = self.stores.read(index, draws if self.training else None)
        item = {"region_features": regions["region_features"][: self.processor.max_regions]}
        if self.labels is not None:
            dropped = self.training and draws.random() < self.tag_dropout
            item["tags"] = [] if dropped else self.processor.tag_ids(tag_words(regions, self.labels))
        return item

    def _pixels(self, index, draws):
        photo = open_image(self.images[index]["image"])
        if self.training:
            photo = ImageOps.mirror(photo) if draws.random() < 0.5 else photo
            with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
                torch.manual_seed(draws.getrandbits(32))
                if not isinstance(self.image_processor, ObjectRegionImageProcessor):
                    top, left, height, width = RandomResizedCrop.get_params(photo, **CROP)
                    photo = photo.crop((left, top, left + width, top + height))
                photo = BRIGHTEN(photo)
        inputs = self.image_processor(photo, return_tensors="pt")
        dropped = self.training and draws.random() < self.tag_dropout
        return {name: values[0] for name, values in inputs.items()} | {"tags_dropped": torch.tensor(dropped)}

    def corrupt(self, ids, draws):
        """Input token noise: some written tokens are replaced, so that decoding can recover from a mistake."""
        if not self.training or not self.corruption:
            return ids
        low, high = max(self.tokenizer.all_special_ids) + 1, len(self.tokenizer)
        words = [draws.randrange(low, high) if draws.random() < self.corruption else word for word in ids[1:-1]]
        return [ids[0], *words, ids[-1]]


class DenseCaptionCollator:
    """Items of `CaptionRows` -> tensors with a loss at every position of every sentence, regions once per photo.

    Beside every written token stands a [MASK] that asks for the next one. The attention mask (a row attends to
    the columns with an x), for a photo with one sentence of one character, one tag token and one region:

                       [CLS] 猫  [M] [M] tag region
        [CLS]            x   .   .   .   x   x
        猫               x   x   .   .   x   x
        [MASK] -> 猫     x   .   x   .   x   x      at the position of 猫, which it does not attend to
        [MASK] -> [SEP]  x   x   .   x   x   x      at the position of [SEP]
        tag              .   .   .   .   x   x      tags and regions attend to no caption:
        region           .   .   .   .   x   x      it is the same for all sentences of the photo

    A second sentence takes four more rows and columns like the first four; the two do not see each other. From pixels
    there are the sentences alone: `from_pixels.CaptionerFromPixels` adds tags and regions when it has looked.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, items):
        batch = self.regions(items)
        region_mask = batch.get("region_attention_mask", torch.ones((len(items), 0), dtype=torch.long))
        right = self.pack([item["captions"] for item in items], items, region_mask)
        corrupted = self.pack([item["inputs"] for item in items], items, region_mask)
        return batch | corrupted | {"labels": right["labels"]}

    def regions(self, items):
        if "pixel_values" in items[0]:
            names = (*PIXELS, "tag_labels", "tags_dropped")
            return {name: torch.stack([item[name] for item in items]) for name in names if name in items[0]}
        regions = pad_regions([item["region_features"] for item in items], max_regions=None)
        return {name: torch.from_numpy(array) for name, array in regions.items()}

    def context(self, items):
        """What captions are written from: regions or pixels, and tags."""
        batch = self.regions(items)
        if "tags" in items[0]:
            tags = [item["tags"] for item in items]
            batch["tag_input_ids"] = padded(tags, self.processor.tokenizer.pad_token_id)
            batch["tag_attention_mask"] = padded([[1] * len(ids) for ids in tags], 0)
        return batch

    def pack(self, captions, items, region_attention_mask):
        tokens = self.processor.tokenizer
        tags = [item["tags"] for item in items] if "tags" in items[0] else None
        offset = self.processor.tag_position_offset
        return pack_captions(captions, region_attention_mask, tokens.mask_token_id, tokens.pad_token_id, tags, offset)


class MaskedCaptionRows(CaptionRows):
    """One item per sentence with a few tokens masked, as Oscar fine-tunes captioners (oscar/run_captioning.py).

    Of the tokens after [CLS], the final [SEP] among them, round(15 %) of the length with [CLS] and [SEP], at least one
    and at most three, are asked for: 80 % become [MASK], 10 % a random token, 10 % stay.
    """

    def __init__(self, *args, mask_prob=0.15, max_masked_tokens=3, **kwargs):
        super().__init__(*args, **kwargs)
        self.mask_prob, self.max_masked_tokens = mask_prob, max_masked_tokens
        self.sentences = [  # (photo, which of its sentences) of every item
            (photo, number) for photo, captions in enumerate(self.captions) for number in range(len(captions))
        ]

    @property
    def lengths(self):
        return [len(self.captions[photo][number]) for photo, number in self.sentences]

    def __len__(self):
        return len(self.sentences)

    def __getitem__(self, index):
        draws = self.draws(index)
        photo, number = self.sentences[index]
        ids, labels = self.mask(self.captions[photo][number], draws)
        return {"input_ids": ids, "labels": labels} | self.regions(photo, draws)

    def mask(self, ids, draws):
        """Token ids with [CLS] and [SEP] -> ids with masks, labels with -100 where nothing is asked."""
        count = min(max(round(self.mask_prob * len(ids)), 1), self.max_masked_tokens)
        ids, labels = list(ids), [-100] * len(ids)
        for position in draws.sample(range(1, len(ids)), count):
            labels[position], chance = ids[position], draws.random()
            if chance < 0.8:
                ids[position] = self.tokenizer.mask_token_id
            elif chance < 0.9:
                drawn = draws.randint(0, len(self.tokenizer))  # one past the end is [UNK], as in the original
                ids[position] = drawn if drawn < len(self.tokenizer) else self.tokenizer.unk_token_id
        return ids, labels


class MaskedCaptionCollator:
    """Items of `MaskedCaptionRows` -> tensors in the caption layout, tags at their own positions.

        input_ids       [CLS]    一  [MASK]    猫  [SEP]    狗  [SEP]      then the regions
        labels           -100  -100      只  -100   -100  -100   -100
        token_type_ids      0     0       0     0      0     1      1
        position_ids        0     1       2     3      4    40     41

    The types decide the attention mask: a token of type 0 attends to its past, tags and regions (`caption_attention`).
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, items):
        tags = [item.get("tags", []) for item in items]
        offset, pad = self.processor.tag_position_offset, self.processor.tokenizer.pad_token_id
        encoded = [
            {
                "input_ids": item["input_ids"] + tag_ids,
                "attention_mask": [1] * (len(item["input_ids"]) + len(tag_ids)),
                "token_type_ids": [0] * len(item["input_ids"]) + [1] * len(tag_ids),
                "position_ids": [*range(len(item["input_ids"])), *range(offset, offset + len(tag_ids))],
                "labels": item["labels"] + [-100] * len(tag_ids),
            }
            for item, tag_ids in zip(items, tags, strict=True)
        ]
        regions = pad_regions([item["region_features"] for item in items], max_regions=None)
        batch = {name: torch.from_numpy(array) for name, array in regions.items()}
        fill = {"input_ids": pad, "labels": -100}
        return batch | {name: padded([row[name] for row in encoded], fill.get(name, 0)) for name in encoded[0]}


def padded(rows, value) -> torch.LongTensor:
    """Lists of integers -> (B, longest), filled up with `value`."""
    return torch.from_numpy(pad_rows(rows, value))


class PairRows(SeededRows):
    """One item per text and image: `text`, `tags` (words), `region_features` (R, D) and the row's labels.

    Args:
        rows: a split with `image_id` and a text. text: name of its column.
        stores: region stores, as `StoresOfRows` takes them; training draws one of them, else the plain one is read.
        labels: texts of their tag or class ids; None = no tags, or a column `tags` of the rows.
        targets: row -> {"labels": ...}, what the head is trained on; None when there is nothing to learn from.
    """

    def __init__(self, rows, stores, text="question", labels=None, targets=None, training=False, seed=0):
        super().__init__(seed)
        self.stores, self.training = StoresOfRows(rows, stores), training
        self.rows, self.text, self.labels, self.targets = rows, text, labels, targets

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        regions = self.stores.read(index, self.draws(index) if self.training else None)
        item = {"text": row[self.text], "region_features": regions["region_features"]}
        if self.labels is not None:
            item["tags"] = tag_words(regions, self.labels)
        elif row.get("tags"):
            item["tags"] = row["tags"]
        return item | (self.targets(row) if self.targets else {})


class PairCollator:
    """Items of `PairRows` -> tensors in the pair layout: [CLS] text [SEP] tags [SEP], regions, labels."""

    def __init__(self, processor, max_length=None):
        self.processor, self.max_length = processor, max_length

    def __call__(self, items):
        batch = self.processor(
            text=[item["text"] for item in items],
            tags=[item.get("tags", []) for item in items],
            regions=[item["region_features"] for item in items],
            layout="pair",
            max_length=self.max_length,
        )
        if "labels" in items[0]:
            batch["labels"] = torch.stack([torch.as_tensor(item["labels"]) for item in items])
        return dict(batch)
