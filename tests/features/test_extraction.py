"""Extraction: every kind of source, interruptions, several processes, what cannot be read, Oscar's files, pictures."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tracemalloc

import datasets
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from test_oscar_tsv import features_as_oscar, read_as_oscar, same
from test_vinvl import TINY

from modeling_mengzi_oscar import GridRegionConfig, GridRegionImageProcessor, GridRegionModel, RegionFeatureStore
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.configuration_vinvl import VinVLConfig
from modeling_mengzi_oscar.features import extraction
from modeling_mengzi_oscar.features.extraction import SeenIds, batches_of_one_size
from modeling_mengzi_oscar.features.oscar_tsv import import_tsv
from modeling_mengzi_oscar.features.photo_sources import ListedPhotos, TarPhotos, open_source
from modeling_mengzi_oscar.image_processing_vinvl import VinVLImageProcessor
from modeling_mengzi_oscar.modeling_vinvl import VinVLModel
from modeling_mengzi_oscar.photos import open_photo

SIZES = [(40, 30), (64, 48), (30, 40), (40, 30), (64, 48), (48, 64), (40, 30), (30, 40), (64, 48), (40, 30)]
CLASSES = ["person", "dog", "horse", "grass", "tree", "sky"] * 5
ATTRIBUTES = ["red", "white", "wooden", "young"] * 6


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    torch.manual_seed(0)
    config = GridRegionConfig(
        backbone="test_efficientnet", num_features=256, grid_size=2, tag_labels=["狗", "猫", "草地"], tag_threshold=0.1
    )
    GridRegionModel(config).save_pretrained(folder)
    GridRegionImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vinvl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vinvl")
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(CLASSES, 1)), "id2attribute": dict(enumerate(ATTRIBUTES, 1))}
    model = VinVLModel(VinVLConfig(**TINY | {"rpn_post_nms_top_n": 20}, **names))
    for parameter in model.parameters():  # the usual start gives every region the same class
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() < 4 else parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    VinVLImageProcessor(shortest_edge=48, longest_edge=80).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten photos of four shapes, two folders deep, as PNG so that every copy has the same pixels."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    for number, (width, height) in enumerate(SIZES):
        path = folder / ("a" if number < 5 else "b/更深") / f"photo{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return folder


def run(source, output, model, *flags):
    return main(["extract", str(source), "--output", str(output), "--model", str(model), *map(str, flags)])


def extracted(source, output, model, *flags):
    """The store of a run in float32 without anything unreadable."""
    assert run(source, output, model, "--dtype", "float32", *flags) == 0
    assert not list(output.glob("errors*"))
    return RegionFeatureStore.open(output)


def paths_of(photos):
    return {photo.image_id: photo.fetch() for photo in open_source(photos).fetch_photos()}


def errors_of(store_path):
    lines = (store_path / "errors.jsonl").read_text("utf-8").splitlines()
    return {record["image_id"]: record["error"] for record in map(json.loads, lines)}


# Sources: whatever the photos come from, the store has the same bytes.


def as_text(paths, folder):
    os.symlink(next(iter(paths.values())).parents[1], folder / "photos")
    (folder / "list.txt").write_text("".join(f"photos/{key}.png\n\n" for key in paths), "utf-8")
    return folder / "list.txt", {f"photos/{key}": key for key in paths}


def as_jsonl(paths, folder):
    lines = [json.dumps({"image_id": number, "path": str(path)}) for number, path in enumerate(paths.values())]
    (folder / "list.jsonl").write_text("\n".join(lines), "utf-8")
    return folder / "list.jsonl", {str(number): key for number, key in enumerate(paths)}


def as_csv(paths, folder):
    with open(folder / "list.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("path", "image_id"), *((path, f"{key},") for key, path in paths.items())])
    return folder / "list.csv", {f"{key},": key for key in paths}


def as_tars(paths, folder, mode="w", suffix=".tar"):
    ids = list(paths)
    for shard in range(0, len(ids), 4):
        with tarfile.open(folder / f"shard{shard}{suffix}", mode) as archive:
            for key in ids[shard : shard + 4]:
                archive.add(paths[key], f"{key}.png")
                archive.addfile(tarfile.TarInfo(f"{key}.txt"))
    return folder, {key: key for key in ids}


def as_tar_gz(paths, folder):
    return as_tars(paths, folder, "w:gz", ".tar.gz")


def as_dataset(paths, folder):
    rows = datasets.Dataset.from_dict({"id": list(paths), "photo": list(map(str, paths.values()))})
    rows.cast_column("photo", datasets.Image()).save_to_disk(folder / "dataset", num_shards=2)
    return folder / "dataset", {key: key for key in paths}


def as_parquet(paths, folder):
    rows = datasets.load_from_disk(as_dataset(paths, folder)[0]).remove_columns("id")
    for shard in range(2):
        rows.shard(2, shard, contiguous=True).to_parquet(folder / f"parquet/{shard}.parquet")
    return folder / "parquet", {f"{number:08d}": key for number, key in enumerate(paths)}


def as_arrow(paths, folder):
    path = as_dataset(paths, folder)[0]
    (path / "state.json").unlink()
    return path, {key: key for key in paths}


SOURCES = [as_text, as_jsonl, as_csv, as_tars, as_tar_gz, as_dataset, as_parquet, as_arrow]


@pytest.mark.parametrize("make", SOURCES)
def test_sources_give_the_same_rows_as_the_folder(make, photos, grid, tmp_path):
    paths = paths_of(photos)
    assert list(paths)[::5] == ["a/photo0", "b/更深/photo5"]
    expected = extracted(photos, tmp_path / "folder", grid)
    (tmp_path / "source").mkdir()
    source, ids = make(paths, tmp_path / "source")
    opened = open_source(source)
    assert [photo.image_id for photo in opened.fetch_photos()] == list(ids)
    assert abs(opened.total - 10) <= (1 if make in (as_tars, as_tar_gz) else 0)  # guessed from the bytes
    found = extracted(source, tmp_path / "store", grid)
    assert list(found) == list(ids)
    for image_id, key in ids.items():
        for name, values in expected[key].items():
            np.testing.assert_array_equal(found[image_id][name], values)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("nothing", None, "no such file or folder"),
        ("notes.md", "", "no photo, list, tar shard or dataset by its name"),
        ("empty.txt", "\n\n", "an empty list"),
        (
            "short.jsonl",
            '{"image_id": 1, "path": "1.jpg"}\n{"image_id": 2}\n',
            "short.jsonl line 2: needs image_id and",
        ),
        ("wrong.csv", "id,file\n1,1.jpg\n", "wrong.csv line 2: needs image_id and"),
        ("folder/x.md", "", "holds no photos"),
        ("splits/dataset_dict.json", '{"splits": ["train", "test"]}', "holds the splits train, test: name one"),
    ],
)
def test_what_is_no_source_is_said_in_one_line(name, content, reason, grid, tmp_path, capsys):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    source = path if path.parent == tmp_path else path.parent
    assert run(source, tmp_path / "store", grid) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line
    assert str(source) in line
    assert not (tmp_path / "store").exists()


def add_bytes(archive, name, content, **attributes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in attributes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def test_tar_members_choose_nothing_outside(photos, grid, tmp_path):
    secret = next(iter(paths_of(photos).values()))
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        add_bytes(archive, "../../up.png", secret.read_bytes())
        add_bytes(archive, "link.png", b"", type=tarfile.SYMTYPE, linkname=str(secret))
        add_bytes(archive, "hard.png", b"", type=tarfile.LNKTYPE, linkname="../../up.png")
        add_bytes(archive, "device.png", b"", type=tarfile.CHRTYPE)
    before = {path for path in tmp_path.rglob("*")}
    store = extracted(tmp_path / "shard.tar", tmp_path / "store", grid)
    assert list(store) == ["../../up"]
    assert {path.parent for path in set(tmp_path.rglob("*")) - before} == {tmp_path, tmp_path / "store"}


@pytest.mark.parametrize("damage", ["data cut", "header broken"])
def test_a_damaged_tar_is_listed_and_the_next_one_read(damage, photos, grid, tmp_path):
    (tmp_path / "shards").mkdir()
    as_tars(paths_of(photos), tmp_path / "shards")
    shard = tmp_path / "shards" / "shard0.tar"
    content = shard.read_bytes()
    with tarfile.open(shard) as archive:
        third = archive.getmembers()[4]  # a photo and a text each
    end = third.offset_data + 700
    broken = content[: third.offset] + b"x" * 512 + content[third.offset + 512 :]
    shard.write_bytes(content[:end] if damage == "data cut" else broken)
    assert run(tmp_path / "shards", tmp_path / "store", grid) == 2
    assert len(RegionFeatureStore.open(tmp_path / "store")) == 8  # 2 of 4, then 4 and 2
    errors = errors_of(tmp_path / "store")
    assert str(shard) in errors
    assert all("damaged" in error for error in errors.values())


def test_total_of_tars_is_guessed(photos, tmp_path):
    (tmp_path / "shards").mkdir()
    as_tars(paths_of(photos), tmp_path / "shards")
    source = TarPhotos(sorted((tmp_path / "shards").iterdir()))
    assert source.total is None
    stream = source.fetch_photos()
    next(stream)
    assert 5 <= source.total <= 20  # ten, guessed from the first


def test_a_dataset_names_no_files_to_read(photos, grid, tmp_path):
    path = str(next(iter(paths_of(photos).values())))
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [{"path": path, "bytes": None}]}, features=features)
    with datasets.arrow_writer.ArrowWriter(features=features, path=str(tmp_path / "rows.arrow")) as writer:
        writer.write({"image": {"path": path, "bytes": None}})
        writer.finalize()
    assert run(tmp_path / "rows.arrow", tmp_path / "store", grid) == 2
    assert "names a file instead of holding it" in errors_of(tmp_path / "store")["00000000"]
    [photo] = open_source(rows).fetch_photos()  # one's own dataset, in Python, may
    assert open_photo(photo.fetch()).size == SIZES[0]


def test_memory_does_not_grow_with_the_list(tmp_path):
    def peak(count):
        path = tmp_path / f"{count}.txt"
        path.write_text("".join(f"folder/photo{number:09d}.jpg\n" for number in range(count)))
        tracemalloc.start()
        assert sum(1 for _ in ListedPhotos(path).fetch_photos()) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(8_000) < peak(500) + 10_000


def test_ids_that_came_before():
    seen, keys = SeenIds(), np.random.default_rng(0).integers(0, 2**64, 250_000, dtype=np.uint64).tolist()
    assert all(map(seen.add, keys))
    assert not any(map(seen.add, keys[::1000] + keys[-5:]))
    assert len(seen.sorted) == 200_000


# Interruptions and processes.

KILLED = """
import os, signal, sys
from modeling_mengzi_oscar import GridRegionModel
from modeling_mengzi_oscar.cli import main
calls, forward = [], GridRegionModel.forward
def dying(self, *args, **kwargs):
    calls.append(0)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, *args, **kwargs)
