"""Chinese captions in the real lmms-eval, where it is installed: `make .venv/lmms-eval` brings it without what it does
not import for these tasks, in a folder of its own, since it wants older protobuf and filelock than the lock has.
"""

import configparser
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, shared_path

from evaluation import prepare
from metrics.caption_zh.scores import caption_scores
from modeling_mengzi_oscar import MengziOscarPipeline

MINI = REPOSITORY / "checkpoints" / "mengzi-oscar-mini"
FOLDER = REPOSITORY / ".venv" / "lmms-eval"
PHOTOS = 20
RUN = """
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
model, model_args, tasks = sys.argv[1:]
manager = TaskManager("ERROR", include_path=tasks, include_defaults=False, model_name=model)
results = simple_evaluate(
    model=model, model_args=model_args, tasks=["flickr8k_cn_caption"], task_manager=manager, batch_size=8,
    device="cpu", log_samples=True, bootstrap_iters=0,
)
samples = results["samples"]["flickr8k_cn_caption"]
print(json.dumps({
    "scores": results["results"]["flickr8k_cn_caption"],
    "tasks": manager.all_tasks,
    "captions": {row["doc"]["image_id"]: row["filtered_resps"][0] for row in samples},
}))
"""


@pytest.fixture
def harness(tmp_path):
    """Variables of a process that has lmms-eval and finds our model among the entry points."""
    if importlib.util.find_spec("lmms_eval") is None and not FOLDER.is_dir():
        pytest.skip("lmms-eval is not installed: make .venv/lmms-eval")
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg", "utf-8")
    plugin = tmp_path / "site" / "plugin-1.dist-info"  # as an installed package of ours has it
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    lines = config["options.entry_points"]["lmms_eval.models"].strip()
    (plugin / "entry_points.txt").write_text(f"[lmms_eval.models]\n{lines}\n")
    places = [plugin.parent, REPOSITORY, FOLDER, os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def photos(tmp_path, monkeypatch, capsys):
    """The first photos of Flickr8k-CN's test split, where the tasks look for them."""
    source, folder = shared_path("data/flickr8k-cn"), tmp_path / "flickr8k-cn"
    (folder / "images").mkdir(parents=True)
    names = (source / "original" / "flickr8ktest.txt").read_text("utf-8").split()[:PHOTOS]
    for name in names:
        shutil.copy(source / "images" / f"{name}.jpg", folder / "images")
    lines = (source / "original" / "flickr8kzhc.caption.txt").read_text("utf-8").splitlines(keepends=True)
    chosen = [line for line in lines if line.partition(".jpg")[0] in names]
    (folder / "flickr8kzhc.caption.txt").write_text("".join(chosen), "utf-8")
    for split, members in {"train": [], "val": [], "test": names}.items():
        (folder / f"flickr8k{split}.txt").write_text("".join(f"{name}\n" for name in members), "utf-8")
    monkeypatch.chdir(tmp_path)
    assert prepare.main(["flickr8k_cn", "--data-dir", str(folder), "--cache-dir", str(tmp_path / "cache")]) == 0
    assert f"chinese_captions/flickr8k_cn: {PHOTOS} photos" in capsys.readouterr().out
    return folder / "images"


def test_the_mini_gets_our_scores(harness, photos, tmp_path):
    tasks = REPOSITORY / "evaluation" / "tasks"
    command = [sys.executable, "-c", RUN, "mengzi_oscar", f"pretrained={MINI},dtype=float32,num_beams=2", str(tasks)]
    run = subprocess.run(command, cwd=tmp_path, env=harness, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])
    assert {"flickr8k_cn_caption", "coco_cn_caption", "aic_icc_caption"} <= set(result["tasks"])
    paths = sorted(photos.iterdir())
    pipe = MengziOscarPipeline.from_pretrained(MINI, dtype="float32")
    captions = {path.stem: row["caption"] for path, row in zip(paths, pipe.caption(paths, num_beams=2), strict=True)}
    assert result["captions"] == captions
    references = {}
    for line in (photos.parent / "flickr8kzhc.caption.txt").read_text("utf-8").splitlines():
        references.setdefault(line.partition(".jpg")[0], []).append(line.split(maxsplit=1)[1])
    for level, segment in {"char": "char", "word": "jieba"}.items():
        expected = caption_scores(list(captions.values()), [references[name] for name in captions], segment)
        for metric in ("bleu_4", "meteor_exact", "rouge_l", "cider_d"):
            found = [value for name, value in result["scores"].items() if name.startswith(f"{level}_{metric},")]
            assert found[0] == pytest.approx(expected[metric]), metric


def test_photos_that_are_not_there_are_told_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prepare.main(["flickr8k_cn", "--data-dir", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    (tmp_path / "chinese_captions" / "flickr8k_cn").mkdir(parents=True)
    assert prepare.main(["flickr8k_cn", "--data-dir", str(tmp_path)]) == 2
    assert "exists; remove it first" in capsys.readouterr().err


def test_photos_that_no_evaluation_could_read_are_refused_at_once(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(data_dir, tmp_path / "data")
    arguments = ["flickr8k_cn", "--data-dir", str(folder), "--cache-dir", str(tmp_path / "cache")]
    for limit in ("0", "-1"):
        assert prepare.main([*arguments, "--limit", limit]) == 2
        assert f"--limit is {limit}; it takes 1 or more" in capsys.readouterr().err
    (folder / "images" / "photo5.jpg").write_text("no photo")
    assert prepare.main(arguments) == 2
    assert "photo5.jpg: not a photo we can read" in capsys.readouterr().err
    assert not (tmp_path / "chinese_captions" / "flickr8k_cn").exists()
