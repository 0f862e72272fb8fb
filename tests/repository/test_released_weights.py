"""docs/released_weights.md, run as it is printed: every command in its order, with tiny stand-ins for the downloads.

MENGZI_OSCAR_FULL_SIZE=1 makes them as large as what was released, with random weights: 9 GB on the disk, 5 GB of
memory, and half an hour on two cores.
"""

import base64
import contextlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import caption
import datasets
import numpy as np
import psutil
import pytest
import retrieval
import torch
import vqa
from builders import copy_files
from conftest import CHARACTERS, REPOSITORY, SPECIAL_TOKENS, tiny_config
from PIL import Image
from test_vinvl import TINY, random_model, random_photos

from modeling_mengzi_oscar import (
    MengziOscarConfig,
    MengziOscarForImageCaptioning,
    MengziOscarForImageTextRetrieval,
    VinVLConfig,
    cli,
)

PAGES = ["released_weights.md", "released_weights_zh.md"]
SCRIPTS = {"caption": caption, "retrieval": retrieval, "vqa": vqa}
SHORT = {  # what makes a published training short, by recipe; the flags of the page stay
    "train": "--max_steps 2 --eval_steps 2 --save_steps 2 --eval_strategy steps --save_strategy steps --report_to none "
    "--per_device_train_batch_size 2 --per_device_eval_batch_size 2 --dataloader_num_workers 0 --use_cpu",
    "predict": "--per_device_eval_batch_size 2 --dataloader_num_workers 0 --use_cpu --report_to none",
}
FULL_SIZE = os.environ.get("MENGZI_OSCAR_FULL_SIZE") == "1"
PHOTOS = 6 if FULL_SIZE else 3
ACCELERATE = "accelerate.commands.accelerate_cli"
VOCABULARY = SPECIAL_TOKENS + CHARACTERS
if FULL_SIZE:
    VOCABULARY += [f"[unused{number}]" for number in range(21_128 - len(VOCABULARY))]


def text_of(page):
    return (REPOSITORY / "docs" / page).read_text(encoding="utf-8")


