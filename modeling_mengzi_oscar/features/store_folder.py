"""Region features on disk: one folder of memory-mapped safetensors shards, read by image id without scanning.

Oscar keeps 2,054 floats per region as base64 text in a TSV of 50 GB that has to be parsed for every training sample.
Here they are float16 rows in files that the operating system maps, so that a row costs one copy and all worker
processes share the pages. One folder holds (docs/feature_row.md has the details):

    store.json                      format version, dtype, fields and their sizes, region model, label texts
    <worker>-<number>.safetensors   a shard: the rows of some hundred images, written once, never changed
    index.safetensors               sorted hashes of all image ids -> shard and row; brought up to date now and then
                                    and when a writer closes. Shards that it lacks are merged in memory at opening.
    lock.<worker>                   only while a process writes: no other one may write under this worker's name

Each of them states its own CRC-32. Opening looks at what is small, a writer at the index before it adds to it, and
`verify` at every byte. Stores without checksums, from before there were any, are read as well.
"""

import hashlib
import json
import os
import re
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..checksums import NO_CHECKSUM, checksums
from ..files import Lock, open_whole, read_json, with_checksum, write_whole

FORMAT, FORMAT_VERSION = "mengzi-oscar region features", 1
# Field -> dtype on disk. The features' own dtype is the store's. Ids are returned as int64, as torch indexes with it.
REGION_FIELDS = {
    "boxes": torch.float32,  # (R, 4) x1 y1 x2 y2 in pixels of the original image
    "scores": torch.float32,  # (R,)
    "class_ids": torch.int32,  # (R,), 0 = none
    "attribute_ids": torch.int32,  # (R, A), 0 = none
    "attribute_scores": torch.float32,  # (R, A)
}
TAG_FIELDS = {"tag_ids": torch.int32, "tag_scores": torch.float32}  # (L,), tags of the whole image
IMAGE_FIELDS = {"original_size": torch.int32}  # (2,) height, width in pixels
_DTYPES = {"region_features": None, **REGION_FIELDS, **TAG_FIELDS, **IMAGE_FIELDS}
_EMPTY_INDEX = np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.int32)  # hashes, shards, rows
EXTRACTION_SETTINGS = ("flip", "precision")  # that extraction.json keeps
PRECISIONS = ("float32", "bfloat16", "int8")
SHARDS_WITHOUT_INDEX = 64  # that a writer leaves, or an eighth of its shards if that is more
SECONDS_PER_SHARD = 60  # after which a shard is written however few images it has: a kill costs no more
SHARD_NAME = re.compile(r"([A-Za-z0-9_]+)-(\d{6,})\.safetensors")
LEFTOVERS = r"(store\.json|extraction\.json|errors\.jsonl|[\w-]+\.safetensors)(\.\w+)?\.tmp"  # of killed processes
SAFETENSORS_DTYPES = {"F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8", "U64": "<u8", "U8": "|u1"}
LARGEST_ROW = 1 << 20  # numbers; what a damaged store.json may ask for
COPY_AGAIN = "copy the store again, or delete that file and index.safetensors and extract its images again"
INDEX_IS_DAMAGED = "is damaged: delete it, it is rebuilt from the shards"


