"""RegionFeatureStore against plain dicts of arrays; power cuts, several writers, shared memory."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from torch.utils.data import DataLoader

from modeling_mengzi_oscar.features import store_folder as region_store
from modeling_mengzi_oscar.features.store import RegionFeatureStore

DIM = 22


def regions_of(number, dim=DIM):
    """Regions of an invented image; their count varies and is sometimes 0."""
    generator = np.random.default_rng(number)
    count, tags = number % 6, number % 4
    return {
        "region_features": generator.normal(size=(count, dim)).astype(np.float16),
        "boxes": generator.uniform(0, 600, (count, 4)).astype(np.float32),
        "scores": generator.random(count, np.float32),
        "class_ids": generator.integers(1, 1595, count),
        "attribute_ids": generator.integers(0, 401, (count, 16)),
        "attribute_scores": generator.random((count, 16), np.float32),
        "tag_ids": generator.integers(1, 280, tags),
        "tag_scores": generator.random(tags, np.float32),
        "original_size": np.array([480 + number, 640]),
    }


def name_of(number):
    return f"图片/{number} a.jpg"


def write(path, numbers, **options):
    with RegionFeatureStore.writer(path, **options) as writer:
        for number in numbers:
            writer.add(name_of(number), regions_of(number))


def assert_holds(store, numbers):
    numbers = list(numbers)
    assert len(store) == len(numbers)
    assert set(store) == {name_of(number) for number in numbers}
    for number in numbers:
        assert name_of(number) in store
        found, expected = store[name_of(number)], regions_of(number)
        assert found.keys() == expected.keys()
        for field, values in expected.items():
            assert found[field].dtype == values.dtype
            np.testing.assert_array_equal(found[field], values, err_msg=field)
    assert store.verify() == len(numbers)


def test_returns_what_was_added(tmp_path):
    write(tmp_path, range(50), images_per_shard=8, region_model="org/name@1234")
    store = RegionFeatureStore.open(tmp_path)
    assert_holds(store, range(50))
    assert list(store) == [name_of(number) for number in range(50)]
    assert (store.feature_dim, store.dtype, store.region_model) == (DIM, "float16", "org/name@1234")
    assert all(store.num_regions(name) == len(store[name]["region_features"]) for name in store)
    store[name_of(5)]["region_features"][:] = 0  # a copy: the next reader is not touched
    assert_holds(store, range(50))
    with pytest.raises(KeyError, match=f"no image 'nowhere' among the 50 of .*{tmp_path.name}"):
        store["nowhere"]
    assert "nowhere" not in store
    with pytest.raises(TypeError, match="image ids are strings, 5 is int"):
        store[5]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dtypes_and_torch_tensors(tmp_path, dtype):
    values = torch.randn(3, 2, DIM).permute(1, 0, 2)[0]  # not contiguous
    with RegionFeatureStore.writer(tmp_path, dtype=dtype) as writer:
        writer.add("a", {"region_features": values, "boxes": None})
        writer.add("b", {"region_features": values.bfloat16(), "boxes": None})
        writer.add("c", {"region_features": values.numpy()})
        writer.add("d", {"region_features": values.tolist()})
    store = RegionFeatureStore(tmp_path)
    expected = values.to(getattr(torch, dtype)).numpy()
    rounded = values.bfloat16().float().numpy().astype(dtype)
    for image_id, wanted in {"a": expected, "b": rounded, "c": expected, "d": expected}.items():
        assert store[image_id]["region_features"].dtype == dtype
        np.testing.assert_array_equal(store[image_id]["region_features"], wanted)
    assert store.fields == ("region_features",)


def test_equal_hashes_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(region_store, "hash_id", lambda image_id: len(image_id) % 2)
    write(tmp_path, range(30), images_per_shard=4)
    assert_holds(RegionFeatureStore.open(tmp_path), range(30))
    assert "图" not in RegionFeatureStore.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region_features": np.full((2, DIM), np.nan)}, "region_features of image 'x' hold NaN"),
        ({"region_features": np.full((2, DIM), 1e5)}, "beyond float16"),
        ({"region_features": np.zeros((2, DIM + 1))}, "has the fields .*23.*the store .*22"),
        ({"region_features": np.zeros(DIM)}, "do not belong together"),
        ({"boxes": np.zeros((3, 4))}, "do not belong together"),
        ({"boxes": np.zeros((2, 5))}, "do not belong together"),
        ({"scores": np.zeros(())}, "do not belong together"),
        ({"tag_scores": np.zeros(7)}, "do not belong together"),
        ({"original_size": np.zeros(3)}, "do not belong together"),
        ({"scores": None}, "has the fields"),
        ({"region_features": None}, "has no region_features"),
        ({"region_attention_mask": np.ones(2)}, r"\['region_attention_mask'\] are no fields"),
    ],
)
def test_refuses_what_does_not_fit(tmp_path, change, message):
    with RegionFeatureStore.writer(tmp_path) as writer:
        writer.add("first", regions_of(8))
        with pytest.raises(ValueError, match=message):
            writer.add("x", regions_of(2) | change)
        with pytest.raises(ValueError, match="'first' is in the store .* already"):
            writer.add("first", regions_of(8))
    assert list(RegionFeatureStore.open(tmp_path)) == ["first"]


def test_writer_goes_on_where_the_store_ends(tmp_path):
    write(tmp_path, range(10), images_per_shard=4)
    with RegionFeatureStore.writer(tmp_path, images_per_shard=4) as writer:
        assert name_of(9) in writer
        assert name_of(10) not in writer
        with pytest.raises(ValueError, match="already"):
            writer.add(name_of(9), regions_of(9))
        for number in range(10, 20):
            writer.add(name_of(number), regions_of(number))
    assert_holds(RegionFeatureStore.open(tmp_path), range(20))
    for options, message in [
        ({"dtype": "float32"}, "has dtype 'float16', this writer 'float32'"),
        ({"region_model": "other"}, "has region_model None, this writer 'other'"),
    ]:
        with pytest.raises(ValueError, match=message):
            RegionFeatureStore.writer(tmp_path, **options)


def test_an_exception_keeps_what_was_added(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, (1 // (1 - number) for number in (0, 1)))  # 1, then the error
    assert_holds(RegionFeatureStore.open(tmp_path), [1])


def test_power_cut_while_a_shard_is_written(tmp_path):
    """A process that dies with half of its third shard on disk."""
    code = f"""
