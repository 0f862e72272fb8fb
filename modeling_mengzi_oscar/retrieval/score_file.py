"""All pairs of N images and M texts in one .npy file, filled row by row, an image a row.

Any number of processes share the rows, and a killed run resumes where it stopped. Scores are those of `Matcher`.

    scores.npy.json     what the scores are made from (`fingerprint`) and, at the end, the checksum of scores.npy
    scores.npy.partial  the matrix while it grows; whole, it becomes scores.npy
    scores.npy.rows     while it grows: what the rows are made from, and the checksum of each row that is done

A row counts as done where it has its checksum, so a file that is damaged or of another run is never mixed in.
"""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..files import Lock, naming, open_whole, read_json, with_checksum, write_whole
from ..matching import NOT_SCORED

SECONDS_PER_FLUSH = 10  # a killed run repeats that much at most
DONE = 1 << 32  # above the 32 bits of a row's checksum


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
    """All pairs into a float16 .npy file of log-odds (N, M); resumes where a killed run stopped.

    Processes may start at any time and share the rows by `rank`.

    Args:
        images: a sequence of {"region_features", "tags"}, as `StoredImages`. texts: M strings.
        candidates: per image the numbers of the texts to score (`shortlist`); the others are -inf. None = all.

    Returns:
        The matrix, memory-mapped, or None where other processes still have rows to do.

    Raises:
        ValueError: `path` belongs to other images, texts, candidates or weights, or is damaged: the message names every
            file to delete for a new start. Or a score is not a number.
        OSError: names the file that could not be written.
    """
    path, texts = Path(path), matcher.encode(texts)
    about = fingerprint(matcher, images, texts, candidates)
    opened = open_partial(path, about)
    if opened is None:
        return np.load(path, mmap_mode="r")
    matrix, done = opened
    sizes = {index: len(texts) if candidates is None else len(candidates[index]) for index in range(len(images))}
    share = range(rank, len(images), num_ranks)
    left = [index for index in share if not is_done(matrix, done, index)]
    total, waiting, flushed = sum(sizes[index] for index in share), {}, time.monotonic()
    progress = tqdm(total=total, unit="pair", unit_scale=True, desc=path.name, delay=2, disable=rank != 0)
    progress.update(total - sum(sizes[index] for index in left))
    for index in left:
        text_numbers = None if candidates is None else candidates[index]
        before = progress.n
        scores = matcher.row(images[index], texts, text_numbers, progress.update).half().cpu()
        if not scores.isfinite().all():
            raise ValueError(
                f"{path}: a score of image {index} is not a number: are the weights or the features damaged?"
            )
        row = np.full(matrix.shape[1], NOT_SCORED, np.float16)
        row[slice(None) if text_numbers is None else text_numbers] = scores
        matrix[index] = row
        waiting[index] = checksum(row)
        progress.update(before + sizes[index] - progress.n)  # equal texts, which were scored once
        if time.monotonic() - flushed > SECONDS_PER_FLUSH or index == left[-1]:
            with naming(path):
                matrix.flush()  # the scores reach the disk before the note that they did
                done[list(waiting)] = list(waiting.values())
                done.flush()
            waiting, flushed = {}, time.monotonic()
    progress.close()
    return np.load(path, mmap_mode="r") if finish(path, about) else None


def names(path) -> dict[str, Path]:
    """The files of a matrix: itself, it while it grows, its rows that are done, what it was made from."""
    kinds = {kind: path.with_name(f"{path.name}.{kind}") for kind in ("partial", "rows", "json")}
    return {"whole": path} | kinds


