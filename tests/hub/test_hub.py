"""A checkpoint folder as a Hub repo: complete, loaded without our package, pushed, pinned, read again offline."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, tiny_captioner, tiny_config
from hub_server import HubServer
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import get_imports

from modeling_mengzi_oscar import MengziOscarForImageTextRetrieval, MengziOscarPipeline, MengziOscarProcessor
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.hub import PACKAGE, assemble, check_repo
from modeling_mengzi_oscar.pipeline_mengzi_oscar import CheckpointError

# In front of every script of a process where the package does not exist, though it is installed here.
WITHOUT_PACKAGE = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_mengzi_oscar":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Nowhere())
try:
    import modeling_mengzi_oscar
    raise SystemExit("the package can still be imported")
except ModuleNotFoundError:
    pass
import json, torch, transformers
repo, photo, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
options["trust_remote_code"] = True
"""
EVERY_AUTO_CLASS = """
config = transformers.AutoConfig.from_pretrained(repo, **options)
for name, reference in config.auto_map.items():
    loaded = getattr(transformers, name).from_pretrained(repo, **options)
    assert type(loaded).__name__ == reference.split(".")[1], (name, type(loaded))
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded).__module__
    if name == "AutoModelForImageTextToText":
        captioner = loaded.float()
        again = sys.argv[4]
        loaded.save_pretrained(again)
processor = transformers.AutoProcessor.from_pretrained(repo, **options)
assert type(processor).__name__ == "MengziOscarProcessor"
region_model = transformers.AutoModel.from_pretrained(repo, subfolder="region_model", dtype="float32", **options)
images = transformers.AutoImageProcessor.from_pretrained(repo, subfolder="region_model", **options)
from PIL import Image
with torch.inference_mode():
    regions = region_model(**images([Image.open(photo)], return_tensors="pt"))
    encoded = processor(tags=region_model.tags(regions), regions=regions)
    [caption] = processor.batch_decode(captioner.generate(**encoded))
resaved = transformers.AutoModelForImageTextToText.from_pretrained(again, trust_remote_code=True)
assert all(torch.equal(a, b) for a, b in zip(resaved.parameters(), captioner.parameters(), strict=True))
"""
PIPELINE = """
pipe = transformers.pipeline("mengzi-oscar-captioning", model=repo, dtype="float32", **options)
assert next(pipe.model.parameters()).dtype == torch.float32
result = pipe(photo, num_beams=2)
several = pipe([photo, photo], num_beams=2)
assert [row["caption"] for row in several] == [result["caption"]] * 2
small = transformers.pipeline("mengzi-oscar-captioning", model=repo, dtype="int8", **options)
assert small.model.bert.encoder.layer[0].output.dense.weight().dtype == torch.qint8
assert len(small(photo, num_beams=2)["captions"]) == 2
print(json.dumps({"caption": locals().get("caption"), "piped": result["caption"], "score": result["score"]}))
"""


