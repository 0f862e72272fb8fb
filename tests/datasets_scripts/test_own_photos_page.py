"""docs/own_photos.md and its Chinese twin: the commands as printed, in their order, on a few drawn photos."""

import re
import shlex
import subprocess

import caption
import datasets
import pytest
import retrieval
from conftest import REPOSITORY

from modeling_mengzi_oscar import cli

ENGLISH, CHINESE = ((REPOSITORY / "docs" / name).read_text("utf-8") for name in ("own_photos.md", "own_photos_zh.md"))
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SCRIPTS = {"train/caption.py": caption, "train/retrieval.py": retrieval}
FEW_STEPS = "--max_steps 2 --eval_steps 2 --save_steps 2 --per_device_train_batch_size 2 --use_cpu"  # of 180 and 60


def test_the_journey(data, tmp_path, monkeypatch, capsys):
    data("image_captions").rename(tmp_path / "my-photos")
    for name in ("checkpoints", "train"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run = []
    for language, block in BLOCK.findall(ENGLISH):
        if language == "python":
            exec(block, {})
            continue
        for line in block.splitlines():
            program, *words = shlex.split(line, comments=True)
            run.append(words[0])
            if program == "python":
                SCRIPTS[words[0]].main([*words[1:], *FEW_STEPS.split()])
            elif program == "rm":
                subprocess.run([program, *words], check=True)
            else:
                assert program == "mengzi-oscar"
                capsys.readouterr()
                assert cli.main(words) == 0, line
                assert capsys.readouterr().out.strip(), line
    assert run == ["extract", "train/caption.py", "caption", "search", "train/retrieval.py", "-r", "convert", "search"]


@pytest.mark.parametrize("pattern", [BLOCK, re.compile("^    .*|^#+ [0-9]", flags=re.MULTILINE)])
def test_both_pages_are_alike(pattern):
    """The same commands and the same steps; of indented blocks only one line is in words."""
    english, chinese = pattern.findall(ENGLISH), pattern.findall(CHINESE)
    assert len(english) == len(chinese) >= 5
    assert sum(one != other for one, other in zip(english, chinese, strict=True)) <= 1


def test_both_pages_have_the_same_numbers():
    tables = ["\n".join(re.findall(r"^\|.*", text, flags=re.MULTILINE)) for text in (ENGLISH, CHINESE)]
    numbers = [re.findall(r"\d+(?:\.\d+)?", table) for table in tables]
    assert numbers[0] == numbers[1] != []
