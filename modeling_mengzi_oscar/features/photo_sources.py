"""Where photos come from: a folder, a list, tar shards, a dataset. Each is a stream, read from the front.

Nothing here holds more than one folder's names or one row group, so that a million photos cost what a thousand cost. A
source has `total`, the number of its photos (tar shards: estimated from the bytes read so far, None before the first),
and `passed_over`, what the last stream left out although its content is a photo.
"""

import csv
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..photos import (
    HEAD,
    SUFFIXES,
    PhotoError,
    is_address,
    is_apple_double,
    is_photo_by_content,
    is_photo_name,
    photo_kind,
)

MAX_FILE_BYTES = 2**28  # of one photo in an archive; a sparse file there may claim any size
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LIST_SUFFIXES = (".txt", ".jsonl", ".csv")
TABLE_SUFFIXES = (".parquet", ".arrow")
ID_COLUMNS = ("image_id", "id", "__key__")


class PassedOver:
    """Files that are photos by their content but not by their names: how many, and the first."""

    def __init__(self):
        self.count, self.first = 0, None

    def add(self, name):
        self.count += 1
        self.first = self.first or name

    def __str__(self):
        if not self.count:
            return ""
        return f"{self.count:,} passed over that are photos by content but not by name, the first: {self.first}"


class Photo(NamedTuple):
    image_id: str
    name: str  # for messages: the path, or where it stands in its archive or dataset
    fetch: Callable[[], Path | str | bytes]  # what `open_photo` takes; call it before the next photo is asked for


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
    if is_address(source):
        raise PhotoError(f"{source}: addresses are not fetched; download the photos first, then give their folder")
    path = Path(source)
    if not os.path.exists(path):  # which is False for names that cannot be, too
        raise PhotoError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        return open_folder(path)
    if not path.is_file():  # opening it would wait for whoever writes
        raise PhotoError(f"{path}: a device, pipe or socket, not a file; save what it gives as a file first")
    name = path.name.lower()
    if name.endswith(TAR_SUFFIXES):
        return TarPhotos([path])
    if name.endswith(TABLE_SUFFIXES):
        return open_tables([path])
    if name.endswith(LIST_SUFFIXES):
        return ListedPhotos(path)
    if is_apple_double(path):
        raise PhotoError(f"{path}: a macOS metadata file, not the photo; name the file without ._")
    if name.endswith(SUFFIXES) or is_photo_by_content(path):
        return OnePhoto(path)
    known = ", ".join((*LIST_SUFFIXES, *TAR_SUFFIXES, *TABLE_SUFFIXES, *SUFFIXES))
    raise PhotoError(f"{path}: no photo, list, tar shard or dataset by its name ({known})")


def open_folder(folder):
    """A folder that holds photos is a folder of photos, whatever else lies in it."""
    photos = FolderPhotos(folder)
    if next(photos.fetch_photos(), None):
        return photos
    if splits := saved_splits(folder):
        raise PhotoError(f"{folder} holds the splits {', '.join(splits)}: name one, e.g. {folder / splits[0]}")
    if tables := saved_tables(folder):
        return open_tables(tables)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if shards := [path for path in files if path.name.lower().endswith(TAR_SUFFIXES)]:
        return TarPhotos(shards)
    for suffix in TABLE_SUFFIXES:
        if tables := [path for path in files if path.suffix == suffix]:
            return open_tables(tables)
    found = f"; {photos.passed_over}" if photos.passed_over.count else ""
    raise PhotoError(f"{folder}: holds no photos ({', '.join(SUFFIXES)}), tar shards, Parquet or Arrow files{found}")


def saved_splits(folder) -> list[str]:
    """Of a folder that `DatasetDict.save_to_disk` wrote; empty where another program's dataset_dict.json lies there."""
    splits = (read_object(folder / "dataset_dict.json") or {}).get("splits")
    are_names = isinstance(splits, list) and all(re.fullmatch(r"\w+(\.\w+)*", str(split)) for split in splits)
    return list(map(str, splits)) if are_names else []


