"""Photos that were looked at, kept in a folder, so that the next search over them does not start from pixels.

The folder is a `RegionFeatureStore` in float32, whose photos match as they do fresh, and `prepared.json`, which says
whose region model looked. A photo stands in it under its path, its size and the time of its last change (one in an
archive or a dataset under its name and the hash of its bytes): one that changed is another photo, and looked at; one
that went is not asked for. What is there is never changed, and a killed run keeps its whole shards.
"""

import json
import os
from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path

from ..files import read_json, with_checksum, write_whole
from ..photos import PhotoError
from ..seen_photos import precision_of
from .extraction import extract_regions, prepare_photo
from .photo_sources import Photo
from .store import RegionFeatureStore

PREPARED = "prepared.json"


class StampedPhotos:
    """The photos of a source, each once, under an id that changes when the photo does."""

    def __init__(self, source):
        self.source = source

    @property
    def total(self):
        return self.source.total

    def fetch_photos(self) -> Iterator[Photo]:
        came = set()
        for photo in self.source.fetch_photos():
            stamp = stamp_of(photo)
            if stamp not in came:
                came.add(stamp)
                yield photo._replace(image_id=stamp)


def stamp_of(photo) -> str:
    try:
        content = photo.fetch()
        if isinstance(content, bytes):
            stamp = f"{photo.name} {blake2b(content, digest_size=16).hexdigest()}"
        else:
            path = Path(content).resolve()
            status = path.stat()
            stamp = f"{path} {status.st_size} {status.st_mtime_ns}"
    except (OSError, ValueError):  # whoever opens it says what is wrong
        stamp = f"{photo.name} ?"
    return stamp.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def prepare(pipeline, photos: StampedPhotos, folder) -> tuple[list[tuple[str, str]], list[str]]:
    """Looks at the photos that the folder does not hold yet.

    Args:
        pipeline: `MengziOscarPipeline`, whose region model looks.
        folder: made if it is not there.

    Returns:
        (id in the store, name) of the photos in their order, and a line for each that cannot be read.

    Raises:
        ValueError: one line: the folder holds something else, or photos that another region model looked at; it is
            damaged, or another process writes it.
        OSError: names the file that could not be written.
    """
    folder, errors = Path(folder), []
    check_folder(folder, pipeline.finder)
    there, names = stored(folder), [(photo.image_id, photo.name) for photo in photos.fetch_photos()]
    if any(stamp not in there for stamp, _ in names):
        look = partial(prepare_photo, image_processor=pipeline.image_processor)
        precision = precision_of(pipeline.region_model)
        extract_regions(photos, pipeline.region_model, look, folder, dtype="float32", precision=precision)
        failed, there = {}, stored(folder)
        for log in folder.glob("errors-*.jsonl"):
            records = map(json.loads, log.read_text("utf-8").splitlines())
            failed |= {record["image_id"]: record["error"] for record in records}
            log.unlink()
        errors = [
            failed.get(stamp, f"{name}: changed while it was being read; search again")
            for stamp, name in names
            if stamp not in there
        ]
    return [(stamp, name) for stamp, name in names if stamp in there], errors


def stored(folder) -> RegionFeatureStore | dict:
    return RegionFeatureStore.open(folder) if (Path(folder) / "store.json").is_file() else {}


def check_folder(folder, finder):
    """Makes the folder, or looks whose it is.

    Raises:
        ValueError
    """
    path = folder / PREPARED
    if path.is_file():
        if (checksum := read_json(path).get("region_model")) != finder.checksum:
            raise ValueError(f"{folder}: prepared {finder.other(checksum)}; name another folder, or delete this one")
        return
    if folder.exists() and (not folder.is_dir() or any(not name.endswith(".tmp") for name in os.listdir(folder))):
        raise ValueError(f"{folder}: holds something else than prepared photos; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, with_checksum({"region_model": finder.checksum}))


def contents(photos: StampedPhotos, names: list[str]):
    """What `MengziOscarPipeline.rank` takes of photos that are looked at now; their names are added to the list."""
    for photo in photos.fetch_photos():
        names.append(photo.name)
        try:
            content = photo.fetch()
        except PhotoError as error:
            content = error
        yield {"bytes": content, "path": photo.name} if isinstance(content, bytes) else content