import os, signal, sys
sys.path[:0] = {[str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "features"), str(REPOSITORY)]!r}
from modeling_mengzi_oscar.features import store_folder as region_store
from test_region_store import write
whole = region_store.write_arrays
def half(file, tensors, metadata):
    whole(file, tensors, metadata)
    file.flush()
    if "000002" in file.name:
        os.truncate(file.name, os.stat(file.name).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
region_store.write_arrays = half
write({str(tmp_path)!r}, range(20), images_per_shard=5)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert any(path.suffix == ".tmp" for path in tmp_path.iterdir())
    assert not (tmp_path / "index.safetensors").exists()
    assert_holds(RegionFeatureStore.open(tmp_path), range(10))
    with RegionFeatureStore.writer(tmp_path, images_per_shard=5) as writer:
        assert [number for number in range(20) if name_of(number) in writer] == list(range(10))
        for number in range(10, 20):
            writer.add(name_of(number), regions_of(number))
    assert not any(path.suffix == ".tmp" for path in tmp_path.iterdir())
    assert_holds(RegionFeatureStore.open(tmp_path), range(20))


def test_processes_write_one_store_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(
            target=write, args=(tmp_path, range(part, 60, 3)), kwargs={"worker": f"{part:05d}", "images_per_shard": 4}
        )
        for part in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert_holds(RegionFeatureStore.open(tmp_path), range(60))
    (tmp_path / "index.safetensors").unlink()
    assert_holds(RegionFeatureStore.open(tmp_path), range(60))


def test_an_id_of_two_workers_is_found(tmp_path):
    first = RegionFeatureStore.writer(tmp_path, worker="a")
    second = RegionFeatureStore.writer(tmp_path, worker="b")
    first.add("same", regions_of(1))
    second.add("other", regions_of(2))
    second.add("same", regions_of(2))
    first.close()
    message = r"holds image 'same' twice, in a-000000.safetensors \(row 0\) and b-000000.safetensors \(row 1\)"
    with pytest.raises(ValueError, match=message):
        second.close()
    with pytest.raises(ValueError, match=message):
        RegionFeatureStore.open(tmp_path)


def test_a_worker_name_belongs_to_one_writer_while_it_lives(tmp_path):
    first = RegionFeatureStore.writer(tmp_path)
    first.add(name_of(1), regions_of(1))
    with pytest.raises(ValueError, match=rf"another process \(pid {os.getpid()} on .*\) is writing .* as worker 00000"):
        RegionFeatureStore.writer(tmp_path)
    first.close()
    with RegionFeatureStore.writer(tmp_path) as second:
        second.add(name_of(2), regions_of(2))
    assert_holds(RegionFeatureStore.open(tmp_path), [1, 2])
    assert not list(tmp_path.glob("lock.*"))


def test_a_killed_writer_leaves_few_shards_without_index(tmp_path, monkeypatch):
    """So that opening stays fast; the store is the same."""
    monkeypatch.setattr(region_store, "SHARDS_WITHOUT_INDEX", 4)
    writer = RegionFeatureStore.writer(tmp_path, images_per_shard=1)
    for number in range(90):
        writer.add(name_of(number), regions_of(number))
        assert RegionFeatureStore.open(tmp_path)._unindexed <= max(4, (number + 1) // 8)
    assert_holds(RegionFeatureStore.open(tmp_path), range(90))
    assert_holds(pickle.loads(pickle.dumps(RegionFeatureStore.open(tmp_path))), range(90))


@pytest.mark.parametrize("indexed", [True, False])
def test_truncated_and_missing_shards_are_named(tmp_path, indexed):
    write(tmp_path, range(12), images_per_shard=4)
    if not indexed:
        (tmp_path / "index.safetensors").unlink()
    shard = tmp_path / "00000-000001.safetensors"
    os.truncate(shard, shard.stat().st_size - 3)
    with pytest.raises(ValueError, match="00000-000001.safetensors (has|is damaged)"):
        RegionFeatureStore.open(tmp_path)
    shard.unlink()
    if indexed:
        with pytest.raises(ValueError, match="00000-000001.safetensors is missing"):
            RegionFeatureStore.open(tmp_path)
    else:
        assert_holds(RegionFeatureStore.open(tmp_path), [0, 1, 2, 3, 8, 9, 10, 11])


def test_damaged_index_is_named_and_made_again(tmp_path):
    write(tmp_path, range(6))
    index = tmp_path / "index.safetensors"
    os.truncate(index, index.stat().st_size - 3)
    with pytest.raises(ValueError, match="index.safetensors is damaged .*: delete it, it is rebuilt"):
        RegionFeatureStore.open(tmp_path)
    index.unlink()
    write(tmp_path, [6])
    assert index.exists()
    assert_holds(RegionFeatureStore.open(tmp_path), range(7))


def test_an_image_without_regions(tmp_path):
    with RegionFeatureStore.writer(tmp_path) as writer:
        writer.add("空", {"region_features": np.zeros((0, DIM)), "boxes": np.zeros((0, 4)), "tag_ids": []})
    regions = RegionFeatureStore.open(tmp_path)["空"]
    assert {name: values.shape for name, values in regions.items()} == {
        "region_features": (0, DIM),
        "boxes": (0, 4),
        "tag_ids": (0,),
    }


def test_verify_finds_damage_inside(tmp_path):
    write(tmp_path, range(4))
    shard = tmp_path / "00000-000000.safetensors"
    row = regions_of(3)["region_features"]
    data = shard.read_bytes()
    assert data.count(row.tobytes()) == 1
    shard.write_bytes(data.replace(row.tobytes(), np.full_like(row, np.nan).tobytes()))
    with pytest.raises(
        ValueError, match=r"000000.safetensors row 3 \(image '图片/3 a.jpg'\): region_features hold NaN"
    ):
        RegionFeatureStore.open(tmp_path).verify()


def test_what_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a region feature store: it holds no store.json"):
        RegionFeatureStore.open(tmp_path)
    write(tmp_path, [1])
    text = (tmp_path / "store.json").read_text("utf-8")
    (tmp_path / "store.json").write_text(text.replace('"format_version": 1', '"format_version": 99'), "utf-8")
    with pytest.raises(ValueError, match="format version 99, not 1"):
        RegionFeatureStore.open(tmp_path)


class Rows(torch.utils.data.Dataset):
    def __init__(self, store, ids):
        self.store, self.ids = store, ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return self.store[self.ids[index]]["region_features"].sum(dtype=np.float64)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers_read_the_same(tmp_path, method):
    write(tmp_path, range(30), images_per_shard=7)
    store = RegionFeatureStore.open(tmp_path)
    rows = Rows(store, list(store))
    expected = torch.tensor([row.item() for row in rows], dtype=torch.float64)
    loader = DataLoader(rows, batch_size=5, num_workers=2, multiprocessing_context=method)
    torch.testing.assert_close(torch.cat(list(loader)), expected)
    assert_holds(pickle.loads(pickle.dumps(store)), range(30))


def _resident(path, barrier, results):
    """Read a whole store, then report this process's share of its mapped pages in bytes."""
    store = RegionFeatureStore.open(path)
    for image_id in store:
        store[image_id]
    barrier.wait()
    share, mapped = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            mapped = str(path) in line
        elif mapped and line.startswith("Pss:"):
            share += int(line.split()[1]) * 1024
    results.put(share)
    barrier.wait()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells how pages are shared")
def test_four_processes_hold_one_copy(tmp_path):
    matrix = np.zeros((100, 2054), np.float16)
    with RegionFeatureStore.writer(tmp_path, images_per_shard=50) as writer:
        for number in range(200):
            writer.add(str(number), {"region_features": matrix})
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_resident, args=(tmp_path, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    shares = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert 0.95 * 200 * matrix.nbytes < sum(shares) < 1.02 * 200 * matrix.nbytes