class StoreFolder:
    """Read side. `store[image_id]` returns one image's arrays, each copied once out of the mapped file.

    Opening reads the index's header only; a shard is mapped when one of its images is first asked for. A store can be
    pickled into worker processes, which map the same files. Iteration gives the ids in the order they were written.

    Args:
        path: folder of the store.

    Raises:
        FileNotFoundError: there is no store at `path`.
        ValueError: one line: a shard is truncated or missing, a file is damaged, or two workers wrote the same id.
    """

    def __init__(self, path):
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            raise FileNotFoundError(f"{self.path} is not a region feature store: it holds no store.json")
        self.metadata = _read_metadata(self.path / "store.json")
        indexed, self._index = {}, _EMPTY_INDEX
        if (self.path / "index.safetensors").is_file():
            indexed, self._index = _read_index(self.path / "index.safetensors")
        # The folder is listed after the index was read: another process may add shards meanwhile, none goes away.
        sizes = self._shard_sizes()
        for name, size in indexed.items():
            if sizes.get(name) != size:
                found = f"has {sizes[name]} bytes" if name in sizes else "is missing"
                raise ValueError(f"{self.path / name} {found}, the index says {size}: {COPY_AGAIN}")
        self._sizes = {name: sizes[name] for name in [*indexed, *sorted(sizes.keys() - indexed.keys())]}
        self._names = list(self._sizes)
        self._shards = [None] * len(self._names)
        self._unindexed = len(self._names) - len(indexed)
        if self._unindexed:
            self._index = self._merged(self._index, first=len(indexed))

    @property
    def feature_dim(self):
        return self.metadata["fields"]["region_features"][0]

    @property
    def dtype(self):
        return self.metadata["dtype"]

    @property
    def fields(self):
        return tuple(self.metadata["fields"])

    @property
    def region_model(self):
        return self.metadata["region_model"]

    @property
    def labels(self):
        """Text of every class or tag id, or None where only the region model knows it."""
        return self.metadata["labels"]

    @property
    def precision(self):
        """What the region model computed in, "float32" or "bfloat16"; None where the store does not say."""
        return self.metadata["precision"]

    def __getitem__(self, image_id):
        """{"region_features": (R, D) in the store's dtype, and the store's other fields}, numpy arrays of your own."""
        shard, row = self._place(image_id)
        return shard.regions(row)

    def num_regions(self, image_id) -> int:
        """How many regions an image has, without reading them."""
        shard, row = self._place(image_id)
        start, end = shard.arrays["region_offsets"][row : row + 2]
        return int(end - start)

    def _place(self, image_id):
        place = self._find(image_id)
        if place is None:
            raise KeyError(f"no image {image_id!r} among the {len(self)} of the region feature store {self.path}")
        return self._shard(place[0]), place[1]

    def __contains__(self, image_id):
        return self._find(image_id) is not None

    def __len__(self):
        return len(self._index[0])

    def __iter__(self):
        for number in sorted(range(len(self._names)), key=self._names.__getitem__):
            shard = self._shard(number)
            for row in range(len(shard)):
                yield shard.image_id(row)

    def __repr__(self):
        return f"{type(self).__name__}({str(self.path)!r}, {len(self)} images, {self.feature_dim} x {self.dtype})"

    def __reduce__(self):
        return type(self), (self.path,)

    def verify(self):
        """Reads every byte of every file. Returns the number of images.

        Warns where files come without checksums, from before there were any: of those, what they hold is looked at.

        Raises:
            ValueError: names the file that is damaged, and the row where it can tell.
        """
        if (self.path / "extraction.json").is_file():
            read_json(self.path / "extraction.json", names=EXTRACTION_SETTINGS)
        unsure = []
        if (self.path / "index.safetensors").is_file() and not self.verify_index():
            unsure.append("index.safetensors")
        for number, name in enumerate(self._names):
            self._shard(number).verify()
            if not self._intact(name, COPY_AGAIN):
                unsure.append(name)
        found = self._merged(_EMPTY_INDEX, first=0)
        if not all(map(np.array_equal, found, self._index)):
            raise ValueError(f"{self.path / 'index.safetensors'} does not belong to the shards: delete it")
        if unsure:
            warnings.warn(
                f"{self.path}: no checksums in {len(unsure)} files ({unsure[0]} is the first), which were written "
                "before there were any: a number that was changed in them cannot be seen",
                stacklevel=2,
            )
        return len(self)

    def verify_index(self) -> bool:
        """Reads the index, 16 bytes per image. False where it states no checksum; ValueError where it is damaged."""
        return self._intact("index.safetensors", "delete it, it is rebuilt from the shards")

    def _intact(self, name, remedy) -> bool:
        with self._open_file(name) as file:
            stated, found = checksums(file)
        if stated not in (None, found):
            raise ValueError(f"{self.path / name} is damaged, its bytes do not match the checksum it states: {remedy}")
        return stated is not None

    def _open_file(self, name):
        return open(self.path / name, "rb")

    def _find(self, image_id):
        """(shard number, row) or None. Equal hashes of different ids are told apart by the ids themselves."""
        key = np.uint64(hash_id(image_id))
        hashes, shards, rows = self._index
        position = int(hashes.searchsorted(key))
        while position < len(hashes) and hashes[position] == key:
            shard, row = int(shards[position]), int(rows[position])
            if not (0 <= shard < len(self._names) and 0 <= row < len(self._shard(shard))):
                raise ValueError(f"{self.path / 'index.safetensors'} {INDEX_IS_DAMAGED}")
            found = self._shard(shard).image_id(row)
            if found == image_id:
                return shard, row
            if hash_id(found) != key:
                raise ValueError(
                    f"{self.path}: the index and {self._names[shard]} (row {row}) disagree, one is damaged: `verify()` "
                    "says which"
                )
            position += 1
        return None

    def _shard(self, number):
        if self._shards[number] is None:
            name = self._names[number]
            self._shards[number] = _Shard(self.path / name, self._shard_arrays(name), self.metadata)
        return self._shards[number]

    def _shard_sizes(self):
        """{name: bytes} of the shards that are there."""
        return {file.name: file.stat().st_size for file in os.scandir(self.path) if SHARD_NAME.fullmatch(file.name)}

    def _shard_arrays(self, name):
        return map_arrays(self.path / name, {"format_version"}, COPY_AGAIN)[1]

    def _merged(self, index, first):
        """The index with the shards from number `first` on; ids that were written twice are an error."""
        new = [self._shard(number) for number in range(first, len(self._names))]
        if not new:
            return index
        columns = (
            np.concatenate([shard.arrays["image_id_hashes"] for shard in new]),
            np.concatenate([np.full(len(shard), first + i, np.int32) for i, shard in enumerate(new)]),
            np.concatenate([np.arange(len(shard), dtype=np.int32) for shard in new]),
        )
        order = np.argsort(columns[0], kind="stable")
        places = index[0].searchsorted(columns[0][order], side="right")
        hashes, shards, rows = tuple(
            np.insert(known, places, column[order]) for known, column in zip(index, columns, strict=True)
        )
        for position in np.flatnonzero(hashes[1:] == hashes[:-1]):
            places = [(int(shards[p]), int(rows[p])) for p in (position, position + 1)]
            ids = [self._shard(shard).image_id(row) for shard, row in places]
            if ids[0] == ids[1]:
                files = " and ".join(f"{self._names[shard]} (row {row})" for shard, row in places)
                raise ValueError(
                    f"{self.path} holds image {ids[0]!r} twice, in {files}: delete one of the files and "
                    "index.safetensors, then extract what is missing with each image given to one worker only"
                )
        return hashes, shards, rows

    def _check_for_writing(self):
        """What is added to a damaged index, or from damaged shards, would be there twice or never found."""
        if (self.path / "index.safetensors").is_file():
            self.verify_index()
        for number in range(len(self._names) - self._unindexed, len(self._names)):
            self._shard(number).verify_ids()

    def _save_index(self, worker):
        self._check_for_writing()
        names, (hashes, shards, rows) = sorted(self._names), self._index
        places = {name: place for place, name in enumerate(names)}  # in whatever order the processes wrote
        places = np.array([places[name] for name in self._names], np.int32)
        arrays = {"hashes": hashes, "shards": places[shards], "rows": rows}
        sizes = {name: self._sizes[name] for name in names}
        metadata = {"format_version": str(FORMAT_VERSION), "shards": json.dumps(sizes)}
        with open_whole(self.path / "index.safetensors", worker) as file:
            write_arrays(file, arrays, metadata)


