"""What the READMEs show is run: commands on a sample photo, the training on own photos for two steps.

Their code and their commands with outputs are run and compared in test_printed_outputs.py.
"""

import re
import shlex
import shutil

import caption
import datasets
import pytest
from conftest import REPOSITORY
from PIL import Image

from modeling_mengzi_oscar import cli
from modeling_mengzi_oscar.demo.samples import sample_photos

BOTH = pytest.mark.parametrize("name", ["README.md", "README_zh.md"])


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
def test_training_on_own_photos(name, folder, monkeypatch):
    """The block's own lines in their order, two steps; what they leave captions a photo."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    (folder / "my-photos" / "images").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 0, 0)).save(folder / "my-photos" / "images" / f"{number}.jpg")
    table = "file_name,caption\n" + "".join(f"{number}.jpg,一张红色的图。\n" for number in range(3))
    (folder / "my-photos" / "captions.csv").write_text(table, encoding="utf-8")
    (folder / "train").symlink_to(REPOSITORY / "train")
    short = "--max_steps 2 --eval_steps 2 --save_steps 2 --per_device_train_batch_size 2 --num_beams 2 --use_cpu"
    [block] = [block for block in blocks(name) if "train/caption.py --do_train" in block]
    commands = re.findall(r"^(mengzi-oscar|python train/caption\.py) (.*)", block, flags=re.MULTILINE)
    assert [command for command, _ in commands] == ["mengzi-oscar", "python train/caption.py", "mengzi-oscar"]
    for command, flags in commands:
        if command == "mengzi-oscar":
            assert cli.main(shlex.split(flags)) == 0
        else:
            caption.main([*shlex.split(flags), *short.split()])
