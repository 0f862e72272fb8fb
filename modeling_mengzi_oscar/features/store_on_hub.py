"""Region feature stores on the Hub: the folder `features` of a dataset repo, beside the captions or questions.

    builder.as_dataset().push_to_hub("you/flickr8k-cn")                   # data/*.parquet and README.md
    RegionFeatureStore.open("stores/flickr8k").push_to_hub("you/flickr8k-cn")

    load_dataset("you/flickr8k-cn")                               # captions; README.md names the Parquet files
    RegionFeatureStore.open("you/flickr8k-cn")                    # downloaded once into the Hub's cache
    RegionFeatureStore.open("you/flickr8k-cn", streaming=True)    # rows are read over HTTP as they are asked for

Opened whole it is a store like any other, whose files lie in the cache.
"""

import json
import re
from pathlib import Path

import numpy as np
from huggingface_hub import DatasetCard, HfApi, HfFileSystem, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError

from .store_folder import SAFETENSORS_DTYPES, SHARD_NAME, StoreFolder

FOLDER = "features"
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
READ_AHEAD = 1 << 20  # bytes of a streamed shard: some rows when they are read one after the other, little else wasted
_CARD = """---
tags:
- region-features
configs:  # so that load_dataset does not take the features for captions
- config_name: default
  data_files: data/*.parquet
---

# {name}

Region features for Mengzi-Oscar, in `features/`:

```python
from modeling_mengzi_oscar import RegionFeatureStore

store = RegionFeatureStore.open("{repo_id}")  # streaming=True reads single rows over HTTP
```
"""


def download(name):
    """Folder of a store in the Hub's cache; what is there already is not sent again.

    Args:
        name: `org/name` or `org/name@revision` of a dataset repo.

    Raises:
        FileNotFoundError: there is no such repo or revision, it holds no store, or the Hub is out of reach.
    """
    repo_id, revision = _parts(name)
    try:
        snapshot = snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=f"{FOLDER}/*")
    except (OSError, HTTPError, HFValidationError) as error:
        raise FileNotFoundError(_no_store(name, error)) from None
    if not (Path(snapshot) / FOLDER / "store.json").is_file():
        raise FileNotFoundError(f"the dataset repo {name} of the Hub holds no {FOLDER}/store.json")
    return Path(snapshot) / FOLDER


def push(store, repo_id, private=None):
    """Upload a store as the folder `features` of a dataset repo, made if it is not there; returns the commit's address.

    The files arrive in one commit. Shards never change, so what an upload that broke off had sent already is not sent
    again. Shards of an older store under other names are removed.

    Raises:
        ConnectionError: one line: no token, no right, no connection.
    """
    if store._unindexed:
        store._save_index("push")
    try:
        api = HfApi(library_name="mengzi-oscar")
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        if not api.file_exists(repo_id, "README.md", repo_type="dataset"):
            card = DatasetCard(_CARD.format(name=repo_id.split("/")[-1], repo_id=repo_id))
            card.push_to_hub(repo_id, repo_type="dataset")
        there = api.list_repo_files(repo_id, repo_type="dataset")
        gone = {file.removeprefix(f"{FOLDER}/") for file in there if file.startswith(f"{FOLDER}/")} - set(store._names)
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=store.path,
            path_in_repo=FOLDER,
            allow_patterns=["store.json", "index.safetensors", *store._names],
            delete_patterns=[name for name in gone if SHARD_NAME.fullmatch(name)],
            commit_message=f"Upload the region features of {len(store):,} images",
        )
    except (OSError, HTTPError, HFValidationError, RuntimeError) as error:  # RuntimeError: a file broke off
        raise ConnectionError(f"{repo_id}: the Hub rejected it ({_one_line(error)})") from None
    return commit.commit_url


class StreamedRegionFeatureStore(StoreFolder):
    """A store on the Hub of which `store.json` and the index are downloaded, and single rows read by HTTP ranges.

    The first row of a shard costs its header and everything but the features, some percent of it; a further row costs
    one read of its features, or none where the row before it was the last one asked for. Nothing is kept on the disk.
    """

    def __init__(self, name):
        repo_id, revision = _parts(name)
        small = [f"{FOLDER}/store.json", f"{FOLDER}/index.safetensors"]
        try:
            commit = HfApi().dataset_info(repo_id, revision=revision).sha
            self.name, self._folder = f"{repo_id}@{commit}", f"datasets/{repo_id}@{commit}/{FOLDER}"
            self._files = HfFileSystem()
            self._listing = self._files.ls(self._folder, detail=True)
            snapshot = snapshot_download(repo_id, repo_type="dataset", revision=commit, allow_patterns=small)
        except (OSError, HTTPError, HFValidationError) as error:
            raise FileNotFoundError(_no_store(name, error)) from None
        super().__init__(Path(snapshot) / FOLDER)

    def __reduce__(self):
        return StreamedRegionFeatureStore, (self.name,)

    def _shard_sizes(self):
        files = {Path(entry["name"]).name: entry["size"] for entry in self._listing if entry["type"] == "file"}
        return {name: size for name, size in files.items() if SHARD_NAME.fullmatch(name)}

    def _shard_arrays(self, name):
        file = self._files.open(f"{self._folder}/{name}", "rb", block_size=READ_AHEAD, cache_type="readahead")
        return _streamed_arrays(file)

    def _open_file(self, name):
        return self._files.open(f"{self._folder}/{name}", "rb")


def _streamed_arrays(file):
    """Arrays of a safetensors file that is read by ranges: all but the features now, those row by row."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    first, last = header["region_features"]["data_offsets"]
    before = file.read(first)
    file.seek(8 + length + last)
    after, arrays = file.read(), {}
    for name, tensor in header.items():
        start, end = tensor["data_offsets"]
        dtype, shape = np.dtype(SAFETENSORS_DTYPES[tensor["dtype"]]), tensor["shape"]
        if name == "region_features":
            arrays[name] = _StreamedRows(file, 8 + length + start, dtype, shape)
        else:
            content = before[start:end] if end <= first else after[start - last : end - last]
            arrays[name] = np.frombuffer(content, dtype).reshape(shape)
    return arrays


class _StreamedRows:
    """A matrix in a file: `rows[start:end]` reads them."""

    def __init__(self, file, offset, dtype, shape):
        self.file, self.offset, self.dtype, self.shape = file, offset, dtype, tuple(shape)

    def __getitem__(self, rows):
        start, end, _ = rows.indices(self.shape[0])
        bytes_per_row = self.shape[1] * self.dtype.itemsize
        self.file.seek(self.offset + start * bytes_per_row)
        content = self.file.read((end - start) * bytes_per_row)
        return np.frombuffer(content, self.dtype).reshape(end - start, self.shape[1])


def _parts(name):
    match = HUB_ID.fullmatch(name)
    return match["repo"], match["revision"]


def _no_store(name, error):
    return f"{name} is neither a folder here nor a dataset repo that the Hub gives ({_one_line(error)})"


def _one_line(error):
    return " ".join(str(error).split())[:200]
