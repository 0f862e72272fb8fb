"""What the READMEs show is run: commands on a sample photo, the training of the mini for two steps a stage.

Their code and their commands with outputs are run and compared in test_printed_outputs.py.
"""

import re
import shlex
import shutil

import caption
import datasets
import extract_features
import pytest
import start_mini
from conftest import REPOSITORY
from PIL import Image

from modeling_mengzi_oscar import cli
from modeling_mengzi_oscar.demo.samples import sample_photos

BOTH = pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
SCRIPTS = {"mini/start_mini": start_mini, "extract_features": extract_features, "caption": caption}


def blocks(name, language=""):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for written_in, block in found if written_in == language]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with photo.jpg, photos/ and the bundled checkpoint, to stand in."""
    Image.open(sample_photos()["astronaut"][0]).convert("RGB").save(tmp_path / "photo.jpg")
    (tmp_path / "photos").mkdir()
    shutil.copy(tmp_path / "photo.jpg", tmp_path / "photos" / "1.jpg")
    (tmp_path / "checkpoints").symlink_to(REPOSITORY / "checkpoints")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@BOTH
def test_commands(name, folder, capsys):
    """Those whose output the page does not show; the others are in test_printed_outputs.py."""
    [more] = [block for block in blocks(name, "bash") if "environment" in block]
    commands = re.findall(r"^mengzi-oscar (.*)", more, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert cli.main(shlex.split(command, comments=True)) == 0
        assert capsys.readouterr().out.strip()
    assert (folder / "captions.csv").is_file()


@BOTH
def test_the_road_of_the_released_weights(name):
    """Three commands, each of them on the page whose commands are run one after the other."""
    [road] = [block for block in blocks(name, "bash") if "vinvl" in block]
    assert len(road.splitlines()) == 3
    run = "".join(blocks("docs/released_weights.md", "bash"))
    for command in road.splitlines():
        assert f"{command}\n" in run


def test_commands_for_many_photos(folder, capsys):
    shutil.copy("photo.jpg", "a.jpg")
    (folder / "list.csv").write_text("image_id,path\n1,photo.jpg\n")
    [block, *_] = blocks("docs/many_photos.md")
    commands = re.findall(r"^\$ mengzi-oscar (.*)", block, flags=re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        assert cli.main(shlex.split(command, comments=True)) == 0
        assert capsys.readouterr().out.strip()
    for name in ("captions.csv", "answers.csv", "stored.jsonl"):
        assert (folder / name).read_text("utf-8-sig").strip()


@BOTH
def test_training_of_the_mini(name, data_dir, folder, monkeypatch):
    """The block's own lines in their order, tiny and two steps a stage; what they leave captions a photo."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    (folder / "data").mkdir()
    (folder / "data" / "flickr8k-cn").symlink_to(data_dir)
    (folder / "train").symlink_to(REPOSITORY / "train")
    tiny = ["--hidden_size", "64", "--num_layers", "2", "--num_tags", "2", "--backbone", "test_efficientnet"]
    short = ["--max_steps", "2", "--eval_steps", "2", "--save_steps", "2", "--num_beams", "2", "--report_to", "none"]
    short += ["--per_device_train_batch_size", "2", "--dataloader_num_workers", "0", "--use_cpu"]
    more = {"mini/start_mini": [*tiny, "--random_backbone"], "extract_features": ["--use_cpu"], "caption": short}
    [block] = [block for block in blocks(name) if "train/mini/start_mini.py" in block]
    commands = re.findall(r"^(?:python|accelerate launch) train/([\w/]+)\.py (.*)", block, flags=re.MULTILINE)
    assert [script for script, _ in commands] == ["mini/start_mini", *["extract_features"] * 2, *["caption"] * 3]
    for script, flags in commands:
        SCRIPTS[script].main([*shlex.split(flags), *more[script]])
    assert cli.main(["caption", "photo.jpg", "--model", "outputs/stage3/best"]) == 0
