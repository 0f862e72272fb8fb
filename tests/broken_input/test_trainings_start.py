"""Documented trainings start, and start again: from pixels, beside folders of other names, on damaged checkpoints."""

import json
import random
import resource
import shutil
import zipfile

import caption
import datasets
import numpy as np
import pytest
import torch
from common.trainer import OscarTrainer
from conftest import newest_checkpoint, tiny_captioner
from forks import call
from PIL import Image
from test_trainer_surface import make_trainer
from test_vinvl import random_model
from transformers import BertTokenizer

from modeling_mengzi_oscar import (
    GridRegionConfig,
    GridRegionImageProcessor,
    GridRegionModel,
    MengziOscarForImageCaptioning,
    MengziOscarPipeline,
    MengziOscarProcessor,
    VinVLImageProcessor,
)
from modeling_mengzi_oscar.generation_mengzi_oscar import published_generation_config
from modeling_mengzi_oscar.hub import save_checkpoint


def flags(*switches, **settings):
    settings = {
        "dataset": "image_captions",
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "num_beams": 1,
        "max_gen_length": 6,
        "report_to": "none",
        "use_cpu": "true",
        "disable_tqdm": "true",
    } | settings
    return [*switches, *(f"--{name}={value}" for name, value in settings.items())]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Five photos of three sizes, some of them to test on."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder, draws = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    lines = ["file_name,caption,split"]
    sizes, splits = [(60, 80), (80, 60), (60, 80), (70, 70), (60, 80)], ["train", "validation", "test", "test", "test"]
    for number, ((height, width), split) in enumerate(zip(sizes, splits, strict=True)):
        pixels = draws.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,一只猫,{split}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_from_pixels_where_tags_are_classes_of_the_backbone(photos, tiny_checkpoint, tmp_path):
    """There is no tag head to train."""
    tags = {"tag_labels": ["狗", "猫"], "tag_classes": [1, 2, 2], "tag_threshold": 0.0}
    config = GridRegionConfig(backbone="test_efficientnet", num_features=256, grid_size=2, **tags)
    captioner = MengziOscarForImageCaptioning.from_pretrained(tiny_checkpoint)
    processor = MengziOscarProcessor.from_pretrained(tiny_checkpoint)
    image_processor = GridRegionImageProcessor(size={"height": 64, "width": 64})
    start = tmp_path / "start"
    save_checkpoint(start, captioner, processor, GridRegionModel(config), image_processor, dtype=torch.float32)
    caption.main(flags("--do_train", model_name_or_path=start, data_dir=photos, output_dir=tmp_path / "run"))
    result = MengziOscarPipeline.from_pretrained(tmp_path / "run" / "best").caption(str(photos / "0.png"))
    assert isinstance(result["caption"], str)


def test_from_pixels_with_a_detector(photos, tiny_checkpoint, tmp_path, capsys):
    """Captions are those of each photo alone, whatever sizes meet; training asks for features before any work."""
    torch.manual_seed(1)
    processor = MengziOscarProcessor(BertTokenizer.from_pretrained(tiny_checkpoint), max_regions=9)
    names = {
        "id2label": {i: "狗猫马人"[i % 4] for i in range(1, 31)},
        "id2attribute": dict.fromkeys(range(1, 25), "大"),
    }
    vinvl, start = random_model(**names), tmp_path / "start"
    image_processor = VinVLImageProcessor(96, 160)
    with torch.inference_mode():
        regions = vinvl(**image_processor(Image.open(photos / "0.png"))).region_features
    captioner = tiny_captioner(img_feature_dim=regions.shape[-1])
    captioner.generation_config = published_generation_config(captioner.config, max_length=6, num_beams=2)
    save_checkpoint(start, captioner, processor, vinvl, image_processor, dtype=torch.float32)
    settings = {"model_name_or_path": start, "data_dir": photos, "output_dir": tmp_path / "run"}
    with pytest.raises(SystemExit, match="mengzi-oscar extract .*--features is missing"):
        caption.main(flags("--do_train", **settings))
    assert not (tmp_path / "run").exists()
    caption.main(flags("--do_predict", max_img_seq_length=9, **settings))
    rows = [json.loads(line) for line in (tmp_path / "run" / "captions.jsonl").read_text("utf-8").splitlines()]
    pipeline = MengziOscarPipeline.from_pretrained(start)
    alone = [pipeline.caption(str(photos / f"{number}.png"), num_beams=1)["caption"] for number in (2, 3, 4)]
    assert [row["image_id"] for row in rows] == ["2", "3", "4"]
    assert [row["caption"] for row in rows] == alone


def test_the_best_is_chosen_as_asked(tmp_path):
    """`--greater_is_better` is not overruled; what nothing scores is said before the work."""
    worths = iter([3.0, 1.0, 2.0])
    settings = {"best_metric": "worth", "max_steps": 6, "eval_steps": 2, "greater_is_better": False}
    trainer = make_trainer(tmp_path, evaluate_task=lambda model: ({"worth": next(worths)}, []), **settings)
    trainer.run()
    assert trainer.state.best_metric == 1.0
    with pytest.raises(SystemExit, match="--metric_for_best_model rouge: an evaluation gives loss, worth"):
        make_trainer(tmp_path, evaluate_task=print, metric_for_best_model="rouge", **settings)


