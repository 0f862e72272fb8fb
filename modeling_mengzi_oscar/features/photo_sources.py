"""Where photos come from: a folder, a list, tar shards, a dataset. Each is a stream, read from the front.

Nothing here holds more than one folder's names or one row group, so that a million photos cost what a thousand cost. A
source has `total`, the number of its photos (tar shards: estimated from the bytes read so far, None before the first).
"""

import csv
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..photos import SUFFIXES, PhotoError

MAX_FILE_BYTES = 2**28  # of one photo in an archive; a sparse file there may claim any size
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LIST_SUFFIXES = (".txt", ".jsonl", ".csv")
ID_COLUMNS = ("image_id", "id", "__key__")


class Photo(NamedTuple):
    image_id: str
    name: str  # for messages: the path, or where it stands in its archive or dataset
    fetch: Callable[[], Path | bytes]  # what `open_photo` takes; call it before the next photo is asked for


def open_source(source):
    """What a user names, as one of the sources below.

    Args:
        source: folder of photos (with its subfolders), of tar shards or of Parquet files; folder of
            `Dataset.save_to_disk` or of a builder's Arrow files; one such file; one photo; a list of photos; a
            `datasets.Dataset`.

    Raises:
        PhotoError: it is none of these, or holds no photo.
    """
    if hasattr(source, "column_names"):
        return DatasetPhotos(source, "dataset", outside_files=True)
    path = Path(source)
    if not path.exists():
        raise PhotoError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        return open_folder(path)
    name = path.name.lower()
    if name.endswith(TAR_SUFFIXES):
        return TarPhotos([path])
    if name.endswith((".parquet", ".arrow")):
        return open_tables([path])
    if name.endswith(LIST_SUFFIXES):
        return ListedPhotos(path)
    if name.endswith(SUFFIXES):
        return OnePhoto(path)
    known = ", ".join((*LIST_SUFFIXES, *TAR_SUFFIXES, ".parquet", ".arrow", *SUFFIXES))
    raise PhotoError(f"{path}: no photo, list, tar shard or dataset by its name ({known})")


def open_folder(folder):
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        raise PhotoError(f"{folder} holds the splits {', '.join(splits)}: name one, e.g. {folder / splits[0]}")
    if (folder / "state.json").is_file():
        files = json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]
        return open_tables([folder / file["filename"] for file in files])
    photos = FolderPhotos(folder)
    if next(photos.fetch_photos(), None):
        return photos
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if shards := [path for path in files if path.name.lower().endswith(TAR_SUFFIXES)]:
        return TarPhotos(shards)
    for suffix in (".parquet", ".arrow"):
        if tables := [path for path in files if path.suffix == suffix]:
            return open_tables(tables)
    raise PhotoError(f"{folder}: holds no photos ({', '.join(SUFFIXES)}), tar shards, Parquet or Arrow files")


def open_tables(paths):
    """Arrow files are mapped, Parquet files streamed; neither is copied into a cache."""
    paths = [str(path) for path in paths]
    try:
        import datasets
    except ImportError:
        raise PhotoError(f"{paths[0]}: reading it needs `datasets`: pip install datasets") from None
    if paths[0].endswith(".arrow"):
        return DatasetPhotos(datasets.concatenate_datasets(list(map(datasets.Dataset.from_file, paths))), paths[0])
    from pyarrow import parquet

    rows = sum(parquet.read_metadata(path).num_rows for path in paths)
    stream = datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True)
    return DatasetPhotos(stream, paths[0], total=rows)


def id_of(path) -> str:
    """The path without its suffix, with forward slashes; bytes that are no UTF-8 are spelled out."""
    path = Path(path).with_suffix("").as_posix()
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class OnePhoto:
    total = 1

    def __init__(self, path):
        self.path = path

    def fetch_photos(self) -> Iterator[Photo]:
        yield Photo(self.path.stem, str(self.path), lambda: self.path)


class FolderPhotos:
    """Every photo under a folder, folder by folder, sorted; the id is the path below the folder without suffix."""

    def __init__(self, folder):
        self.folder = Path(folder)

    @cached_property
    def total(self):
        return sum(1 for _ in self.fetch_photos())

    def fetch_photos(self) -> Iterator[Photo]:
        for parent, folders, names in os.walk(self.folder, onerror=unreadable):
            folders.sort()
            for name in sorted(name for name in names if name.lower().endswith(SUFFIXES)):
                path = Path(parent, name)
                yield Photo(id_of(path.relative_to(self.folder)), str(path), lambda path=path: path)


def unreadable(error: OSError):
    raise PhotoError(f"{error.filename}: {error.strerror}")