def run_python(script, *arguments, **environment):
    """A fresh interpreter, elsewhere, without the package on its path; the JSON of its last line, or its errors."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    environment = {**inherited, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=environment["HF_HOME"])


def answer(process):
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_checkpoint_has_what_it_needs_and_no_more(tiny_checkpoint):
    assert [str(name) for name in check_repo(tiny_checkpoint)] == [
        "README.md",
        "checkpoint_folder.py",
        "checksums.py",
        "confidence.py",
        "config.json",
        "configuration_mengzi_oscar.py",
        "configuration_vinvl.py",
        "fields.py",
        "generation_config.json",
        "generation_mengzi_oscar.py",
        "handler.py",
        "image_processing_vinvl.py",
        "loading.py",
        "matching.py",
        "model.safetensors",
        "modeling_grid_regions.py",
        "modeling_mengzi_oscar.py",
        "modeling_nanodet.py",
        "modeling_object_regions.py",
        "modeling_regions.py",
        "modeling_vinvl.py",
        "openvino_networks.py",
        "photos.py",
        "pipeline_mengzi_oscar.py",
        "precision.py",
        "processing_mengzi_oscar.py",
        "processor_config.json",
        "progress.py",
        "quantization.py",
        "region_model/config.json",
        "region_model/model.safetensors",
        "region_model/preprocessor_config.json",
        "requirements.txt",
        "seen_photos.py",
        "supported_transformers.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]


SUBFOLDER = """
head = transformers.AutoModelForSequenceClassification.from_pretrained(repo, subfolder="match", **options)
assert type(head).__name__ == "MengziOscarForImageTextRetrieval"
pairs = transformers.AutoProcessor.from_pretrained(repo, subfolder="match", **options)
assert pairs.layout == "pair"
inputs = pairs(text=["两个人"], tags=[["马"]], regions=[torch.zeros(3, 262)])
assert head(**inputs).logits.shape == (1, 2)
"""


def test_every_auto_class_and_the_pipeline_from_the_folder_alone(tiny_checkpoint, photo, home, tmp_path):
    """With a second task in a subfolder, whose code lies at the root as all code does."""
    tiny_checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "两个 tasks")
    MengziOscarForImageTextRetrieval(tiny_config(img_feature_dim=262)).save_pretrained(tiny_checkpoint / "match")
    processor = MengziOscarProcessor.from_pretrained(tiny_checkpoint)
    processor.layout = "pair"
    processor.save_pretrained(tiny_checkpoint / "match")
    shutil.copy(tiny_checkpoint / "vocab.txt", tiny_checkpoint / "match")
    assemble(tiny_checkpoint, (tiny_checkpoint / "README.md").read_text(encoding="utf-8"))
    check_repo(tiny_checkpoint)
    expected = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    script = WITHOUT_PACKAGE + EVERY_AUTO_CLASS + SUBFOLDER + PIPELINE
    process = run_python(
        script, tiny_checkpoint, photo, "{}", tmp_path / "again", HF_HOME=str(home), HF_HUB_OFFLINE="1"
    )
    result = answer(process)
    assert result["caption"] == expected.caption(str(photo))["caption"]
    assert result["piped"] == expected.caption(str(photo), num_beams=2)["caption"]
    assert result["score"] == pytest.approx(expected.caption(str(photo), num_beams=2)["score"], rel=1e-4)


PUSHES = """
import json, sys
from modeling_mengzi_oscar.cli import main
print(json.dumps([main(["push", *arguments]) for arguments in json.loads(sys.argv[1])]))
"""


def test_push_pin_and_read_offline(tiny_checkpoint, photo, home, tmp_path):
    """Two versions are pushed by the command; the first is read by its commit, then again without the server."""
    second = shutil.copytree(tiny_checkpoint, tmp_path / "second")
    weights = load_file(second / "model.safetensors")
    save_file({key: torch.zeros_like(value) for key, value in weights.items()}, second / "model.safetensors")
    repo = "user/mengzi-oscar"
    pushes = [[tiny_checkpoint, repo, "--private"], [second, repo], [tiny_checkpoint, repo, "--create-pr"]]
    with HubServer() as hub:
        online = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test"}
        process = run_python(PUSHES, json.dumps([[str(part) for part in push] for push in pushes]), **online)
        assert answer(process) == [0, 0, 0]
        (_, _), (first, files), (newest, _) = hub.repos[repo]["commits"]  # a pull request is no commit
        addresses = [f"{hub.url}/{repo}/{end}" for end in (f"commit/{first}", f"commit/{newest}", "discussions/1")]
        assert process.stdout.splitlines()[:-1] == addresses
        assert hub.repos[repo]["private"]
        sent = {str(name): (tiny_checkpoint / name).read_bytes() for name in check_repo(tiny_checkpoint)}
        assert files == sent | {".gitattributes": b""}
        options, before = json.dumps({"revision": first}), len(hub.requests)
        script = WITHOUT_PACKAGE + EVERY_AUTO_CLASS + PIPELINE
        pinned = answer(run_python(script, repo, photo, options, tmp_path / "again", **online))
        assert [request for request in hub.requests[before:] if newest in request or "main" in request] == []
    expected = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    assert pinned["caption"] == expected.caption(str(photo))["caption"]
    assert pinned["piped"] == expected.caption(str(photo), num_beams=2)["caption"]
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.url}
    assert answer(run_python(WITHOUT_PACKAGE + PIPELINE, repo, photo, options, **offline))["piped"] == pinned["piped"]


def test_push_says_in_one_line_that_the_hub_is_not_there(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(tiny_checkpoint), "user/mengzi-oscar"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("user/mengzi-oscar: the Hub rejected it: ")


def test_shipped_files_import_only_what_the_readme_of_a_repo_may_ask_for(tiny_checkpoint):
    """Absolute imports are made by transformers before any code runs; ours must not be among them."""
    allowed = {"torch", "transformers", "numpy", "PIL", "safetensors", *sys.stdlib_module_names}
    allowed |= {"tqdm", "huggingface_hub"}  # transformers needs them itself
    for path in tiny_checkpoint.glob("*.py"):
        assert set(get_imports(path)) <= allowed, path.name


def test_dry_run_lists_what_would_be_sent(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("modeling_mengzi_oscar.hub.repo.HfApi", None)  # nothing is sent
    assert main(["push", str(tiny_checkpoint), "user/x", "--private", "--dry-run"]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    assert [row.split()[1] for row in rows] == [str(name) for name in check_repo(tiny_checkpoint)]
    size = sum((tiny_checkpoint / name).stat().st_size for name in check_repo(tiny_checkpoint))
    assert last.split() == [f"{size:,}", *f"bytes in {len(rows)} files would go to private user/x".split()]


def spoil_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["bert.img_embedding.weight"] = torch.zeros(32, 50)
    save_file(weights, folder / "model.safetensors")


def drop_a_weight(folder):
    weights = load_file(folder / "region_model/model.safetensors")
    weights.pop("tag_classifier.bias")
    save_file(weights, folder / "region_model/model.safetensors")


def without_metadata(folder):
    (folder / "README.md").write_text("# A model\n", encoding="utf-8")


def without_auto_map(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "auto_map"}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "vocab.txt").unlink(), "vocab.txt is missing"),
        (lambda folder: (folder / "generation_config.json").unlink(), "generation_config.json is missing"),
        (lambda folder: (folder / "photos.py").unlink(), "lacks the code file photos.py"),
        (lambda folder: (folder / "extra.py").touch(), "has code that it does not need: extra.py"),
        (lambda folder: (folder / "training_args.bin").touch(), "training_args.bin is no file that a checkpoint"),
        (lambda folder: (folder / "notes.txt").symlink_to("/etc/hostname"), "notes.txt does not belong"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"broken"), "header"),
        (spoil_weights, "bert.img_embedding.weight: [32, 50] instead of [32, 262]"),
        (drop_a_weight, "tag_classifier.bias: None instead of [3]"),
        (without_metadata, "does not say license, language, library_name, pipeline_tag"),
        (without_auto_map, "auto_map"),
    ],
)
def test_push_refuses_what_is_not_a_whole_repo(tiny_checkpoint, tmp_path, capsys, spoil, reason):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "spoilt")
    spoil(folder)
    assert main(["push", str(folder), "user/x", "--dry-run"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    [line] = output.err.splitlines()
    assert str(folder) in line
    assert reason in line


def test_committed_checkpoints_are_whole_repos_with_the_code_of_this_commit():
    """After a change of the code: modeling_mengzi_oscar.hub.assemble(folder)."""
    folders = sorted(path.parent for path in (REPOSITORY / "checkpoints").glob("*/config.json"))
    if not folders:
        pytest.skip("no checkpoint is committed yet")
    for folder in folders:
        for name in check_repo(folder):
            if name.suffix == ".py":
                assert (folder / name).read_text() == (PACKAGE / name).read_text(), f"{folder / name} is out of date"


def test_assemble_brings_a_repo_up_to_date(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "old")
    (folder / "photos.py").write_text("old")
    (folder / "gone.py").write_text("old")
    assemble(folder)
    contents = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*.*")} for f in (folder, tiny_checkpoint)]
    assert contents[0] == contents[1]


def test_a_folder_of_save_pretrained_is_not_a_repo_yet(tmp_path):
    tiny_captioner().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="auto_map"):
        check_repo(Path(tmp_path))