GridRegionModel.forward = dying
main(sys.argv[1:])
"""


def files_of(store_path):
    """Every byte but those of the index, whose header has its two entries in any order; `verify` reads it."""
    RegionFeatureStore.open(store_path).verify()
    return {path.name: path.read_bytes() for path in store_path.iterdir() if path.name != "index.safetensors"}


def test_killed_and_resumed_equals_uninterrupted(photos, grid, tmp_path):
    """Four photos a shard in batches of three, one unreadable: the third batch is in the middle of the second shard."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(paths_of(photos).values()):
        os.link(path, folder / f"{number}.png")
    (folder / "1.png").unlink()
    (folder / "1.png").write_bytes(b"no photo")
    flags = ["--dtype", "float32", "--batch-size", "3", "--images-per-shard", "4"]
    command = ["extract", str(folder), "--output", str(tmp_path / "killed"), "--model", str(grid), *flags]
    result = subprocess.run([sys.executable, "-c", KILLED, *command], cwd=REPOSITORY, capture_output=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert [path.name for path in (tmp_path / "killed").glob("0*")] == ["00000-000000.safetensors"]
    (tmp_path / "killed" / "00000-000001.safetensors.00000.tmp").write_bytes(b"half")
    assert main(command) == 2
    assert run(folder, tmp_path / "whole", grid, *flags) == 2
    assert len(RegionFeatureStore.open(tmp_path / "whole")) == 9
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    before = files_of(tmp_path / "killed")
    assert main(command) == 2  # once more: nothing to do, nothing doubled
    assert files_of(tmp_path / "killed") == before


def test_an_exception_keeps_what_is_done(photos, grid, tmp_path, monkeypatch):
    calls, forward = [], GridRegionModel.forward

    def interrupted(self, *args, **kwargs):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(GridRegionModel, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "store", grid, "--batch-size", 3)
    assert len(RegionFeatureStore.open(tmp_path / "store")) == 6
    assert run(photos, tmp_path / "store", grid, "--batch-size", 3) == 0
    assert len(RegionFeatureStore.open(tmp_path / "store")) == 10


def test_index_is_saved_on_the_way(photos, grid, tmp_path, monkeypatch):
    """The writer is reopened after some shards; the store is the same as without."""
    flags = ["--images-per-shard", 2]
    expected = extracted(photos, tmp_path / "one", grid, *flags)
    monkeypatch.setattr("modeling_mengzi_oscar.features.extraction.SHARDS_PER_INDEX", 2)
    found = extracted(photos, tmp_path / "two", grid, *flags)
    same(found, expected)
    assert list(found) == list(expected)


def test_two_processes_make_the_rows_of_one(photos, grid, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(paths_of(photos).values()):
        os.link(path, folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"x")
    os.link(folder / "3.png", folder / "3.webp")  # one id twice
    flags = [str(folder), "--model", str(grid), "--dtype", "float32", "--batch_size", "1", "--use_cpu"]
    for processes in ("1", "2"):
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        result = subprocess.run(
            [sys.executable, "-m", *launch, "train/extract_features.py", *flags, "--output", str(tmp_path / processes)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == 0, result.stderr[-3000:]
        assert "10 photos" in result.stdout
        assert "2 could not be read" in result.stdout
    workers = {path.name.split("-")[0] for path in (tmp_path / "2").glob("0*.safetensors")}
    assert workers == {"00000", "00001"}
    one, two = (RegionFeatureStore.open(tmp_path / name) for name in "12")
    same(one, two)
    assert errors_of(tmp_path / "1") == errors_of(tmp_path / "2")
    assert set(errors_of(tmp_path / "1")) == {"broken", "3"}


def test_what_cannot_be_read_is_listed_and_counted(photos, vinvl, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    good = next(iter(paths_of(photos).values()))
    os.link(good, folder / "good.png")
    os.link(good, folder / "good.PNG")
    (folder / "text.jpg").write_text("no photo")
    (folder / "cut.png").write_bytes(good.read_bytes()[:900])
    Image.new("RGB", (400, 1)).save(folder / "thin.png")
    Image.new("RGB", (90, 90)).save(folder / "large.png")
    for _ in range(2):  # a second run finds the same
        assert run(folder, tmp_path / "store", vinvl, "--limit-pixels", 5000) == 2
        assert "1 photos" in (line := capsys.readouterr().out)
        assert f"5 could not be read, see {tmp_path / 'store' / 'errors.jsonl'}" in line
        errors = errors_of(tmp_path / "store")
        reasons = {"good": "another photo has the id", "text": "not a photo", "cut": "damaged", "thin": "too thin"}
        for image_id, reason in (reasons | {"large": "more than 5,000"}).items():
            assert reason in errors[image_id]
    assert list(RegionFeatureStore.open(tmp_path / "store")) == ["good"]
    for name in ("text.jpg", "cut.png", "thin.png", "large.png", "good.PNG"):
        (folder / name).unlink()
    assert run(folder, tmp_path / "store", vinvl) == 0
    assert not (tmp_path / "store" / "errors.jsonl").exists()


def test_nothing_readable_and_other_settings_are_errors(photos, grid, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no photo")
    assert run(tmp_path / "text.jpg", tmp_path / "none", grid) == 2
    assert "none of its 1 photos could be read" in capsys.readouterr().err
    tarfile.open(tmp_path / "empty.tar", "w").close()
    assert run(tmp_path / "empty.tar", tmp_path / "empty", grid) == 2
    assert f"{tmp_path / 'empty.tar'}: holds no photos" in capsys.readouterr().err
    extracted(photos, tmp_path / "store", grid)
    for flags in (["--flip"], ["--precision", "bfloat16"], ["--dtype", "float16"]):
        assert run(photos, tmp_path / "store", grid, "--dtype", "float32", *flags) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert str(tmp_path / "store") in error


# What is in the store.


def test_only_equal_sizes_share_a_batch(photos, vinvl, tmp_path, monkeypatch):
    """Every row is what the detector says of that photo alone; photos of one size did go together."""
    shapes, forward = [], VinVLModel.forward

    def noting(self, pixel_values, **kwargs):
        assert (kwargs["reshaped_input_sizes"] == torch.tensor(pixel_values.shape[-2:])).all()
        shapes.append(len(pixel_values))
        return forward(self, pixel_values, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(VinVLModel, "forward", noting)
        store = extracted(photos, tmp_path / "store", vinvl, "--batch-size", 2)
    assert sorted(shapes) == [1, 1, 2, 2, 2, 2]
    model, processor = VinVLModel.from_pretrained(vinvl).eval(), VinVLImageProcessor.from_pretrained(vinvl)
    for image_id, path in paths_of(photos).items():
        with torch.inference_mode():
            alone = model(**processor(Image.open(path)))
        row = store[image_id]
        assert row["class_ids"].tolist() == alone.class_ids[0].tolist()
        np.testing.assert_allclose(row["boxes"], alone.boxes[0], atol=0.01)
        scale = alone.region_features.abs().max().item()
        np.testing.assert_allclose(row["region_features"] / scale, alone.region_features[0] / scale, atol=1e-4)
        np.testing.assert_allclose(row["attribute_scores"], alone.attribute_scores[0], atol=1e-4)
        assert row["original_size"].tolist() == list(Image.open(path).size[::-1])
    assert list(store) == list(paths_of(photos))


def test_photos_of_rare_sizes_wait_but_not_for_ever():
    photos = [(number, {"pixel_values": torch.zeros(1, 3, size, 1)}) for number, size in enumerate([1, *range(2, 99)])]
    waiting, most = set(), 0

    def stream():
        nonlocal most
        for number, inputs in photos:
            waiting.add(number)
            most = max(most, len(waiting))
            yield number, inputs

    for batch in batches_of_one_size(stream(), 4):
        waiting -= {number for number, _ in batch}
    assert not waiting
    assert most == 16


def test_bfloat16_and_mirrored(photos, vinvl, grid, tmp_path):
    plain = extracted(photos, tmp_path / "plain", grid)
    rounded = extracted(photos, tmp_path / "rounded", grid, "--precision", "bfloat16")
    flipped = extracted(photos, tmp_path / "flipped", grid, "--flip")
    for image_id, path in paths_of(photos).items():
        expected, found = plain[image_id]["region_features"], rounded[image_id]["region_features"]
        cosine = (expected * found).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
        assert cosine.min() > 0.99
        assert not np.array_equal(expected, found)
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirror.png")
        mirrored = extracted(tmp_path / "mirror.png", tmp_path / image_id.replace("/", "-"), grid)
        np.testing.assert_allclose(
            flipped[image_id]["region_features"], mirrored["mirror"]["region_features"], atol=1e-4
        )
    assert run(photos, tmp_path / "vinvl", vinvl, "--precision", "bfloat16") == 0
    assert RegionFeatureStore.open(tmp_path / "vinvl").dtype == "float16"


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("layout", ["caption", "retrieval"])
def test_files_for_oscar(layout, language, photos, vinvl, tmp_path):
    output = tmp_path / "train"
    flags = ["--format", f"tsv-{layout}", "--language", language, "--dtype", "float32"]
    assert run(photos, output, vinvl, *flags) == 0
    features, objects = ("features.tsv", "predictions.tsv")
    if layout == "caption":
        features, objects = ("train.feature.tsv", "train.label.tsv")
    files = {path.name for path in output.iterdir()} - {"store"}
    index = {"imageid2idx.json"} if layout == "retrieval" else set()
    stems = (features.removesuffix(".tsv"), objects.removesuffix(".tsv"))
    assert files == {features, objects, *index, *(f"{stem}.lineidx" for stem in stems)}

    model, processor = VinVLModel.from_pretrained(vinvl).eval(), VinVLImageProcessor.from_pretrained(vinvl)
    rows, labels = list(read_as_oscar(output / features)), list(read_as_oscar(output / objects))
    order = range(10)
    if layout == "retrieval":
        order = json.loads((output / "imageid2idx.json").read_text("utf-8"))
        assert list(order) == list(paths_of(photos))
        order = order.values()
    for (image_id, path), row in zip(paths_of(photos).items(), order, strict=True):
        with torch.inference_mode():
            expected = model(**processor(Image.open(path)))
        assert rows[row][0] == labels[row][0] == image_id
        scale = expected.region_features.abs().max().item()
        np.testing.assert_allclose(features_as_oscar(rows[row]) / scale, expected.region_features[0] / scale, atol=1e-4)
        record = json.loads(labels[row][1])
        if layout == "retrieval":
            assert (record["image_w"], record["image_h"]) == Image.open(path).size
            record = record["objects"]
        described = model.describe(expected, language)[0]
        assert [item["class"] for item in record] == [region["label"] for region in described]
        for item, region in zip(record, described, strict=True):
            assert item["rect"] == pytest.approx(region["box"], abs=0.01)
            assert item["conf"] == pytest.approx(region["score"], abs=1e-4)

    import_tsv(output / features, tmp_path / "back", output / objects, dtype="float32")  # and by our own reader
    ours, back = RegionFeatureStore.open(output / "store"), RegionFeatureStore.open(tmp_path / "back")
    for image_id in ours:
        for name in ("region_features", "boxes", "scores"):
            np.testing.assert_array_equal(back[image_id][name], ours[image_id][name])


def test_tags_of_whole_photos_for_oscar(photos, grid, tmp_path):
    assert run(photos, tmp_path / "train", grid, "--format", "tsv-retrieval") == 0
    store = RegionFeatureStore.open(tmp_path / "train" / "store")
    rows = {image_id: json.loads(text) for image_id, text in read_as_oscar(tmp_path / "train" / "predictions.tsv")}
    labels = [None, "狗", "猫", "草地"]
    for image_id, record in rows.items():
        assert [item["class"] for item in record["objects"]] == [labels[i] for i in store[image_id]["tag_ids"]]
    assert any(record["objects"] for record in rows.values())


@pytest.mark.parametrize("layout", ["caption", "retrieval"])
def test_a_store_becomes_oscars_files_without_a_look(layout, photos, vinvl, tmp_path, monkeypatch, capsys):
    """The same files that the extraction would write; what would be done again or written over is said."""
    format = ("--format", f"tsv-{layout}")
    assert run(photos, tmp_path / "whole" / "train", vinvl, *format) == 0
    store = tmp_path / "whole" / "train" / "store"
    with monkeypatch.context() as patch:
        patch.setattr(VinVLModel, "forward", None)
        assert run(store, tmp_path / "train", vinvl, *format) == 0
        assert main(["extract", str(store), "--output", str(tmp_path / "own" / "train"), *format]) == 0  # its own model
    assert "10 photos, written from the store" in capsys.readouterr().out
    expected = {path.name: path.read_bytes() for path in store.parent.iterdir() if path.is_file()}
    for folder in (tmp_path / "train", tmp_path / "own" / "train"):
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    assert run(store, tmp_path / "en", vinvl, *format, "--language", "en") == 0
    objects = "en.label.tsv" if layout == "caption" else "predictions.tsv"
    assert not any(re.search("[\u4e00-\u9fff]", row) for _, row in read_as_oscar(tmp_path / "en" / objects))
    capsys.readouterr()
    wrong = {
        "is there already": (store, tmp_path / "train", *format),
        "is a store already": (store, tmp_path / "copy"),
        f"{store} is a store: give it as the source": (photos, store, *format),
        "holds Oscar's files and their store": (photos, store.parent),
        "leave out --picture": (store, tmp_path / "new", *format, "--picture", tmp_path / "a.png"),
    }
    for message, (source, output, *flags) in wrong.items():
        assert run(source, output, vinvl, *flags) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert message in line
    assert run(photos, store.parent, vinvl, *format) == 0  # goes on where it ended
    with RegionFeatureStore.writer(tmp_path / "others") as writer:
        writer.add("a", {"region_features": np.ones((1, 4), "f4")})
    assert run(photos, tmp_path / "others", vinvl) == 2
    assert "was not made by extract" in capsys.readouterr().err


@pytest.mark.parametrize("at", [2, 3, 5])
def test_a_shard_is_written_in_time_and_changes_nothing(at, photos, vinvl, tmp_path, monkeypatch):
    """Stopped within a stretch, of which some batches were kept: the others are made as if nothing had happened."""
    whole = extracted(photos, tmp_path / "whole", vinvl, "--batch-size", 2)
    sizes, forward = [], VinVLModel.forward

    def interrupted(self, pixel_values, **kwargs):
        sizes.append(len(pixel_values))
        if len(sizes) == at:
            assert sum(sizes[:-1]) == len(RegionFeatureStore.open(tmp_path / "store"))  # on disk, whatever comes
            raise KeyboardInterrupt
        return forward(self, pixel_values, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "SECONDS_PER_SHARD", -1)
        patch.setattr(VinVLModel, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(photos, tmp_path / "store", vinvl, "--dtype", "float32", "--batch-size", 2)
    assert f"{tmp_path / 'store'} keeps {sum(sizes[:-1])} photos: start again" in str(stopped.value)
    store = extracted(photos, tmp_path / "store", vinvl, "--batch-size", 2)
    assert set(store) == set(whole)
    for image_id in whole:
        for name, values in whole[image_id].items():
            np.testing.assert_array_equal(store[image_id][name], values)


def test_a_store_says_what_its_tags_mean(photos, grid, tmp_path):
    assert run(photos, tmp_path / "store", grid) == 0
    assert RegionFeatureStore.open(tmp_path / "store").labels == ["", "狗", "猫", "草地"]


def test_classes_without_names_are_refused_before_the_work(photos, vinvl, tmp_path, capsys):
    nameless = tmp_path / "nameless"
    VinVLModel(VinVLConfig(**TINY)).save_pretrained(nameless)
    VinVLImageProcessor.from_pretrained(vinvl).save_pretrained(nameless)
    assert run(photos, tmp_path / "out", nameless, "--format", "tsv-caption") == 2
    assert "names no classes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(photos, tmp_path / "out", nameless) == 0  # a store can do without
    assert RegionFeatureStore.open(tmp_path / "out").labels is None


# Pictures.


def test_picture_of_a_detector_and_of_a_grid(photos, vinvl, grid, tmp_path, capsys):
    sizes = {}
    for name, model in (("vinvl", vinvl), ("grid", grid)):
        picture = tmp_path / f"{name}.png"
        assert run(photos, tmp_path / name, model, "--picture", picture) == 0
        image = Image.open(picture)
        sizes[name] = image.size
        colours = {colour for _, colour in image.getcolors(2**24)}
        assert (255, 157, 46) in colours  # the first box, or the cells
        assert ((76, 195, 255) in colours) == (name == "vinvl")  # the second box
    assert run(photos, tmp_path / "vinvl", vinvl, "--picture", tmp_path / "no" / "folder.png") == 2
    assert "no such folder" in capsys.readouterr().err


def test_picture_draws_boxes_where_they_are(tmp_path):
    from modeling_mengzi_oscar.demo.pictures import COLOURS, GAP, draw_regions

    region = {"box": [50, 20, 150, 80], "label": "狗", "score": 0.9, "attributes": [{"label": "白色", "score": 0.5}]}
    english = region | {"label": "dog", "attributes": [{"label": "white", "score": 0.5}]}
    page = draw_regions([(Image.new("RGB", (200, 100), "black"), "photo", [region], [english], [])])
    photo = np.asarray(page)[GAP : GAP + 320, GAP : GAP + 640]  # 3.2 times as large
    lines, columns = (photo == tuple(bytes.fromhex(COLOURS[0][1:]))).all(-1).nonzero()
    assert (columns.min(), columns.max()) == (160, 480)
    assert (lines.min(), lines.max()) == (64, 256)