class RegionFeatureWriter:
    """Write side; use it as a context manager. What was added is on disk once its shard is full or a minute old, or the
    writer closes.

    Reopened on an existing store it continues after its last complete shard: ask `image_id in writer` what is there.
    Shards are written to a temporary name, flushed to the disk and renamed, so a killed writer loses at most
    `images_per_shard` images, or those of a minute, and never leaves half a shard. When an exception leaves the `with`
    block, the images added so far are still written.

    Args:
        path: folder of the store, made if it does not exist.
        dtype: "float16" or "float32", of `region_features`.
        images_per_shard: images that are kept in memory and written together; 50 regions of 2,054 float16 are 0.2 MB.
        worker: prefix of the shards' names. Processes that write one store at once need one each, and the images
            have to be divided among them: ids written twice are an error when the store is opened. A name that another
            living process has is refused.
        region_model: Hub id with revision, or folder, of the model that the features come from.
        labels: list of the texts of class or tag ids, `labels[0]` standing for none; for features that were not made
            by a region model of this library.
        precision: "float32", "bfloat16" or "int8", what the region model computed in, where that is known.
    """

    def __init__(
        self,
        path,
        dtype="float16",
        images_per_shard=512,
        worker="00000",
        region_model=None,
        labels=None,
        precision=None,
    ):
        if dtype not in ("float16", "float32"):
            raise ValueError(f"a store's dtype is 'float16' or 'float32', not {dtype!r}")
        if precision not in (None, *PRECISIONS):
            raise ValueError(f"precision is {precision!r}; a region model computes in 'float32', 'bfloat16' or 'int8'")
        if not re.fullmatch(r"[A-Za-z0-9_]+", worker):
            raise ValueError(f"a worker's name consists of letters, digits and _, which {worker!r} does not")
        self.path, self.dtype, self.images_per_shard = Path(path), dtype, images_per_shard
        self.worker, self.region_model, self.labels, self.precision = worker, region_model, labels, precision
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.path / f"lock.{worker}", f"{self.path} as worker {worker}")
        try:
            for leftover in self.path.glob(f"*.{worker}.tmp"):  # of this worker's killed predecessor
                leftover.unlink()
            self._store = StoreFolder(self.path) if (self.path / "store.json").is_file() else None
            self._fields = None  # {name: shape of one row}, from the first image on
            if self._store:
                self._store._check_for_writing()
                self.region_model = region_model or self._store.region_model
                self.labels = labels or self._store.labels
                if precision is None or self._store.precision is None:
                    self.precision = self._store.precision
                self._fields = self._store.metadata["fields"]
                self._check_metadata()
            numbers = [int(m[2]) for m in map(SHARD_NAME.fullmatch, os.listdir(self.path)) if m and m[1] == worker]
            self._shard_number = max(numbers, default=-1) + 1
            self._shards_since_index = 0
            self._added = set()  # ids that `_store` does not know yet
            self._pending = {}  # image id -> arrays of the images of the next shard
            self._pending_since = 0.0
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __contains__(self, image_id):
        return image_id in self._added or (self._store is not None and image_id in self._store)

    def add(self, image_id, regions):
        """Add one image.

        Args:
            image_id: any string.
            regions: dict of numpy arrays or torch tensors, one image of a `RegionModelOutput` without padding:
                `region_features` (R, D) and any of the fields at the top of this file; None values are left out.
                All images of a store have the same fields. R may differ, and may be 0.

        Raises:
            ValueError: the id is there already, a shape or the set of fields does not fit, or a number is NaN or
                infinite (also when it is too large for float16).
        """
        if image_id in self:
            raise ValueError(f"image {image_id!r} is in the store {self.path} already")
        arrays = _checked_arrays(image_id, regions, self.dtype)
        fields = {name: list(array.shape[1:]) for name, array in arrays.items()}
        if self._fields is None:
            self._fields = fields
        if fields != self._fields:
            raise ValueError(f"image {image_id!r} has the fields {fields}, the store {self.path} has {self._fields}")
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending[image_id] = arrays
        self._added.add(image_id)  # last: if it is cut short here, it may be added again
        full = len(self._pending) == self.images_per_shard
        if full or time.monotonic() - self._pending_since > SECONDS_PER_SHARD:
            self.flush()

    def flush(self):
        """Write the images added since the last shard as a shard of their own, however few they are."""
        if not self._pending:
            return
        if not (self.path / "store.json").is_file():
            write_whole(self.path / "store.json", with_checksum(self._metadata()), self.worker)
        self._check_metadata()  # another worker may have been first
        images = list(self._pending.values())
        ids = [image_id.encode() for image_id in self._pending]
        tensors = {name: np.concatenate([image[name] for image in images]) for name in self._fields}
        tensors["image_id_hashes"] = np.array([hash_id(image_id) for image_id in self._pending], np.uint64)
        tensors["image_id_bytes"] = np.frombuffer(b"".join(ids), np.uint8)
        tensors["image_id_offsets"] = _offsets(map(len, ids))
        tensors["region_offsets"] = _offsets(len(image["region_features"]) for image in images)
        for name in self._fields.keys() & TAG_FIELDS.keys():
            tensors["tag_offsets"] = _offsets(len(image[name]) for image in images)
        final = self.path / f"{self.worker}-{self._shard_number:06d}.safetensors"
        if final.exists():
            raise FileExistsError(f"another process has written {final}: give each process its own worker= name")
        try:
            with open_whole(final, self.worker) as file:
                write_arrays(file, tensors, {"format_version": str(FORMAT_VERSION)})
        finally:
            if final.exists():  # also where Ctrl-C came just then: `close` writes nothing twice
                self._shard_number += 1
                self._pending = {}
        # Now and then, so that a store whose writer was killed opens as fast, for few bytes beside the shards.
        self._shards_since_index += 1
        if self._shards_since_index > max(SHARDS_WITHOUT_INDEX, self._shard_number // 8):
            self.update_index()

    def update_index(self):
        """Bring the index up to date; what was added then costs no memory any more."""
        self._shards_since_index = 0
        while (self.path / "store.json").is_file() and (store := StoreFolder(self.path))._unindexed:
            store._save_index(self.worker)  # once more if another worker wrote meanwhile
            self._store, self._added = store, set(self._pending)

    def close(self):
        """Write what is pending, then bring the index up to date."""
        try:
            self.flush()
            self.update_index()
        finally:
            self._lock.release()

    def _metadata(self):
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype,
            "fields": self._fields,
            "region_model": self.region_model,
            "labels": self.labels,
            "precision": self.precision,
        }

    def _check_metadata(self):
        there = _read_metadata(self.path / "store.json")
        for key, value in self._metadata().items():
            if there[key] != value:
                raise ValueError(f"the store {self.path} has {key} {there[key]!r:.300}, this writer {value!r:.300}")


