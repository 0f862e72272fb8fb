"""All pairs of N images and M texts in one .npy file, filled row by row, an image a row.

Any number of processes share the rows, and a killed run goes on where it stopped. Scores are those of `Matcher`.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..matching import NOT_SCORED

SECONDS_PER_FLUSH = 10  # a killed run repeats that much at most


class StoredImages(Sequence):
    """Images of a `RegionFeatureStore` in a given order: {"region_features": (R, D), "tags": words}.

    Args:
        tags: {image id: words or one string}; None where the checkpoint reads no tags.

    Raises:
        KeyError: names an image that has no tags.
    """

    def __init__(self, store, image_ids: Sequence[str], tags=None):
        self.store, self.image_ids, self.tags = store, list(image_ids), tags

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, index):
        image_id = self.image_ids[index]
        tags = ()
        if self.tags is not None:
            if image_id not in self.tags:
                raise KeyError(f"image {image_id!r} has no tags (give it an empty list if that is right)")
            tags = self.tags[image_id]
        return {"region_features": self.store[image_id]["region_features"], "tags": tags}


def score_matrix(matcher, images, texts, path, candidates=None, rank=0, num_ranks=1) -> np.ndarray | None:
    """All pairs into a float16 .npy file of log-odds (N, M); goes on where a killed run stopped.

    While it grows it is `<path>.partial`, with `<path>.rows` saying which images are done and `<path>.json` what it
    was made from; whole, it is renamed to `path`. Processes may start at any time and share the rows by `rank`.

    Args:
        images: a sequence of {"region_features", "tags"}, as `StoredImages`. texts: M strings.
        candidates: per image the numbers of the texts to score (`shortlist`); the others are -inf. None = all.

    Returns:
        The matrix, memory-mapped, or None where other processes still have rows to do.

    Raises:
        ValueError: `path` belongs to other images, texts, candidates or weights. To start again delete it and the
            files whose names begin with its name.
    """
    path, texts = Path(path), matcher.encode(texts)
    opened = open_partial(path, fingerprint(matcher, images, texts, candidates))
    if opened is None:
        return np.load(path, mmap_mode="r")
    matrix, done = opened
    sizes = {index: len(texts) if candidates is None else len(candidates[index]) for index in range(len(images))}
    share = range(rank, len(images), num_ranks)
    left = [index for index in share if not done[index]]
    total, waiting, flushed = sum(sizes[index] for index in share), [], time.monotonic()
    progress = tqdm(total=total, unit="pair", unit_scale=True, desc=path.name, disable=rank != 0 or total < 1000)
    progress.update(total - sum(sizes[index] for index in left))
    for index in left:
        text_numbers = None if candidates is None else candidates[index]
        matrix[index, slice(None) if text_numbers is None else text_numbers] = matcher.row(
            images[index], texts, text_numbers
        ).cpu()
        waiting.append(index)
        progress.update(sizes[index])
        if time.monotonic() - flushed > SECONDS_PER_FLUSH or index == left[-1]:
            matrix.flush()  # the scores reach the disk before the note that they did
            done[waiting] = 1
            done.flush()
            waiting, flushed = [], time.monotonic()
    progress.close()
    if not done.all():
        return None
    try:
        os.replace(names(path)["partial"], path)
        names(path)["rows"].unlink()
    except FileNotFoundError:  # another process was quicker
        pass
    return np.load(path, mmap_mode="r")


def names(path) -> dict[str, Path]:
    """The files beside a matrix: it while it grows, its rows that are done, what it was made from."""
    return {kind: path.with_name(f"{path.name}.{kind}") for kind in ("partial", "rows", "json")}


def open_partial(path, about):
    """The growing matrix and which of its rows are done, both mapped for writing; None where the matrix is whole.

    Raises:
        ValueError: it is about something else.
    """
    files = names(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    create(files["json"], lambda file: file.write(json.dumps(about, indent=2).encode()))
    there = json.loads(files["json"].read_text("utf-8"))
    if there != about:
        changed = ", ".join(name for name in about if there.get(name) != about[name])
        remedy = f"name another file, or delete it and {files['json'].name}"
        raise ValueError(f"{path} was made from something else ({changed} differ): {remedy}")
    if not path.exists():
        create(files["rows"], lambda file: np.save(file, np.zeros(about["shape"][0], dtype=np.uint8)))
        create(files["partial"], lambda file: save_filled(file, tuple(about["shape"])))
    try:
        return np.load(files["partial"], mmap_mode="r+"), np.load(files["rows"], mmap_mode="r+")
    except FileNotFoundError:  # whole, perhaps by another process just now
        return None


def create(path, write):
    """A file that is whole or not there; one that is there already stays, also when another process makes it now."""
    if path.exists():
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def save_filled(file, shape):
    """A float16 .npy of `NOT_SCORED`, row by row: the whole may be larger than memory."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    row = np.full(shape[1], NOT_SCORED, dtype=np.float16).tobytes()
    for _ in range(shape[0]):
        file.write(row)


def fingerprint(matcher, images, texts, candidates=None) -> dict[str, str]:
    """Hashes of everything that the scores depend on, except rounding (batch size, dtype, device)."""
    digests = {name: hashlib.blake2b(digest_size=16) for name in ("images", "texts", "weights", "candidates")}
    for index in range(len(images)):
        image = images[index]
        digests["images"].update(np.ascontiguousarray(image["region_features"]).tobytes())
        digests["images"].update(repr(matcher._tag_ids(image)).encode())
    digests["texts"].update(texts.lengths.tobytes() + texts.ids.tobytes() + texts.row_of.tobytes())
    for name, tensor in matcher.model.state_dict().items():
        digests["weights"].update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    for text_numbers in candidates if candidates is not None else ():
        digests["candidates"].update(repr(list(text_numbers)).encode())
    settings = [matcher.processor.max_length, matcher.processor.max_regions, matcher.model.config.regions_read_text]
    result = {name: digest.hexdigest() for name, digest in digests.items()}
    return result | {"shape": [len(images), len(texts)], "settings": settings, "values": "log-odds of a match"}
