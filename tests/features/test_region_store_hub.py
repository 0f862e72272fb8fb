"""Stores on the Hub, beside their captions: pushed, opened by id, streamed; against a server on the loopback."""

import huggingface_hub
import pytest
from conftest import REPOSITORY
from hub_server import HubServer
from packaging.version import Version
from test_hub import answer, run_python
from test_region_store import name_of, regions_of, write

from modeling_mengzi_oscar.features.store import RegionFeatureStore

REPO = "user/flickr8k-cn"
DATASET = f"datasets/{REPO}"  # its name on the server
IMAGES = 30
needs_hub_2 = pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("2"),
    reason="huggingface_hub 1 sends model cards to huggingface.co to be checked, whatever HF_ENDPOINT says",
)

SCRIPT = """
import json, os, pickle, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/features"]
import datasets
from datasets import load_dataset
from modeling_mengzi_oscar.features.store import RegionFeatureStore
from test_region_store import assert_holds, name_of, regions_of
repo, arguments = sys.argv[2], sys.argv[3:]
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def online(hub, tmp_path):
    """Environment of a process that knows this server as the Hub and has an empty cache."""
    (tmp_path / "home").mkdir()
    return {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}


@pytest.fixture
def store(tmp_path):
    """Folder of a store of 8 shards."""
    write(tmp_path / "store", range(IMAGES), images_per_shard=4)
    return tmp_path / "store"


def put(hub, folder):
    """A repo that has only this store; returns the commit."""
    hub.repos[DATASET] = {"private": False, "commits": [], "branches": {}}
    return hub.commit(DATASET, {f"features/{path.name}": path.read_bytes() for path in folder.iterdir()})


def features_on(hub, repo=DATASET):
    """Files of the store in a repo."""
    return {name.split("/")[1] for name in hub.tree(repo, "main")[1] if name.startswith("features/")}


def run(script, *arguments, **environment):
    """The JSON that a process prints."""
    environment |= {"PYTHONPATH": str(REPOSITORY)}
    return answer(run_python(SCRIPT + script, REPOSITORY / "tests", REPO, *arguments, **environment))


BESIDE_CAPTIONS = """
captions = datasets.DatasetDict({"train": datasets.Dataset.from_dict(
    {"image_id": [name_of(number) for number in range(30)], "captions": [["一只猫。"]] * 30})})
steps = [captions.push_to_hub, RegionFeatureStore.open(arguments[0]).push_to_hub]
for repo, order in (("user/captions-first", steps), ("user/features-first", steps[::-1])):
    for step in order:
        step(repo, private=True)
    store = RegionFeatureStore.open(repo)
    assert_holds(store, range(30))
    rows = load_dataset(repo, split="train")
    assert rows.column_names == ["image_id", "captions"]
    assert [row["image_id"] for row in rows if row["image_id"] in store] == [name_of(number) for number in range(30)]
    assert [row["image_id"] for row in load_dataset(repo, split="train", streaming=True)] == rows["image_id"][:]
print(json.dumps(str(store.path)))
"""


@needs_hub_2
def test_a_store_lies_beside_its_captions(hub, online, store, tmp_path):
    path = run(BESIDE_CAPTIONS, store, **online)
    assert path.startswith(str(tmp_path / "home"))
    for repo in ("datasets/user/captions-first", "datasets/user/features-first"):
        assert features_on(hub, repo) == {path.name for path in store.iterdir()}
        assert hub.repos[repo]["private"]
    offline = online | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    script = "assert_holds(RegionFeatureStore.open('user/features-first'), range(30)); print(1)"
    assert run(script, **offline) == 1


STREAM = """
store = RegionFeatureStore.open(repo, streaming=True)
assert len(store) == 30 and name_of(7) in store and "nobody" not in store
for number in (7, 29):
    expected = regions_of(number, int(arguments[0]))
    for field, values in store[name_of(number)].items():
        assert (values == expected[field]).all() and values.dtype == expected[field].dtype, field
