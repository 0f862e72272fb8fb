"""Every bit of every file of a store matters: one that flips is found. What its JSON may not say is told by field."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modeling_mengzi_oscar import RegionFeatureStore
from modeling_mengzi_oscar.checkpoint_folder import CheckpointError, read_tensors
from modeling_mengzi_oscar.checksums import NO_CHECKSUM
from modeling_mengzi_oscar.features.extraction import keep_settings
from modeling_mengzi_oscar.features.store_folder import SHARD_NAME
from modeling_mengzi_oscar.files import state_checksum


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "store"
    path.mkdir()
    keep_settings(path, {"flip": False, "precision": "float32"})
    with RegionFeatureStore.writer(path, images_per_shard=2, labels=["", "狗"]) as writer:
        for number in range(3):
            features = np.random.default_rng(number).normal(size=(2, 7))
            writer.add(f"图{number}", {"region_features": features, "tag_ids": [1], "original_size": (4, 5)})
    return path


def flips(path, step=1):
    """The file with one bit of every byte, or of some, flipped, one after the other; then as it was."""
    content = path.read_bytes()
    for place in range(0, len(content), step):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        yield place
    path.write_bytes(content)


FILES = ["store.json", "extraction.json", "index.safetensors", "00000-000000.safetensors", "00000-000001.safetensors"]


@pytest.mark.parametrize("name", FILES[:-1])
def test_verify_finds_every_flipped_bit(store, name):
    assert {path.name for path in store.iterdir()} == set(FILES)
    for place in flips(store / name):
        with pytest.raises(ValueError, match=re.escape(str(store))) as caught:
            RegionFeatureStore.open(store).verify()
        assert "\n" not in str(caught.value), place
    assert RegionFeatureStore.open(store).verify() == 3


@pytest.mark.parametrize("name", ["store.json", "index.safetensors"])
def test_nothing_is_added_to_a_damaged_store(store, name):
    for _ in flips(store / name, step=5):
        with pytest.raises(ValueError, match=name):
            RegionFeatureStore.writer(store)
    assert not list(store.glob("lock*"))


def test_an_id_that_was_damaged_is_not_written_twice(store):
    shard = store / "00000-000000.safetensors"
    shard.write_bytes(shard.read_bytes().replace("图1".encode(), "图9".encode()))
    with (
        RegionFeatureStore.writer(store) as writer,
        pytest.raises(ValueError, match="000000.safetensors .row 1. disagree"),
    ):
        writer.add("图1", {})
    (store / "index.safetensors").unlink()
    with pytest.raises(ValueError, match="000000.safetensors row 1 is damaged, id and hash do not agree"):
        RegionFeatureStore.writer(store)


def without_checksums(store):
    """As stores were before there were any."""
    for path in store.iterdir():
        content = path.read_bytes()
        if path.suffix == ".json":
            content = re.sub(rb'\n  "crc32": "[0-9a-f]{8}",', b"", content)
        else:
            end = 8 + int.from_bytes(content[:8], "little")
            header = re.sub(rb'"crc32":"[0-9a-f]{8}",', b"", content[8:end]).ljust(end - 8)
            content = content[:8] + header + content[end:]
        assert b"crc32" not in content
        path.write_bytes(content)


def test_stores_without_checksums_are_read_and_said_to_be(store):
    expected = RegionFeatureStore.open(store)["图1"]
    without_checksums(store)
    opened = RegionFeatureStore.open(store)
    np.testing.assert_array_equal(opened["图1"]["region_features"], expected["region_features"])
    with pytest.warns(UserWarning, match="no checksums in 3 files .index.safetensors is the first"):
        assert opened.verify() == 3
    keep_settings(store, {"flip": False, "precision": "float32"})
    with RegionFeatureStore.writer(store) as writer:
        writer.add("new", RegionFeatureStore.open(store)["图2"])
    assert set(RegionFeatureStore.open(store)) == {"图0", "图1", "图2", "new"}
    without_checksums(store)  # the index is compared with one made from the shards
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = (store / "index.safetensors").read_bytes()
        for place in range(1, 4 * 16 + 1):
            changed = bytearray(content)
            changed[-place] ^= 1 << place % 8
            (store / "index.safetensors").write_bytes(changed)
            with pytest.raises(ValueError, match="index.safetensors"):
                RegionFeatureStore.open(store).verify()


WRONG = [
    ("format", "something else"),
    ("format_version", "1"),
    ("format_version", True),
    ("format_version", None),
    ("format_version", 10**30),
    ("dtype", "int8"),
    ("dtype", ["float16"]),
    ("dtype", {}),
    ("fields", []),
    ("fields", {}),
    ("fields", {"region_features": 7}),
    ("fields", {"region_features": [10**30]}),
    ("fields", {"region_features": [-1]}),
    ("fields", {"region_features": [7.0]}),
    ("fields", {"region_features": [7], "boxes": [5]}),
    ("fields", {"region_features": [7], "../outside": [4]}),
    ("region_model", 5),
    ("labels", "狗"),
    ("labels", ["", 5]),
    ("labels", {"1": "狗"}),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_wrong_types_in_store_json_are_told_by_field(store, field, value):
    path = store / "store.json"
    content = json.loads(path.read_text("utf-8")) | {field: value}
    del content["crc32"]
    path.write_text(json.dumps(content), "utf-8")
    named = field.replace("_", ".")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{named}") as caught:
        RegionFeatureStore.open(store)
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"5", b"\xff", b"{", b"[" * 100_000, b'{"format_version": ' + b"9" * 5000 + b"}", b"{}"]
)
def test_what_is_no_store_json(store, content):
    (store / "store.json").write_bytes(content)
    for use in (RegionFeatureStore.open, RegionFeatureStore.writer):
        with pytest.raises(ValueError, match=r"store\.json: ") as caught:
            use(store)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../x-000000.safetensors", "/x-000000.safetensors", "a/b-000000.safetensors", "store.json"]
)
def test_an_index_names_only_shards_of_its_own_folder(store, name):
    path = store / "index.safetensors"
    old = json.dumps("00000-000000.safetensors").encode().replace(b'"', b'\\"')
    new = json.dumps(name).encode().replace(b'"', b'\\"')
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip().replace(old, new)
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert not SHARD_NAME.fullmatch(name)
    with pytest.raises(ValueError, match="index.safetensors is damaged"):
        RegionFeatureStore.open(store)


def test_checksums_are_the_crc_of_the_file(store):
    """By hand, so that others can check a store without this library."""
    import zlib

    for name in FILES:
        content = (store / name).read_bytes()
        stated = re.search(rb'"crc32": ?"([0-9a-f]{8})"', content)[1]
        assert int(stated, 16) == zlib.crc32(content.replace(stated, NO_CHECKSUM.encode(), 1))


def test_every_flipped_bit_of_weights_is_found(tmp_path):
    """Weights as `convert` and trainings write them, and as `torch` reads them without a look."""
    path, tensors = tmp_path / "model.safetensors", {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2).half()}
    save_file(tensors, path, metadata={"format": "pt"})
    plain = read_tensors(path)
    state_checksum(path)
    state_checksum(path)  # again: nothing changes
    stated = read_tensors(path)
    assert plain.keys() == stated.keys() == tensors.keys()
    assert all(torch.equal(stated[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata().keys() == {"crc32", "format"}
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            read_tensors(path)
