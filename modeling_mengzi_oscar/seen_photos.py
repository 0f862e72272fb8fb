"""Photos in any form -> region features and tags: opened, checked, encoded in passes of one size.

An encoded photo remembers its region model, so that no other model takes it for its own.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from itertools import islice
from operator import length_hint

import torch
from huggingface_hub.utils import are_progress_bars_disabled

from .modeling_regions import RegionModelOutput, photos_per_pass
from .photos import PhotoError, open_photo
from .progress import Bar


@dataclass(eq=False)
class SeenPhoto:
    """Regions and tags of a photo, from `MengziOscarPipeline.look`. It does not hold the photo.

    Attributes:
        size: (width, height) of the upright photo in pixels; None where a store does not say.
        region_features: (R, D) float32, on the CPU.
        tags: words of the whole photo, or of its regions, best first, as the captioner takes them.
        regions: R dicts, `box` in pixels and what the region model says of it (`label`, `score`, `attributes`).
        name: path of the photo, or None.
        region_model: precision and checksum of the region model; others refuse the photo. None: from a store, for a
            pipeline without a region model.
    """

    size: tuple[int, int] | None
    region_features: torch.FloatTensor
    tags: list[str]
    regions: list[dict]
    name: str | None
    region_model: str | None

    def as_input(self) -> dict:
        """As `Matcher` takes an image."""
        return {"region_features": self.region_features, "tags": self.tags}

    def __repr__(self):
        size = f", {self.size[0]} x {self.size[1]}" if self.size else ""
        return f"SeenPhoto({self.name or 'unnamed'}{size}, {len(self.regions)} regions)"


@dataclass(eq=False)
class PreparedPhoto:
    """A photo as a region model takes it: small enough to wait for its turn among others.

    Attributes:
        inputs: of the region model, a batch of one. name: path of the photo, or None.
    """

    inputs: Mapping[str, torch.Tensor]
    name: str | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright photo in pixels."""
        height, width = self.inputs["original_sizes"][0].tolist()
        return width, height


