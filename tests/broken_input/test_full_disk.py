"""No room at any write: one line that names the file, status 2, nothing half written; with room the job finishes.

A limit on the size of files stands for the disk that is full: it fails in the same system calls, and needs no rights.
"""

import os
import re
import resource

import numpy as np
import pytest
import torch
from conftest import tiny_config
from forks import call
from PIL import Image

from modeling_mengzi_oscar import (
    GridRegionConfig,
    GridRegionImageProcessor,
    GridRegionModel,
    MengziOscarForImageTextRetrieval,
    MengziOscarProcessor,
    RegionFeatureStore,
)
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.features.oscar_tsv import export_tsv, import_tsv
from modeling_mengzi_oscar.matching import Matcher
from modeling_mengzi_oscar.retrieval import score_matrix


def limited(limit, run, *arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return run(*arguments)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    torch.manual_seed(0)
    config = GridRegionConfig(backbone="test_efficientnet", num_features=256, grid_size=2, tag_labels=["狗", "猫"])
    GridRegionModel(config).save_pretrained(folder)
    GridRegionImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_extraction(photos, grid, tmp_path):
    """Store, error list and Oscar's files: whatever was too large for the limit is the one that is named."""

    def extract(output):
        flags = ["--format", "tsv-retrieval", "--images-per-shard", "2", "--batch-size", "1"]
        return main(["extract", str(photos), "--output", str(output), "--model", grid, *flags])

    assert extract(tmp_path / "whole") == 2  # the one that is no photo
    expected, named = files_of(tmp_path / "whole"), set()
    for limit in {0, *(len(content) - 1 for content in expected.values())}:
        output = tmp_path / str(limit)
        status, said = call(limited, limit, extract, output)
        assert status == 2
        [line] = said
        path = re.fullmatch(r"(\S+): File too large; free some space, then start again", line)[1]
        named.add(os.path.basename(path))
        assert path.startswith(str(output))
        if (output / "store" / "store.json").is_file():
            RegionFeatureStore.open(output / "store").verify()
        assert not list(output.rglob("*.tmp"))
        assert extract(output) == 2  # with room, in the folder as it is
        assert files_of(output) == expected
    assert named >= {"extraction.json", "store.json", "00000-000000.safetensors", "features.tsv"}


def test_import(photos, tmp_path):
    with RegionFeatureStore.writer(tmp_path / "store") as writer:
        for number in range(9):
            writer.add(str(number), {"region_features": np.random.default_rng(number).normal(size=(3, 20))})
    export_tsv(RegionFeatureStore.open(tmp_path / "store"), tmp_path / "f.tsv")

    def convert(output):
        return import_tsv(tmp_path / "f.tsv", output, images_per_shard=4)

    convert(tmp_path / "whole")
    for limit in (0, 60, 200, 500):
        value, _ = call(limited, limit, convert, tmp_path / str(limit))
        assert isinstance(value, OSError)
        assert str(value.filename).startswith(str(tmp_path / str(limit)))
        convert(tmp_path / str(limit))
        assert files_of(tmp_path / str(limit)) == files_of(tmp_path / "whole")


def test_scores(tokenizer, tmp_path):
    model = MengziOscarForImageTextRetrieval(tiny_config()).eval()
    matcher = Matcher(model, MengziOscarProcessor(tokenizer, max_length=12, max_regions=5))
    images = [{"region_features": np.full((3, 22), number, np.float32), "tags": ["猫"]} for number in range(50)]

    def score(path):
        return np.array(score_matrix(matcher, images, ["一只猫", "狗"] * 20, path))

    expected = score(tmp_path / "whole" / "scores.npy")
    for limit in (0, 100, 600, 2000):
        path = tmp_path / str(limit) / "scores.npy"
        value, _ = call(limited, limit, score, path)
        assert isinstance(value, OSError)
        assert str(value.filename).startswith(str(path))
        np.testing.assert_array_equal(score(path), expected)
        assert sorted(file.name for file in path.parent.iterdir()) == ["scores.npy", "scores.npy.json"]


def test_pictures(photos, tiny_checkpoint, grid, tmp_path):
    photo, picture = str(photos / "1.png"), tmp_path / "picture.png"
    for command in (
        ["caption", photo, "--model", str(tiny_checkpoint), "--picture", str(picture)],
        ["extract", photo, "--model", grid, "--output", str(tmp_path / "store"), "--picture", str(picture)],
    ):
        status, said = call(limited, 500, main, command)
        assert (status, said[-1:]) == (2, [f"{picture}: File too large; free some space, then start again"])
        assert not list(tmp_path.glob("picture*"))
