"""Many photos as a stream: what their names mean, opened in threads while the model works, handed over in batches.

Memory holds the photos of one batch and `AHEAD` more, however many there are.
"""

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from glob import glob, has_magic
from pathlib import Path

from ..photos import PhotoError, is_apple_double, open_photo
from .photo_sources import LIST_SUFFIXES, TABLE_SUFFIXES, TAR_SUFFIXES, PassedOver, Photo, id_of, open_source

THREADS = min(4, os.cpu_count() or 1)  # decode while the model works
AHEAD = 2  # photos: one of 12 megapixels takes 36 MB
MOST_AT_ONCE = 32  # photos of a batch; more bring nothing
BATCH_PIXELS = 2**23  # at which a batch is full: 25 MB, twice that while the region model takes them
FAST, SLOW = 1, 4  # seconds that a batch shall take, so that results come steadily
MEMORY_OF_ONE = 2**27  # bytes that a photo may need while a model of bert-base size writes about it


class NamedPhotos:
    """What the names on a command line mean, one after the other.

    A name is a photo, a source as `open_source` takes it (folder, list, tar shards, dataset), or a pattern with *, ?
    or [ that the shell has left: what it matches, sorted. `several` says whether it may be more than one photo, and
    `beside` which names were passed over because macOS keeps such files beside photos.
    """

    def __init__(self, names):
        self.beside = [name for name in names if is_apple_double(name)]
        self.sources = [source_of(name) for name in names if not is_apple_double(name)]
        self.several = len(self.sources) > 1 or not all(isinstance(source, OneName) for source in self.sources)

    @property
    def total(self):
        """Number of photos; None as long as a source does not know it."""
        totals = [source.total for source in self.sources]
        return None if None in totals else sum(totals)

    @property
    def passed_over(self):
        together = PassedOver()
        for source in self.sources:
            together.count += source.passed_over.count
            together.first = together.first or source.passed_over.first
        return together

    def fetch_photos(self) -> Iterator[Photo]:
        for source in self.sources:
            yield from source.fetch_photos()


class OneName:
    """One photo under the name that it was given; or what is wrong with that name, told when its turn comes."""

    total = 1

    def __init__(self, name, path=None, error=None):
        self.name, self.path, self.error, self.passed_over = name, path or name, error, PassedOver()

    def fetch_photos(self) -> Iterator[Photo]:
        yield Photo(id_of(self.name), self.name, self._fetch)

    def _fetch(self):
        if self.error:
            raise self.error
        return self.path


def source_of(name):
    """The source that one name means."""
    try:
        if not os.path.lexists(name) and has_magic(name):
            found = sorted(glob(name, recursive=True))
            if "**" in name:  # which names a folder and all that is in it
                found = [path for path in found if not os.path.isdir(path)]
            if not found:
                raise PhotoError(f"{name}: no file matches; check the pattern and its folder")
            return NamedPhotos(found)
        of_many = name.lower().endswith((*LIST_SUFFIXES, *TAR_SUFFIXES, *TABLE_SUFFIXES))
        if os.path.isdir(name) or (of_many and os.path.isfile(name)):
            return open_source(name)
        return OneName(name)
    except PhotoError as error:  # it costs this name only
        return OneName(name, error=error)


def read_ahead(photos, read, ahead: int = AHEAD) -> Iterator[tuple[Photo, Future]]:
    """(photo, future of `read(content, name)`), in order; at most `ahead` photos before they are asked for."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="photos")
    try:
        waiting = deque()
        for photo in photos:
            try:
                future = pool.submit(read, photo.fetch(), photo.name)
            except PhotoError as error:
                future = Future()
                future.set_exception(error)
            waiting.append((photo, future))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:  # also where nobody asks for the rest
        pool.shutdown(cancel_futures=True)


def opened(photos) -> Iterator[tuple[Photo, object]]:
    """(photo, RGB image or the `PhotoError` that says why there is none), in order, read ahead."""
    for photo, future in read_ahead(photos, lambda content, name: open_photo(content, name=name)):
        try:
            image = future.result()
        except PhotoError as error:
            image = error
        del future  # it would keep the pixels
        yield photo, image


def in_batches(rows, most: int | None = None) -> Iterator[list]:
    """Lists of what `opened` gives: of one photo at first, then of more, as long as whoever uses them is fast.

    Args:
        rows: (photo, image, or what else stands for it).
        most: photos of a batch. None: what memory allows.
    """
    most = most or photos_at_once()
    size, batch, pixels = 1, [], 0
    for photo, image in rows:
        batch.append((photo, image))
        pixels += getattr(image, "width", 0) * getattr(image, "height", 0)
        del image
        if len(batch) < size and pixels < BATCH_PIXELS:
            continue
        start = time.perf_counter()
        yield batch
        seconds = time.perf_counter() - start
        size = min(most, 2 * size) if seconds < FAST else max(1, size // 2) if seconds > SLOW else size
        batch, pixels = [], 0
    if batch:
        yield batch


def photos_at_once() -> int:
    """Photos of a batch: `MOST_AT_ONCE`, fewer where memory is short."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        [free] = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):  # another system than Linux
        return MOST_AT_ONCE
    return max(1, min(MOST_AT_ONCE, free // 4 // MEMORY_OF_ONE))