def saved_tables(folder) -> list[Path]:
    """Of a folder that `Dataset.save_to_disk` wrote; empty where another program's state.json lies there.

    Raises:
        PhotoError: it names files that are not in the folder.
    """
    files = (read_object(folder / "state.json") or {}).get("_data_files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        return []
    names = [file.get("filename") for file in files]
    for name in names:
        if not isinstance(name, str) or not is_inside(folder, name):
            raise PhotoError(f"{folder / 'state.json'}: names {name!r}, which is no file in this folder")
    return [folder / name for name in names]


def read_object(path) -> dict | None:
    """The JSON object in a file; None where there is none."""
    try:
        value = json.loads(path.read_text("utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_inside(folder, name) -> bool:
    """Whether a name leads to a file below the folder, links followed."""
    try:
        return (folder / name).is_file() and (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle
        return False


def open_tables(paths):
    """Arrow files are mapped, Parquet files streamed; neither is copied into a cache."""
    paths = [str(path) for path in paths]
    try:
        import datasets
    except ImportError:
        raise PhotoError(f"{paths[0]}: reading it needs `datasets`: pip install datasets") from None
    from pyarrow import parquet

    try:
        if paths[0].endswith(".parquet"):
            rows = sum(parquet.read_metadata(path).num_rows for path in paths)
            table = datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True)
        else:
            table, rows = datasets.concatenate_datasets(list(map(datasets.Dataset.from_file, paths))), None
    except Exception as error:  # what pyarrow and datasets raise for damaged files
        raise PhotoError(f"{paths[0]}: cannot be read as Arrow or Parquet ({error})") from None
    return DatasetPhotos(table, paths[0], total=rows)


def id_of(path) -> str:
    """The path without its suffix, with forward slashes; bytes that are no UTF-8 are spelled out."""
    path = Path(path).with_suffix("").as_posix()
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class OnePhoto:
    total = 1

    def __init__(self, path):
        self.path, self.passed_over = path, PassedOver()

    def fetch_photos(self) -> Iterator[Photo]:
        yield Photo(self.path.stem, str(self.path), lambda: self.path)


class FolderPhotos:
    """Every photo under a folder, folder by folder, sorted; the id is the path below the folder without suffix."""

    def __init__(self, folder):
        self.folder, self.passed_over = Path(folder), PassedOver()

    @cached_property
    def total(self):
        return sum(is_photo_name(path.relative_to(self.folder)) for path in self._files())

    def fetch_photos(self) -> Iterator[Photo]:
        self.passed_over = PassedOver()
        for path in self._files():
            below = path.relative_to(self.folder)
            if is_photo_name(below):
                yield Photo(id_of(below), str(path), lambda path=path: path)
            elif is_photo_by_content(path):
                self.passed_over.add(path)

    def _files(self):
        for parent, folders, names in os.walk(self.folder, onerror=unreadable):
            folders.sort()
            yield from (Path(parent, name) for name in sorted(names))


def unreadable(error: OSError):
    raise PhotoError(f"{error.filename}: {error.strerror}")


class ListedPhotos:
    """Photos named in a file: one path per line (.txt), or `image_id` and `path` per line (.jsonl, .csv).

    Relative paths start at the list's folder. In a .txt the id is the path as written, without suffix.
    """

    def __init__(self, path):
        self.path, self.passed_over = Path(path), PassedOver()
        if self.total == 0:  # reads, and so checks, every line before any work is done
            raise PhotoError(
                f"{path}: an empty list; write one path per line (.txt) or image_id and path (.jsonl, .csv)"
            )

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
                        if is_apple_double(path):  # a list that a program made
                            continue
                        path = path if is_address(path) else self.path.parent / path  # refused when it is opened
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
        self.passed_over = PassedOver()

    @property
    def total(self):
        return round(self.seen * sum(self.sizes) / self.bytes_passed) if self.bytes_passed else None

    def fetch_photos(self) -> Iterator[Photo]:
        self.seen = self.bytes_passed = 0
        self.passed_over = PassedOver()
        for path, size, before in zip(self.paths, self.sizes, self._bytes_before(), strict=True):
            try:
                with tarfile.open(path) as archive:
                    while (member := archive.next()) is not None:
                        archive.members.clear()  # it would remember every one
                        if not member.isreg():
                            continue
                        if not is_photo_name(member.name):
                            if not is_apple_double(member.name) and photo_kind(archive.extractfile(member).read(HEAD)):
                                self.passed_over.add(f"{path}/{member.name}")
                        else:
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

        self.name, self.outside_files, self.passed_over = name, outside_files, PassedOver()
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
        for number, (image_id, path, fetch) in enumerate(self._rows_by_id()):
            if path and is_apple_double(path):
                continue
            image_id = f"{number:08d}" if image_id is None else str(image_id)
            name = f"{self.name} row {number}"
            yield Photo(image_id, name, lambda fetch=fetch, name=name: self.content(fetch(), name))

    def _rows_by_id(self):
        """(id or None, path or None, function that reads the image); of a mapped dataset no image is read for the first
        two."""
        from pyarrow import compute

        if not hasattr(self.rows, "__len__"):
            for row in self.rows:
                yield row.get(self.id_column), (row[self.image] or {}).get("path"), lambda row=row: row[self.image]
            return
        ids = self.rows.select_columns([self.id_column]) if self.id_column else None
        images = self.rows.select_columns([self.image]).with_format("arrow")  # mapped, not decoded
        for start in range(0, len(self.rows), 100):  # of shuffled rows that many are copied
            numbers = range(start, min(start + 100, len(self.rows)))
            image_ids = ids[start : numbers.stop][self.id_column] if ids else [None] * len(numbers)
            paths = compute.struct_field(images[start : numbers.stop][self.image], "path").to_pylist()
            for number, image_id, path in zip(numbers, image_ids, paths, strict=True):
                yield image_id, path, lambda number=number: self.rows[number][self.image]

    def content(self, image, name):
        if image is not None and image["bytes"] is not None:
            return image["bytes"]
        if image is None or image["path"] is None:
            raise PhotoError(f"{name}: no image")
        if not self.outside_files:
            raise PhotoError(f"{name}: names a file instead of holding it; Dataset.save_to_disk puts the photos in")
        return image["path"]