class _Shard:
    """One safetensors file: fields concatenated over the images, and where each image starts."""

    def __init__(self, path, arrays, metadata):
        self.path, self.arrays, self.fields = path, arrays, metadata["fields"]
        fields = {name: list(array.shape[1:]) for name, array in self.arrays.items() if name in _DTYPES}
        dtype = str(self.arrays["region_features"].dtype) if "region_features" in fields else None
        if fields != self.fields or dtype != metadata["dtype"]:
            raise ValueError(f"{path} has {fields} in {dtype}, its store {self.fields} in {metadata['dtype']}")
        wanted = {"image_id_hashes": "uint64", "image_id_bytes": "uint8", "image_id_offsets": "int64"}
        wanted |= {"region_offsets": "int64"} | ({"tag_offsets": "int64"} if fields.keys() & TAG_FIELDS.keys() else {})
        found = {name: str(array.dtype) for name, array in self.arrays.items() if name not in _DTYPES}
        if found != wanted:
            raise ValueError(f"{path} is damaged, it holds {found} instead of {wanted}: {COPY_AGAIN}")

    def __len__(self):
        return len(self.arrays["image_id_hashes"])

    def image_id(self, row):
        start, end = self.arrays["image_id_offsets"][row : row + 2]
        return self.arrays["image_id_bytes"][start:end].tobytes().decode()

    def regions(self, row):
        regions = {}
        for name in self.fields:
            start, end = row, row + 1
            if name not in IMAGE_FIELDS:
                start, end = self.arrays["tag_offsets" if name in TAG_FIELDS else "region_offsets"][row : row + 2]
            values = self.arrays[name][start:end]
            values = values.astype(np.int64 if values.dtype == np.int32 else values.dtype)  # the one copy
            regions[name] = values[0] if name in IMAGE_FIELDS else values
        return regions

    def verify_ids(self):
        for row in range(len(self)):
            try:
                whole = hash_id(self.image_id(row)) == self.arrays["image_id_hashes"][row]
            except (ValueError, TypeError):  # broken UTF-8, offsets that lead nowhere
                whole = False
            if not whole:
                raise ValueError(f"{self.path} row {row} is damaged, id and hash do not agree: {COPY_AGAIN}")

    def verify(self):
        self.verify_ids()
        for row in range(len(self)):
            try:
                regions = self.regions(row)
            except (IndexError, ValueError):
                raise ValueError(f"{self.path} row {row} is damaged, its offsets are invalid: {COPY_AGAIN}") from None
            for name, values in regions.items():
                if not np.isfinite(values).all():
                    image_id = self.image_id(row)
                    raise ValueError(f"{self.path} row {row} (image {image_id!r}): {name} hold NaN or infinity")