def commands_of(page):
    blocks = re.findall(r"^```bash\n(.*?)^```$", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder after the downloads: small files under the names that the page has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # of the processes that FULL_SIZE starts
    detector = full_detector() if FULL_SIZE else random_model()
    config = detector.config
    width = detector.config.region_feature_size
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    for name in [name for name in state if "feature_extractor" in name]:  # under both names, as released
        state[name.replace("roi_heads.box.", "attribute.")] = state[name].clone()
    torch.save({"model": state}, "vinvl_vg_x152c4.pth")
    words = {f"thing {number}": number for number in range(1, config.num_classes)}
    kinds = {f"kind {number}": number for number in range(1, config.num_attributes)}
    write_json("VG-SGG-dicts-vgoi6-clipped.json", {"label_to_idx": words, "attribute_to_idx": kinds})
    write_json("chinese_label.json", {word: CHARACTERS[number % 20] for word, number in words.items()})
    original("Langboat/mengzi-oscar-base-caption", MengziOscarForImageCaptioning, width, tie_weights=True)
    original("Langboat/mengzi-oscar-base-retrieval", MengziOscarForImageTextRetrieval, width, num_labels=2)
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(random_photos(PHOTOS)):
        photo.save(tmp_path / "photos" / f"{number}.jpg")
    shutil.copy("photos/0.jpg", "photo.jpg")
    copy_files("aic_icc", tmp_path)
    for number, path in enumerate(sorted(tmp_path.glob("aic_icc/**/*.jpg"))):
        Image.effect_noise((90, 120), 30 + number).convert("RGB").save(path)
    (tmp_path / "aic_icc").rename("aic-icc")
    copy_files("coco_caption-oscar", tmp_path).rename("coco_caption")
    for file in sorted((tmp_path / "coco_caption").glob("train*")):  # the fixture has no val
        copy = file.with_name(file.name.replace("train", "val"))
        copy.write_text(file.read_text("utf-8").replace("train", "val"), encoding="utf-8")
    copy_files("vqa-oscar", tmp_path).rename("vqa")
    photos = [row["img_id"] for file in (tmp_path / "vqa").glob("*_qla*.json") for row in json.loads(file.read_text())]
    write_features("train", width, more=photos)
    write_features("val", width)
    (tmp_path / "train").symlink_to(REPOSITORY / "train")
    return tmp_path


def full_detector():
    sizes = inspect.signature(VinVLConfig.__init__).parameters
    detector = random_model(**{name: sizes[name].default for name in TINY})
    with torch.no_grad():
        for name, value in detector.named_parameters():
            if "conv3" in name:  # fifty random blocks would otherwise add up to numbers that float16 does not have
                value *= 0.05
    return detector


def write_json(name, content):
    with open(name, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False)


def original(name, model_class, width, **fields):
    torch.manual_seed(0)
    config = MengziOscarConfig(vocab_size=len(VOCABULARY), use_img_layernorm=True) if FULL_SIZE else tiny_config()
    config = MengziOscarConfig(**config.to_dict() | {"img_feature_dim": width} | fields)
    model = model_class(config)
    names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings"
    said = {name: getattr(model.config, name) for name in [*names.split(), "img_feature_dim", "use_img_layernorm"]}
    folder = Path(name)
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    write_json(folder / "config.json", said | fields)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")


def write_features(split, width, more=()):
    """<split>.feature.tsv and .label.tsv as released, for the photos of the split's labels and `more`."""
    tables = Path("coco_caption")
    names = [line.split("\t")[0] for line in (tables / f"{split}.label.tsv").read_text("utf-8").splitlines()]
    names = dict.fromkeys([*names, *map(str, more)])
    features = base64.b64encode(np.random.default_rng(0).random((3, width), dtype=np.float32).tobytes()).decode()
    objects = [{"class": f"thing {one}", "rect": [1.0, 2.0, 30.0, 40.0], "conf": 0.9} for one in (1, 2, 3)]
    for what, content in (("feature", {"num_boxes": 3, "features": features}), ("label", objects)):
        rows = "".join(f"{name}\t{json.dumps(content)}\n" for name in names)
        (tables / f"{split}.{what}.tsv").write_text(rows, encoding="utf-8")


def short(command):
    return SHORT["train" if "--do_train" in command else "predict"].split()


def run_and_measure(command):
    """Runs a command as a person does, in a process of its own; prints time, memory and what lies there then."""
    programs = {"mengzi-oscar": ["-m", "modeling_mengzi_oscar"], "accelerate": ["-m", ACCELERATE], "python": []}
    words = command[1:] if command[0] == "mengzi-oscar" else [*command[1:], *short(command)]
    print(f"\n$ {shlex.join(command)}", file=sys.__stdout__, flush=True)  # past capsys
    start, memory = time.perf_counter(), 0  # of the largest process; rusage has at least that of pytest
    process = subprocess.Popen([sys.executable, *programs[command[0]], *words])
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        with contextlib.suppress(psutil.NoSuchProcess):
            watched = psutil.Process(process.pid)
            memory = max(memory, *(one.memory_info().rss for one in [watched, *watched.children(recursive=True)]))
        time.sleep(0.2)
    _, status, used = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = f"{time.perf_counter() - start:.0f} s ({used.ru_utime + used.ru_stime:.0f} s of one core)"
    disk = sum(file.lstat().st_size / file.lstat().st_nlink for file in Path().rglob("*") if file.is_file())
    sizes = f"{memory / 1e9:.1f} GB of memory, {disk / 1e9:.1f} GB in the folder"
    print(f"# {seconds}, {sizes}", file=sys.__stdout__, flush=True)
    assert process.returncode == 0, command


def test_both_pages_show_the_same_commands():
    assert commands_of(PAGES[0]) == commands_of(PAGES[1])
    assert len(commands_of(PAGES[0])) == 19


@pytest.mark.parametrize("page", PAGES[:1])
def test_every_command(page, folder, capsys):
    for command in commands_of(page):
        if FULL_SIZE:
            run_and_measure(command)
            continue
        if command[0] == "mengzi-oscar":
            assert cli.main(command[1:]) == 0, (command, capsys.readouterr().err)
            continue
        script = next(word for word in command if word.endswith(".py"))
        flags = command[command.index(script) + 1 :]
        SCRIPTS[script.removeprefix("train/").removesuffix(".py")].main([*flags, *short(command)])
    examples = text_of(page) + text_of("vinvl.md")  # which begins with the same conversion
    for code in re.findall(r"^```python\n(.*?)^```$", examples, flags=re.MULTILINE | re.DOTALL):
        exec(code, {})
    assert len((folder / "captions.jsonl").read_text("utf-8").splitlines()) == PHOTOS
    scores = json.loads((folder / "outputs/aic-icc-scores/scores.json").read_text("utf-8"))
    assert any(name.startswith("aic_icc_") for name in scores)