print(json.dumps([shard is not None for shard in store._shards]))
"""


def test_streaming_reads_what_is_asked_for(hub, online, tmp_path):
    """With rows larger than what is read ahead: single rows come over, and only the index is kept on the disk."""
    dim = 600_000
    with RegionFeatureStore.writer(tmp_path / "store", images_per_shard=4) as writer:
        for number in range(IMAGES):
            writer.add(name_of(number), regions_of(number, dim))
    put(hub, tmp_path / "store")
    opened = run(STREAM, dim, **online)
    assert opened == [number in (1, 7) for number in range(8)]
    features = sum(regions_of(number, dim)["region_features"].nbytes for number in (7, 29))
    whole = sum(map(len, hub.tree(DATASET, "main")[1].values()))
    assert features < hub.sent < features + 6 * (1 << 20) < whole / 4
    kept = sum(path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file())
    assert kept < 100_000


STREAM_ALL = """
from torch.utils.data import DataLoader
store = RegionFeatureStore.open(repo, streaming=True)
assert_holds(store, range(30))
assert_holds(pickle.loads(pickle.dumps(store)), range(30))
class Rows:
    def __len__(self):
        return 30
    def __getitem__(self, number):
        return store[name_of(number)]["region_features"]
loader = DataLoader(Rows(), num_workers=2, collate_fn=list, multiprocessing_context="fork")
for number, [features] in enumerate(loader):
    assert (features == regions_of(number)["region_features"]).all()
print(1)
"""


def test_a_whole_store_is_streamed_also_by_workers(hub, online, store, tmp_path):
    (store / "index.safetensors").unlink()  # its writer was killed: the ids are read from the shards
    put(hub, store)
    assert run(STREAM_ALL, **online) == 1
    assert not list((tmp_path / "home").rglob("00000-*"))


PUSH_TWICE = """
store = RegionFeatureStore.open(arguments[0])
try:
    store.push_to_hub(repo)
except ConnectionError as error:
    message = str(error)
address = store.push_to_hub(repo)
first = address.split("/")[-1]
RegionFeatureStore.open(arguments[1]).push_to_hub(repo)
assert_holds(RegionFeatureStore.open(repo), range(5))
for streaming in (False, True):
    assert_holds(RegionFeatureStore.open(f"{repo}@{first}", streaming=streaming), range(30))
    assert_holds(RegionFeatureStore.open(repo, revision=first, streaming=streaming), range(30))
print(json.dumps([message, address]))
"""


@needs_hub_2
def test_an_upload_that_broke_off_goes_on(hub, online, store, tmp_path):
    """The second attempt sends only what is missing; another store takes the place of the first."""
    write(tmp_path / "other", range(5), worker="other")
    (store / "index.safetensors").unlink()  # its writer was killed
    hub.breaks_after = 3
    message, address = run(PUSH_TWICE, store, tmp_path / "other", **online)
    assert message.startswith("user/flickr8k-cn: the Hub rejected it (")
    sent = [request.split()[1].rpartition("/")[2] for request in hub.requests if request.startswith("PUT /lfs/")]
    assert [sent.count(oid) for oid in list(hub.lfs_files)[:3]] == [1, 1, 1]  # there before the refusal: not sent again
    assert len(sent) > len(hub.lfs_files)  # one was refused
    assert address == f"{hub.url}/{DATASET}/commit/{hub.repos[DATASET]['commits'][-2][0]}"
    assert features_on(hub) == {"store.json", "index.safetensors", "other-000000.safetensors"}


NOT_THERE = """
errors = []
for name in ("user/nobody", "user/captions", "user/flickr8k-cn@no-such-branch", "user", "no/such/folder"):
    for streaming in (False, True):
        try:
            RegionFeatureStore.open(name, streaming=streaming)
        except FileNotFoundError as error:
            errors.append(str(error))
print(json.dumps(errors))
"""


def test_what_is_not_on_the_hub_is_said_in_one_line(hub, online, store):
    put(hub, store)
    hub.repos["datasets/user/captions"] = {"private": False, "commits": [], "branches": {}}
    hub.commit("datasets/user/captions", {"README.md": b"# Captions"})
    errors = run(NOT_THERE, **online)
    assert not [error for error in errors if "\n" in error]
    neither = " is neither a folder here nor a dataset repo that the Hub gives ("
    assert [error.partition(neither)[0] for error in errors] == [
        *["user/nobody"] * 2,
        "the dataset repo user/captions of the Hub holds no features/store.json",
        "user/captions",
        *["user/flickr8k-cn@no-such-branch"] * 2,
        *["user is not a region feature store: it holds no store.json"] * 2,
        *["no/such/folder is not a region feature store: it holds no store.json"] * 2,
    ]


def test_a_folder_goes_before_the_hub(tmp_path, monkeypatch):
    write(tmp_path / "user" / "flickr8k-cn", range(3))
    monkeypatch.chdir(tmp_path)
    assert len(RegionFeatureStore.open(REPO)) == 3