def hash_id(image_id):
    """64-bit hash of an image id, the same on every machine and in every process."""
    if not isinstance(image_id, str):
        raise TypeError(f"image ids are strings, {image_id!r} is {type(image_id).__name__}")
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little")


def write_arrays(file, arrays, metadata):
    """A safetensors file whose metadata begin with its checksum; equal content has equal bytes.

    Args:
        file: as `open_whole` gives it. arrays: {name: numpy array}. metadata: {name: text}.
    """
    dtypes = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    header, end = {"__metadata__": {"crc32": NO_CHECKSUM} | metadata}, 0
    arrays = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))  # so that numbers are aligned
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": dtypes[array.dtype.str], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts = [len(text).to_bytes(8, "little") + text, *map(np.ascontiguousarray, arrays.values())]
    checksum = 0
    for part in parts:
        part = part if isinstance(part, bytes) else part.reshape(-1).view(np.uint8)
        file.write(part)
        checksum = zlib.crc32(part, checksum)
    file.seek(parts[0].index(NO_CHECKSUM.encode()))
    file.write(b"%08x" % checksum)


def map_arrays(path, names, remedy):
    """Metadata and memory-mapped arrays of a safetensors file; no file descriptor stays open.

    Args:
        names: of its metadata, beside the checksum.
        remedy: what to do where the file is damaged, for the message.
    """
    try:
        file = safe_open(path, "pt")  # "pt" maps the tensors; "np" would copy each one whole
        metadata = file.metadata() or {}
        arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, RuntimeError) as error:  # the latter two: a dtype that torch or numpy lacks
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split()):.100}): {remedy}") from None
    if metadata.keys() - {"crc32"} != names or metadata["format_version"] != str(FORMAT_VERSION):
        raise ValueError(f"{path} is damaged (metadata {metadata!r:.100}): {remedy}")
    return metadata, arrays


