"""What a training sees of the data: photos with their sentences, packed for the dense objective."""

import random

import torch
from PIL import ImageOps
from torch.utils.data import Dataset
from torchvision.transforms import v2

from modeling_mengzi_oscar.photos import open_photo
from modeling_mengzi_oscar.processing_mengzi_oscar import pack_captions, pad_regions

# Mild, so that "red", "two" and "beside" stay true: a crop of at least 75 % of the photo, some brightness.
AUGMENT = v2.Compose(
    [
        v2.RandomResizedCrop(260, scale=(0.75, 1.0), ratio=(0.85, 1.18), interpolation=v2.InterpolationMode.BICUBIC),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.1),
    ]
)


class CaptionDataset(Dataset):
    """One item per photo: its regions (from stores) or its pixels, and its sentences as token ids.

    Args:
        rows: a split of a caption builder: image_id, image (path), captions, machine.
        tokenizer: of the captioner; `machine_start_id` opens a machine-translated sentence in place of [CLS].
        stores: region stores to draw from; the first is the plain one, the others are augmented.
        image_processor: instead of stores: pixels.
        tag_labels: words whose presence in the sentences is the target of the region model's tag head.
        training: draw augmentations, one machine translation and `corruption`; else plain and human sentences only.
        crops: of the pixels: crop and brighten at random, beside mirroring.
    """

    def __init__(
        self,
        rows,
        tokenizer,
        stores=(),
        image_processor=None,
        tag_labels=(),
        training=False,
        crops=True,
        machine_start_id=None,
        corruption=0.1,
        max_length=20,
    ):
        self.stores, self.image_processor, self.training = stores, image_processor, training
        self.tokenizer, self.corruption, self.crops = tokenizer, corruption, crops
        self.image_ids, self.paths = rows["image_id"], [image["path"] for image in rows["image"]]
        self.references = rows["captions"]
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id

        def encode(sentences, start):
            ids = tokenizer(list(sentences), add_special_tokens=False)["input_ids"] if sentences else []
            return [[start, *row[: max_length - 2], sep] for row in ids]

        self.captions = [encode(sentences, cls) for sentences in rows["captions"]]
        self.machine = [[] for _ in self.captions]
        if training and machine_start_id is not None:
            self.machine = [encode([s["caption"] for s in row], machine_start_id) for row in rows["machine"]]
        self.tag_labels = torch.tensor(
            [[any(word in s for s in sentences) for word in tag_labels] for sentences in rows["captions"]]
        ).float()

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, index):
        captions = list(self.captions[index])
        if self.machine[index]:
            captions.append(random.choice(self.machine[index]))
        item = {"captions": captions, "inputs": [self._corrupt(ids) for ids in captions]}
        if self.image_processor is not None:
            item |= self._pixels(index)
            item["tag_labels"] = self.tag_labels[index]
        else:
            store = random.choice(self.stores) if self.training else self.stores[0]
            item["region_features"] = store[self.image_ids[index]]["region_features"]
        return item

    def _pixels(self, index):
        photo = open_photo(self.paths[index])
        if self.training:
            photo = ImageOps.mirror(photo) if random.random() < 0.5 else photo
            photo = AUGMENT(photo) if self.crops else photo
        inputs = self.image_processor(photo, return_tensors="pt")
        return {name: values[0] for name, values in inputs.items()}

    def _corrupt(self, ids):
        """Some written tokens are replaced, so that decoding can go on after a mistake; the labels stay right."""
        if not self.training:
            return ids
        low, high = max(self.tokenizer.all_special_ids) + 1, len(self.tokenizer)
        middle = [random.randrange(low, high) if random.random() < self.corruption else i for i in ids[1:-1]]
        return [ids[0], *middle, ids[-1]]


class DenseCaptionCollator:
    """Items of a `CaptionDataset` -> tensors with a loss at every position of every sentence."""

    def __init__(self, tokenizer, num_regions=None):
        self.tokenizer, self.num_regions = tokenizer, num_regions

    def __call__(self, items):
        batch = {}
        if "pixel_values" in items[0]:
            for name in ("pixel_values", "original_sizes", "tag_labels"):
                batch[name] = torch.stack([item[name] for item in items])
            region_mask = torch.ones((len(items), self.num_regions), dtype=torch.long)
        else:
            padded = pad_regions([item["region_features"] for item in items], max_regions=None)
            batch["region_features"] = torch.from_numpy(padded["region_features"])
            region_mask = torch.from_numpy(padded["region_attention_mask"])
        batch["region_attention_mask"] = region_mask
        tokens = self.tokenizer
        packed = pack_captions([i["inputs"] for i in items], region_mask, tokens.mask_token_id, tokens.pad_token_id)
        clean = pack_captions([i["captions"] for i in items], region_mask, tokens.mask_token_id, tokens.pad_token_id)
        return batch | packed | {"labels": clean["labels"]}
