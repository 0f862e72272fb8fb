"""What a training did not change of its checkpoint comes along into best/: no bytes are copied, the start stays."""

import os
import shutil

import pytest
import torch
from conftest import tiny_captioner, tiny_config
from safetensors.torch import load_file

from modeling_mengzi_oscar import MengziOscarForImageTextRetrieval, MengziOscarPipeline
from modeling_mengzi_oscar.checkpoint_folder import CheckpointFolder
from modeling_mengzi_oscar.generation_mengzi_oscar import published_generation_config
from modeling_mengzi_oscar.hub import add_head, assemble, check_repo, save_checkpoint
from modeling_mengzi_oscar.hub.repo import save_in_dtype
from modeling_mengzi_oscar.loading import load_processor, load_region_model

REGIONS = "region_model/model.safetensors"


@pytest.fixture(scope="module")
def start(tiny_checkpoint, tmp_path_factory):
    """A captioner whose region model is stored in float32, with a match/ head."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("start") / "start")
    region_model, image_processor = load_region_model(tiny_checkpoint)
    for part in (region_model, image_processor):
        part.save_pretrained(folder / "region_model")
    head = MengziOscarForImageTextRetrieval(tiny_config(img_feature_dim=262))
    save_checkpoint(folder.with_name("head"), head, load_processor(tiny_checkpoint), task="retrieval")
    add_head(folder, folder.with_name("head"), "match")
    assemble(folder)
    return folder


@pytest.fixture
def captioner():
    model = tiny_captioner(img_feature_dim=262, region_model="region_model")
    model.generation_config = published_generation_config(model.config, max_length=8, num_beams=2)
    return model


def bytes_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save(start, model, output, *trained, **settings):
    save_checkpoint(output, model, load_processor(start), *trained, start=CheckpointFolder(start), **settings)
    return output


def test_region_model_and_heads_stay_one_file_with_two_names(start, captioner, tmp_path):
    before = bytes_of(start)
    for _ in range(2):  # every evaluation that is the best so far
        best = save(start, captioner, tmp_path / "best")
    for name in (REGIONS, "match/model.safetensors"):
        assert (best / name).samefile(start / name)
    assert {tensor.dtype for tensor in load_file(best / REGIONS).values()} >= {torch.float32}
    assert not (best / "config.json").samefile(start / "config.json")
    assert not (best / "region_model" / "config.json").samefile(start / "region_model" / "config.json")
    sent = {path.as_posix() for path in check_repo(best)}
    assert {REGIONS, "match/model.safetensors", "match/vocab.txt", "model.safetensors"} <= sent
    pipeline, photo = MengziOscarPipeline.from_pretrained(best), torch.zeros(30, 40, 3, dtype=torch.uint8).numpy()
    assert len(pipeline.match(photo, ["一只狗", "一只猫"])) == 2
    card = (best / "README.md").read_text("utf-8")
    assert card.count("\n## match/\n") == card.count('pipeline("mengzi-oscar-matching"') == 1
    # what is written over it later takes its name, and leaves the file of the start what it is
    assemble(best)
    pipeline.save_pretrained(best)
    save_checkpoint(best, captioner, load_processor(best), *load_region_model(best))
    assert bytes_of(start) == before


def test_where_the_disk_has_no_links_it_is_a_copy(start, captioner, tmp_path, monkeypatch):
    def link(*names):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    best = save(start, captioner, tmp_path / "best")
    assert (best / REGIONS).stat().st_nlink == 1
    ours, theirs = load_file(best / REGIONS), load_file(start / REGIONS)
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)
    assert check_repo(best)


def test_a_region_model_in_a_repo_stays_a_name(start, captioner, tmp_path):
    captioner.config.region_model = "org/detector@" + "0" * 40
    best = save(start, captioner, tmp_path / "best")
    assert CheckpointFolder(best).json("config.json")["region_model"] == captioner.config.region_model
    assert not (best / "region_model").exists()
    assert (best / "match" / "config.json").exists()


def test_another_head_keeps_the_region_model_alone(start, tmp_path):
    model = MengziOscarForImageTextRetrieval(tiny_config(img_feature_dim=262, region_model="region_model"))
    best = save(start, model, tmp_path / "best", task="retrieval")
    assert (best / REGIONS).samefile(start / REGIONS)
    assert not (best / "match").exists()
    assert load_region_model(best)
    assert check_repo(best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_region_model_that_learnt_nothing_keeps_the_heads(start, captioner, tmp_path, dtype):
    """Of a run that may train it: the evaluation before its first step, or where training made nothing better."""
    stored = shutil.copytree(start, tmp_path / "start")
    region_model, image_processor = load_region_model(start)
    save_in_dtype(region_model, stored / "region_model", dtype)
    best = save(stored, captioner, tmp_path / "best", *load_region_model(stored))
    assert (best / REGIONS).samefile(stored / REGIONS)
    assert (best / "match" / "model.safetensors").samefile(stored / "match" / "model.safetensors")
    with torch.no_grad():
        next(region_model.parameters()).add_(1)
    save(stored, captioner, tmp_path / "best", region_model, image_processor)
    assert not (best / "match").exists()
    assert "## match/" not in (best / "README.md").read_text("utf-8")


def test_a_trained_region_model_keeps_its_dtype(start, tiny_checkpoint, captioner, tmp_path):
    """And the heads, which read the regions of the old one, stay where they are."""
    for folder, dtype in ((start, torch.float32), (tiny_checkpoint, torch.float16)):
        trained = load_region_model(folder)
        with torch.no_grad():
            next(trained[0].parameters()).add_(1)
        best = save(folder, captioner, tmp_path / "best", *trained)
        stored = load_file(best / REGIONS)
        assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {dtype}
        assert not (best / REGIONS).samefile(folder / REGIONS)
        assert not (best / "match").exists()