class RegionFinder:
    """A region model and its image processor. Both may be None: then photos come from stores only.

    `checksum` identifies the region model of a photo.
    """

    def __init__(self, region_model, image_processor):
        self.region_model, self.image_processor = region_model and region_model.eval(), image_processor

    def batches(self, photos, batch_size) -> Iterator[list[tuple[int, SeenPhoto | PhotoError]]]:
        """Several photos -> (number from 0, encoded photo or error), `batch_size` at a time, with a progress bar."""
        total = length_hint(photos) or None
        photos, done = iter(photos), 0
        with Bar(total=total, unit="photo", disable=are_progress_bars_disabled() or None) as bar:
            while batch := list(islice(photos, batch_size)):
                seen = self.look(batch, done + 1, bar.update)
                yield list(enumerate(seen, start=done))
                done += len(batch)

    @torch.inference_mode()
    def look(self, photos, first=None, update=lambda number: None) -> list[SeenPhoto | PhotoError]:
        """Photos -> encoded photos or errors. Encoded photos are returned as they are.

        Only photos of one input size share a pass, since padding changes what a detector finds, up to
        `photos_per_pass`. Photos are opened one by one, and only the region model's input is kept.

        Args:
            first: number of the first one among several, for messages. update: called with the number of photos done.
        """
        seen, waiting = {}, {}

        def look_at(group):
            rows = [photo.inputs for _, photo in group]
            together = {name: torch.cat([inputs[name] for inputs in rows]) for name in rows[0]}
            output = self.region_model(**{name: rows.to(self.region_model.device) for name, rows in together.items()})
            found = self._described(output, *zip(*((photo.size, photo.name) for _, photo in group), strict=True))
            seen.update(zip((number for number, _ in group), found, strict=True))
            update(len(group))

        for number, photo in enumerate(photos):
            ready = self.prepare(photo, "the photo" if first is None else f"photo {first + number}")
            if not isinstance(ready, PreparedPhoto):
                seen[number] = ready
                update(1)
                continue
            pixels = ready.inputs["pixel_values"]
            waiting.setdefault(pixels.shape, []).append((number, ready))
            if len(waiting[pixels.shape]) == photos_per_pass(pixels, self.region_model.device):
                look_at(waiting.pop(pixels.shape))
        for group in waiting.values():
            look_at(group)
        return [seen[number] for number in range(len(seen))]

    def prepare(self, photo, name="the photo") -> PreparedPhoto | SeenPhoto | PhotoError:
        """Opens a photo for `look`, which takes the result too. Photos encoded by this region model, and errors, are
        returned as they are.

        Args:
            name: what to call the photo if it has no name.
        """
        if isinstance(photo, PreparedPhoto):
            return photo
        opened = open_or_error(photo, name)
        if isinstance(opened, SeenPhoto) and opened.region_model != self.checksum:
            by = self.other(opened.region_model)
            return PhotoError(f"{opened.name or 'a photo'}: was encoded {by}; call look() on it again")
        if isinstance(opened, SeenPhoto | PhotoError):
            return opened
        if self.region_model is None:
            return PhotoError(f"{name_of(photo) or name}: the pipeline was loaded without its region model")
        try:
            return PreparedPhoto(self.image_processor([opened], return_tensors="pt"), name_of(photo))
        except PhotoError as error:  # too thin
            return error.with_traceback(None)

    def stored(self, regions, name=None) -> SeenPhoto:
        """What `look` found in a photo, from its row in a store: see `MengziOscarPipeline.seen`."""
        wanted = {"region_features", "boxes", "original_size"}
        wanted |= {"class_ids", "scores"} if hasattr(self.region_model, "describe") else set()
        if missing := sorted(wanted - regions.keys()):
            raise ValueError(f"{name or 'regions'}: no {missing[0]}; fill the store with mengzi-oscar extract")
        found = {name: torch.as_tensor(values)[None] for name, values in regions.items() if name != "original_size"}
        expected, width = self.region_model.config.region_feature_size, found["region_features"].shape[-1]
        if width != expected:
            raise ValueError(f"{name or 'regions'}: features of {width} numbers; this region model makes {expected}")
        mask = torch.ones(found["region_features"].shape[:2], dtype=torch.long)
        output = RegionModelOutput(**found, region_attention_mask=mask)
        return self._described(output, [tuple(regions["original_size"].tolist()[::-1])], [name])[0]

    def _described(self, output, sizes, names) -> list[SeenPhoto]:
        """A batch of the region model's output, (width, height) and name of each photo -> what was seen in each."""
        tags, described = self.region_model.tags(output), describe_regions(self.region_model, output)
        features, valid = output.region_features.float().cpu(), output.region_attention_mask.bool().cpu()
        return [
            SeenPhoto(size, features[row][valid[row]], tags[row], described[row], name, self.checksum)
            for row, (size, name) in enumerate(zip(sizes, names, strict=True))
        ]

    @cached_property
    def checksum(self) -> str | None:
        """Of the region model's weights and settings and its image processor's, after the precision that it computes
        in: who looks alike has the same. None where there is no region model."""
        if self.region_model is None:
            return None
        checksum = 0
        for part in (self.region_model.config, self.image_processor):
            own = signature(type(part).__init__).parameters.keys() & vars(part).keys()
            settings = {name: getattr(part, name) for name in sorted(own)}
            checksum = zlib.crc32(json.dumps(settings, default=str, ensure_ascii=False).encode(), checksum)
        if self.region_model.in_8_bits:
            checksum = zlib.crc32(json.dumps(self.region_model.calibration, sort_keys=True).encode(), checksum)
        for name, tensor in sorted(self.region_model.state_dict().items()):
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            checksum = zlib.crc32(content, zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), checksum))
        return f"{precision_of(self.region_model)} {checksum:08x}"

    def other(self, checksum: str | None) -> str:
        """How a photo with another checksum than ours was encoded."""
        theirs, own = ((found or "").rpartition(" ")[0] for found in (checksum, self.checksum))
        if theirs and own and theirs != own:
            return f"in {theirs}, here the region model computes in {own}"
        return "by another region model"


def precision_of(region_model) -> str:
    """What it computes in, as stores say it."""
    if region_model.in_8_bits:
        return "int8"
    return str(next(region_model.parameters()).dtype).removeprefix("torch.")


def is_one_photo(photos) -> bool:
    """Whether it is a photo, in any form that has one, and not several in a list, tuple, generator or column."""
    if isinstance(photos, (str, bytes, bytearray, memoryview, os.PathLike, Mapping)) or hasattr(photos, "read"):
        return True
    if hasattr(photos, "ndim"):  # of numbers it is a photo, a column of names several
        return photos.ndim != 1 or getattr(photos.dtype, "kind", None) not in ("O", "U", "S", "T")
    return not hasattr(photos, "__iter__")


def open_or_error(photo, name: str):
    """RGB photo, or the `PhotoError` that says why not; such an error, and what was seen in a photo, stays."""
    if isinstance(photo, PhotoError | SeenPhoto):
        return photo
    if isinstance(photo, Mapping) and isinstance(photo.get("error"), str):  # what stands in its place in a list
        return PhotoError(photo["error"])
    try:
        return open_photo(photo, name=name)
    except PhotoError as error:
        return error.with_traceback(None)  # which would keep the photos of whoever called


def name_of(photo) -> str | None:
    """The path that a photo comes from, where it tells."""
    name = photo.get("path") if isinstance(photo, Mapping) else photo
    if not isinstance(name, str | os.PathLike):
        name = getattr(photo, "filename", None) or getattr(photo, "name", None)
    return os.fsdecode(name) if name and isinstance(name, str | bytes | os.PathLike) else None


def describe_regions(region_model, output) -> list[list[dict]]:
    """Per image, per region: its box and what the region model says of it."""
    if hasattr(region_model, "describe"):
        return region_model.describe(output)
    masks = output.region_attention_mask.bool()
    return [[{"box": box} for box in boxes[mask].tolist()] for boxes, mask in zip(output.boxes, masks, strict=True)]