def _read_index(path):
    """{name: bytes} of the shards that an index knows, and its three columns."""
    metadata, arrays = map_arrays(path, {"format_version", "shards"}, "delete it, it is rebuilt from the shards")
    try:
        sizes = json.loads(metadata["shards"])
        names = all(SHARD_NAME.fullmatch(name) and isinstance(size, int) for name, size in sizes.items())
    except (ValueError, AttributeError, RecursionError):
        names = False
    if not names or arrays.keys() != {"hashes", "shards", "rows"}:
        raise ValueError(f"{path} {INDEX_IS_DAMAGED}")
    index = arrays["hashes"], arrays["shards"], arrays["rows"]
    length = index[0].size
    if [(column.dtype, column.shape) for column in index] != [(empty.dtype, (length,)) for empty in _EMPTY_INDEX]:
        raise ValueError(f"{path} {INDEX_IS_DAMAGED}")
    return sizes, index


def _read_metadata(path):
    """What store.json says; ValueError with file and field where it cannot be so."""
    version = read_json(path, whole=False).get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: format version {version!r:.60}, not {FORMAT_VERSION}")
    metadata = {"precision": None} | read_json(path)  # stores of before know none
    fields, labels = metadata.get("fields"), metadata.get("labels")
    fits = {
        "format": metadata.get("format") == FORMAT,
        "format_version": type(metadata["format_version"]) is int,
        "dtype": metadata.get("dtype") in ("float16", "float32"),
        "fields": isinstance(fields, dict)
        and "region_features" in fields
        and all(_is_field(*item) for item in fields.items()),
        "region_model": isinstance(metadata.get("region_model"), str | None),
        "precision": metadata["precision"] in (None, *PRECISIONS),
        "labels": labels is None or (isinstance(labels, list) and all(isinstance(text, str) for text in labels)),
    }
    wrong = [name for name, fit in fits.items() if not fit or name not in metadata]
    wrong += sorted(metadata.keys() - fits.keys())
    if wrong:
        value = metadata.get(wrong[0], "missing")
        raise ValueError(f"{path}: damaged, {wrong[0]} is {value!r:.60}, which no store has; copy it again")
    return metadata