class ListedPhotos:
    """Photos named in a file: one path a line (.txt), or `image_id` and `path` a line (.jsonl, .csv).

    Relative paths start at the list's folder. In a .txt the id is the path as written, without suffix.
    """

    def __init__(self, path):
        self.path = Path(path)
        if self.total == 0:  # reads, and so checks, every line before any work is done
            raise PhotoError(f"{path}: an empty list; write a path a line (.txt) or image_id and path (.jsonl, .csv)")

    @cached_property
    def total(self):
        return sum(1 for _ in self.fetch_photos())

    def fetch_photos(self) -> Iterator[Photo]:
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            lines = enumerate(csv.DictReader(file), 2) if self.path.suffix.lower() == ".csv" else enumerate(file, 1)
            try:
                for number, line in lines:
                    if isinstance(line, dict) or line.strip():
                        image_id, path = self.read_line(number, line)
                        path = self.path.parent / path
                        yield Photo(image_id, str(path), lambda path=path: path)
            except UnicodeDecodeError as error:
                raise PhotoError(f"{self.path}: not UTF-8 ({error.reason}); save it as UTF-8") from None

    def read_line(self, number, line) -> tuple[str, str]:
        if self.path.suffix.lower() == ".txt":
            return id_of(line.strip()), line.strip()
        try:
            record = line if isinstance(line, dict) else json.loads(line)
            image_id, path = record["image_id"], record["path"]
        except (ValueError, KeyError, TypeError):
            image_id = path = None
        if image_id in (None, "") or not isinstance(path, str) or not path:
            raise PhotoError(
                f"{self.path} line {number}: needs image_id and path, e.g. " + '{"image_id": 1, "path": "1.jpg"}'
            )
        return str(image_id), path


class TarPhotos:
    """Photos in tar files as WebDataset has them; never extracted, links and devices are passed over.

    The id is the member's path without suffix. A damaged archive is a photo that cannot be read, with the archive's
    name for an id; what stands before the damage is found.
    """

    def __init__(self, paths):
        self.paths = paths
        self.sizes = [path.stat().st_size for path in paths]
        self.seen = self.bytes_passed = 0

    @property
    def total(self):
        return round(self.seen * sum(self.sizes) / self.bytes_passed) if self.bytes_passed else None

    def fetch_photos(self) -> Iterator[Photo]:
        self.seen = self.bytes_passed = 0
        for path, size, before in zip(self.paths, self.sizes, self._bytes_before(), strict=True):
            try:
                with tarfile.open(path) as archive:
                    while (member := archive.next()) is not None:
                        archive.members.clear()  # it would remember every one
                        if member.isreg() and member.name.lower().endswith(SUFFIXES):
                            self.seen += 1
                            self.bytes_passed = before + min(size, archive.offset)
                            yield Photo(
                                id_of(member.name),
                                f"{path}/{member.name}",
                                lambda archive=archive, member=member, path=path: read_member(archive, member, path),
                            )
                    archive.fileobj.seek(archive.offset)  # tarfile takes a broken header for the end
                    end = archive.fileobj.read(tarfile.BLOCKSIZE)
                    if end.strip(b"\0") or 0 < len(end) < tarfile.BLOCKSIZE:
                        raise tarfile.ReadError(f"no header at byte {archive.offset}")
            except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
                yield Photo(str(path), str(path), lambda path=path, error=error: damaged(path, error))

    def _bytes_before(self):
        before = 0
        for size in self.sizes:
            yield before
            before += size


def read_member(archive, member, path) -> bytes:
    if member.size > MAX_FILE_BYTES:
        raise PhotoError(f"{path}/{member.name}: {member.size:,} bytes are more than {MAX_FILE_BYTES:,}")
    try:
        return archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        damaged(f"{path}/{member.name}", error)


def damaged(name, error):
    raise PhotoError(f"{name}: damaged ({error}); download or copy it again")


class DatasetPhotos:
    """The Image column of a dataset; the id is the column image_id, id or __key__, else the row's number.

    Args:
        dataset: `datasets.Dataset`, or an `IterableDataset` whose number of rows is `total`.
        outside_files: also take photos that the dataset only names by their paths. A dataset that comes from somewhere
            else must not choose what is read here.
    """

    def __init__(self, dataset, name, total=None, outside_files=False):
        import datasets

        self.name, self.outside_files = name, outside_files
        self.total = len(dataset) if total is None else total
        images = [column for column, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
        if len(images) != 1:
            found = f"the Image columns {', '.join(images)}" if images else "no Image column"
            raise PhotoError(f"{name}: has {found} among {', '.join(dataset.features)}; it needs exactly one")
        [self.image] = images
        self.id_column = next((column for column in ID_COLUMNS if column in dataset.features), None)
        columns = [self.image] + ([self.id_column] if self.id_column else [])
        self.rows = dataset.select_columns(columns).cast_column(self.image, datasets.Image(decode=False))

    def fetch_photos(self) -> Iterator[Photo]:
        for number, (image_id, fetch) in enumerate(self._rows_by_id()):
            image_id = f"{number:08d}" if image_id is None else str(image_id)
            name = f"{self.name} row {number}"
            yield Photo(image_id, name, lambda fetch=fetch, name=name: self.content(fetch(), name))

    def _rows_by_id(self):
        """(id or None, function that reads the image); a mapped dataset gives its ids without reading images."""
        if not hasattr(self.rows, "__len__"):
            for row in self.rows:
                yield row.get(self.id_column), lambda row=row: row[self.image]
            return
        ids = self.rows.select_columns([self.id_column]) if self.id_column else None
        for start in range(0, len(self.rows), 1000):
            numbers = range(start, min(start + 1000, len(self.rows)))
            image_ids = ids[start : numbers.stop][self.id_column] if ids else [None] * len(numbers)
            for number, image_id in zip(numbers, image_ids, strict=True):
                yield image_id, lambda number=number: self.rows[number][self.image]

    def content(self, image, name):
        if image is not None and image["bytes"] is not None:
            return image["bytes"]
        if image is None or image["path"] is None:
            raise PhotoError(f"{name}: no image")
        if not self.outside_files:
            raise PhotoError(f"{name}: names a file instead of holding it; Dataset.save_to_disk puts the photos in")
        return Path(image["path"])