def test_a_report_ends_no_training(tmp_path, capsys):
    """A score that cannot be made, a sample of other form: said, left out; best/ and checkpoint are there."""
    samples = [{"image_id": "a", "image": None, "lines": [3]}]
    settings = {"best_metric": "worth", "max_steps": 2, "save_steps": 2, "eval_steps": 2}
    make_trainer(tmp_path, evaluate_task=lambda model: ({}, samples), **settings).run()
    assert "left out: samples (TypeError" in capsys.readouterr().err
    assert (tmp_path / "best" / "README.md").is_file()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("settings", [{"a": 1}, "hello"])
def test_a_schedule_without_such_a_setting(tmp_path, settings):
    with pytest.raises(ValueError, match=f"--lr_scheduler_kwargs {settings} of linear: "):
        make_trainer(tmp_path, lr_scheduler_kwargs=settings).run()


@pytest.mark.parametrize("share", [0.5, 1.5])  # no room for the weights; for these, and not for the optimizer's two
def test_a_full_disk_names_the_run(trained, tmp_path, share):
    def run():
        size = (trained / "checkpoint-4" / "model.safetensors").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), resource.RLIM_INFINITY))
        make_trainer(tmp_path, patience=0, max_steps=2, eval_strategy="no").run()

    error, _ = call(run)
    assert isinstance(error, OSError)
    assert str(error).startswith(f"{tmp_path}: a checkpoint cannot be written (")
    assert str(error).endswith("; free some space, then start again")


def test_folders_of_other_names_are_somebodys_own(tmp_path):
    for name in ("checkpoint-best", "checkpoint-2-backup", "checkpoint-", "checkpoint-007", "checkpoint-x-3"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weight_average.safetensors").touch()
    (tmp_path / "checkpoint-9").write_text("a file")
    for steps in (4, 6):
        make_trainer(tmp_path, max_steps=steps, save_total_limit=1).run()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    assert len(list(tmp_path.glob("checkpoint-*"))) == 7


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    torch.manual_seed(0)
    make_trainer(folder, decay=0.9, max_steps=4).run()
    return folder


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def text(file):
    file.write_text("<html>404</html>")


def flip(file):
    """A byte in the middle of what is checked: the header of safetensors, the values of an archive."""
    data = bytearray(file.read_bytes())
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            largest = max(archive.infolist(), key=lambda member: member.file_size)
        place = largest.header_offset + 200
    else:
        place = 20
    data[place] ^= 255
    file.write_bytes(data)


FILES = (
    *("model.safetensors", "weight_average.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    "trainer_state.json",
)


def remove(file):
    file.unlink()


@pytest.mark.parametrize("damage", [cut, empty, text, flip, remove])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(trained, tmp_path, capsys, monkeypatch, damage):
    begun = []
    monkeypatch.setattr(
        OscarTrainer, "train", lambda self, resume_from_checkpoint: begun.append(resume_from_checkpoint)
    )
    monkeypatch.setattr(OscarTrainer, "evaluate", lambda self: None)
    for name in FILES:
        run = tmp_path / name
        shutil.copytree(trained, run)
        if damage is remove and name == "weight_average.safetensors":
            continue  # without it a checkpoint never counted
        damage(run / "checkpoint-4" / name)
        make_trainer(run, max_steps=6).run()
        assert begun.pop() == str(run / "checkpoint-2")
        assert f"{run / 'checkpoint-4' / name} is " in capsys.readouterr().err
        assert (run / "damaged-checkpoint-4").is_dir()
        damage(run / "checkpoint-2" / name)
        with pytest.raises(SystemExit, match=f"checkpoint-2/{name} is .*delete"):
            make_trainer(run, max_steps=6).run()


STATES = [
    {"global_step": "four"},
    {"global_step": 2},
    {"epoch": None},
    {"log_history": {}},
    {"log_history": [3]},
    {"stateful_callbacks": {"EarlyStoppingCallback": 5}},
    {"stateful_callbacks": {"EarlyStoppingCallback": {}}},
    {"best_metric": "high"},
    {"colour": "red"},
]


def test_states_of_other_kinds(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "checkpoint-2")
    file = run / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    for change in STATES:
        file.write_text(json.dumps(state | change))
        with pytest.raises(SystemExit, match="checkpoint-4/trainer_state.json is damaged"):
            make_trainer(run, max_steps=6).run()


def test_a_checkpoint_of_another_model(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    trainer = make_trainer(tmp_path / "run", max_steps=6)
    trainer.model = tiny_captioner(hidden_size=64)
    with pytest.raises(SystemExit, match="weight_average.safetensors is of another model .*this training has"):
        trainer.run()


def test_a_resumed_run_has_the_rows_of_a_whole_one(tmp_path, monkeypatch):
    """Also where a checkpoint belongs to the last step of an epoch, after which it is evaluated."""

    def run(folder):
        torch.manual_seed(0)
        make_trainer(folder, max_steps=6, save_steps=2, eval_strategy="epoch").run()
        return (folder / "scores.md").read_text()

    whole, step, killed_at = run(tmp_path / "whole"), OscarTrainer.training_step, random.choice([4, 5])

    def training_step(self, *args, **kwargs):
        if self.state.global_step == killed_at:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(OscarTrainer, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    monkeypatch.setattr(OscarTrainer, "training_step", step)
    assert run(tmp_path / "killed") == whole, f"killed at step {killed_at}"