def _is_field(name, shape):
    """Whether a store may have a field of this shape behind the first dimension."""
    if name not in _DTYPES or not isinstance(shape, list) or not all(type(size) is int for size in shape):
        return False
    fixed = {"boxes": [4], "original_size": [2]}
    free = ("region_features", "attribute_ids", "attribute_scores")
    return len(shape) == 1 and 0 <= shape[0] <= LARGEST_ROW if name in free else shape == fixed.get(name, [])


def _offsets(lengths):
    return np.cumsum([0, *lengths], dtype=np.int64)


def _checked_arrays(image_id, regions, dtype):
    """Copies of one image's fields in the dtypes of the disk, in the order of `_DTYPES`."""
    given = {name: value for name, value in regions.items() if value is not None}
    if unknown := given.keys() - _DTYPES.keys():
        raise ValueError(f"image {image_id!r}: {sorted(unknown)} are no fields of a store; it takes {list(_DTYPES)}")
    if "region_features" not in given:
        raise ValueError(f"image {image_id!r} has no region_features")
    arrays = {}
    for name in sorted(given, key=list(_DTYPES).index):
        value = given[name]
        value = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        value = value.to(_DTYPES[name] or getattr(torch, dtype), copy=True)  # many times faster than numpy's rounding
        if not np.isfinite(value.float().numpy()).all():
            limit = ", or a number beyond float16 (use dtype='float32')" if name == "region_features" else ""
            raise ValueError(f"{name} of image {image_id!r} hold NaN or infinity{limit}")
        arrays[name] = value.numpy()
    shapes = {name: array.shape for name, array in arrays.items()}
    regions = shapes["region_features"][:1]  # (R,)
    fits = {
        "region_features": len(shapes["region_features"]) == 2,
        "boxes": shapes.get("boxes") == (*regions, 4),
        "scores": shapes.get("scores") == regions,
        "class_ids": shapes.get("class_ids") == regions,
        "attribute_ids": len(shapes.get("attribute_ids", ())) == 2 and shapes["attribute_ids"][:1] == regions,
        "attribute_scores": shapes.get("attribute_scores") == shapes.get("attribute_ids"),
        "tag_ids": len(shapes.get("tag_ids", ())) == 1,
        "tag_scores": shapes.get("tag_scores") == shapes.get("tag_ids"),
        "original_size": shapes.get("original_size") == (2,),
    }
    if not all(fits[name] for name in arrays):
        raise ValueError(f"the shapes of image {image_id!r} do not belong together: {shapes}")
    if "original_size" in arrays:
        arrays["original_size"] = arrays["original_size"][None]
    return arrays