def open_partial(path, about):
    """The growing matrix and the checksums of its rows that are done, both mapped for writing; None where it is whole.

    Raises:
        ValueError: it is about something else, or damaged.
    """
    files = names(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Lock(path.with_name(f"{path.name}.lock"), path, wait=True):
        for file in files.values():  # of a process that was killed while it had the lock
            file.with_name(f"{file.name}.tmp").unlink(missing_ok=True)
        check(path, about)
        if path.exists():
            files["rows"].unlink(missing_ok=True)
            return None
        if not files["json"].exists():
            write_whole(files["json"], with_checksum(about | {"matrix": None}))
        if not files["rows"].exists():
            rows = np.array([identity(about)] + [0] * about["shape"][0], np.uint64)
            with open_whole(files["rows"]) as file:
                np.save(file, rows)
        if not files["partial"].exists():
            with open_whole(files["partial"]) as file:
                save_filled(file, tuple(about["shape"]))
        return np.load(files["partial"], mmap_mode="r+"), np.load(files["rows"], mmap_mode="r+")[1:]


def check(path, about):
    """Raises ValueError where one of the files is not of these images, texts, candidates and weights, or damaged."""
    files = names(path)
    there = [file.name for file in files.values() if file.exists()]
    remedy = f"name another file, or delete {', '.join(there)} to start again"
    if not there:
        return
    if path.exists() and not files["json"].exists():
        raise ValueError(f"{path}: what it was made from is unknown without {files['json'].name}: {remedy}")
    said = {}
    if files["json"].exists():
        try:
            said = read_json(files["json"])
        except ValueError as error:
            raise ValueError(f"{error}; or {remedy}") from None
        if changed := [name for name in about if said.get(name) != about[name]]:
            raise ValueError(f"{path} was made from something else ({', '.join(changed)} differ): {remedy}")
    if path.exists() and said.get("matrix") != checksum_of_file(path):
        raise ValueError(f"{path}: damaged, it is not the matrix that {files['json'].name} describes: {remedy}")
    shapes = {"partial": (tuple(about["shape"]), np.float16), "rows": ((about["shape"][0] + 1,), np.uint64)}
    for kind, expected in shapes.items():
        if not path.exists() and files[kind].exists():
            try:
                array = np.load(files[kind], mmap_mode="r")
                right = (array.shape, array.dtype) == expected
            except (ValueError, OSError, EOFError):
                right = False
            if not right or (kind == "rows" and array[0] != identity(about)):
                raise ValueError(f"{files[kind]}: of another run, or damaged: {remedy}")


def finish(path, about) -> bool:
    """Gives the matrix its name if every row is done; another process may have been quicker.

    Raises:
        ValueError: the files are of another run by now.
    """
    files = names(path)
    with Lock(path.with_name(f"{path.name}.lock"), path, wait=True), naming(path):
        check(path, about)
        if not path.exists():
            matrix, done = np.load(files["partial"], mmap_mode="r"), np.load(files["rows"], mmap_mode="r")[1:]
            if not all(is_done(matrix, done, index) for index in range(len(done))):
                return False
            write_whole(files["json"], with_checksum(about | {"matrix": checksum_of_file(files["partial"])}))
            os.replace(files["partial"], path)
        files["rows"].unlink(missing_ok=True)
        return True


def is_done(matrix, done, index) -> bool:
    return int(done[index]) == checksum(matrix[index])


def checksum(row) -> int:
    return DONE | zlib.crc32(np.ascontiguousarray(row))


def checksum_of_file(path) -> str:
    found = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return f"{found:08x}"


def identity(about) -> int:
    """What `fingerprint` says, as one number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(json.dumps(about).encode(), digest_size=8).digest(), "little")


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
    for name, weight in matcher.model.state_dict().items():
        digests["weights"].update(name.encode())
        for tensor in weight if isinstance(weight, tuple) else [weight]:  # in 8 bits weight and bias are one
            if isinstance(tensor, torch.Tensor):
                digests["weights"].update(tensor.detach().dequantize().cpu().contiguous().numpy().tobytes())
    for text_numbers in candidates if candidates is not None else ():
        digests["candidates"].update(repr(list(text_numbers)).encode())
    settings = [matcher.processor.max_length, matcher.processor.max_regions, matcher.model.config.regions_read_text]
    result = {name: digest.hexdigest() for name, digest in digests.items()}
    return result | {"shape": [len(images), len(texts)], "settings": settings, "values": "log-odds of a match"}
