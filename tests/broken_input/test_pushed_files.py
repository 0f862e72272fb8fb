"""What `push` sends is a closed list of our own files, and a card says names as names."""

import json
import os
import pickle
import shutil

import pytest
import yaml
from conftest import tiny_config
from huggingface_hub import ModelCard
from PIL import Image

from modeling_mengzi_oscar import VinVLConfig
from modeling_mengzi_oscar.checkpoint_folder import CheckpointError
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.hub import assemble, check_repo, push
from modeling_mengzi_oscar.hub.model_card import detector_card, escaped, model_card


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "folder")


def change(path, **fields):
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(said | fields), encoding="utf-8")


def link_a_folder(folder, outside):
    (outside / "secrets").mkdir()
    (outside / "secrets" / "config.json").write_text("{}")
    (folder / "samples").symlink_to(outside / "secrets")


def link_the_region_model(folder, outside):
    shutil.move(folder / "region_model", outside / "region_model")
    (folder / "region_model").symlink_to(outside / "region_model")


def hard_link(folder, outside):
    (outside / "scores.json").write_text('{"key": "of somebody else"}')
    os.link(outside / "scores.json", folder / "scores.json")


def pickle_named(name):
    return lambda folder, outside: (folder / name).write_bytes(pickle.dumps({"x": 1}))


def foreign_lines(folder, outside):
    (folder / "photos.py").write_text((folder / "photos.py").read_text("utf-8") + "\nprint('mine')\n", "utf-8")


def in_json(name, **fields):
    return lambda folder, outside: change(folder / name, **fields)


def written(name, content="{}"):
    def write(folder, outside):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")

    return write


ELSEWHERE = {"AutoProcessor": "evil/repo--processing_mengzi_oscar.MengziOscarProcessor"}
PIPELINES = {"mengzi-oscar-captioning": {"impl": "evil.Evil", "pt": ["AutoModelForImageTextToText"], "type": "text"}}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (link_a_folder, "samples does not belong in a Hub repo: it is a link"),
        (link_the_region_model, "region_model does not belong in a Hub repo: it is a link"),
        (lambda folder, outside: (folder / "scores.json").symlink_to("config.json"), "it is a link"),
        (lambda folder, outside: (folder / "samples.md").symlink_to(outside / "nowhere"), "it is a link"),
        (hard_link, "scores.json is one file with another name elsewhere"),
        (lambda folder, outside: os.mkfifo(folder / "scores.json"), "scores.json is no file"),
        (written(".env.json"), ".env.json does not belong in a Hub repo: it is hidden"),
        (written(".env"), "hidden"),
        (written(".git/config"), "hidden"),
        (written("region_model/.x.json"), "hidden"),
        (written(".cache/huggingface/x.json"), "hidden"),
        (written("secrets.json"), "secrets.json is no file that a checkpoint of ours has"),
        (written("id_rsa.txt"), "no file that a checkpoint"),
        (written("notes.md", "x"), "no file that a checkpoint"),
        (written("train/log.jsonl"), "no file that a checkpoint"),
        (written("region_model/scores.json"), "no file that a checkpoint"),
        (written("region_model/vocab.txt", "x"), "no file that a checkpoint"),
        (written("region_model/deeper/vocab.txt", "x"), "no file that a checkpoint"),
        (written("region_model/photos.py", "x"), "no file that a checkpoint"),
        (written("region_model/evil.py", "x"), "no file that a checkpoint"),
        (written("more/config.json"), "model_type None is none of ours"),
        (written("more/config.json", '{"model_type": ["x"]}'), "is none of ours"),
        (pickle_named("scores.json"), "scores.json: is not JSON"),
        (pickle_named("model-00001-of-00002.safetensors"), "is not what its name says"),
        (pickle_named("samples.png"), "is not what its name says"),
        (pickle_named("samples.md"), "is not what its name says"),
        (written("model.safetensors.index.json", "[]"), "holds a list"),
        (foreign_lines, "photos.py is not the code of this package"),
        (written("loading.py", ""), "loading.py is not the code of this package"),
        (in_json("config.json", custom_pipelines=PIPELINES), "custom_pipelines"),
        (in_json("region_model/config.json", custom_pipelines=PIPELINES), "custom_pipelines"),
        (in_json("config.json", auto_map={"AutoConfig": "evil/repo--a.B"}), "auto_map"),
        (in_json("region_model/config.json", auto_map={}), "auto_map"),
        (in_json("processor_config.json", auto_map=ELSEWHERE), "processor_config.json has not the auto_map"),
        (in_json("tokenizer_config.json", auto_map={"AutoTokenizer": "evil/repo--a.B"}), "tokenizer_config.json has"),
        (in_json("region_model/preprocessor_config.json", auto_map={"AutoImageProcessor": "a.B"}), "auto_map"),
        (in_json("config.json", _attn_implementation="evil/kernel"), "_attn_implementation"),
        (in_json("config.json", quantization_config={"quant_method": "x"}), "quantization_config"),
        (in_json("region_model/config.json", architectures=["system"]), "which is none of ours"),
        (in_json("config.json", architectures="MengziOscarModel"), "config.json"),
        (in_json("generation_config.json", num_beams="x"), "num_beams"),
        (in_json("processor_config.json", layout=3), "layout"),
        (in_json("tokenizer_config.json", tokenizer_class="Evil"), "Evil"),
        (in_json("region_model/preprocessor_config.json", size="x"), "size"),
        (written("README.md", "---\n- a\n- [\n---\n"), "README.md"),
        (written("README.md", "---\njust text\n---\n"), "README.md"),
    ],
)
def test_push_refuses_by_name_what_is_not_of_ours(folder, tmp_path, capsys, spoil, reason):
    (tmp_path / "outside").mkdir()
    spoil(folder, tmp_path / "outside")
    assert main(["push", str(folder), "user/x", "--dry-run"]) == 2
    output = capsys.readouterr()
    [line] = output.err.splitlines()
    assert output.out == ""
    assert reason in line, line


def test_what_a_training_leaves_is_sent(folder):
    """Samples with their photos, curves and scores; the Hub's own .gitattributes stays here."""
    before = check_repo(folder)
    for name in ("samples.png", "curves.png"):
        Image.new("RGB", (9, 9)).save(folder / name)
    for name in ("samples.md", "scores.md", "scores.json", "LICENSE", ".gitattributes"):
        (folder / name).write_text("{}")
    new = {str(name) for name in check_repo(folder)} - {str(name) for name in before}
    assert new == {"samples.png", "curves.png", "samples.md", "scores.md", "scores.json", "LICENSE"}


def test_what_was_checked_is_what_is_sent(folder, monkeypatch):
    sent = {}

    class Hub:  # stands where the network is
        def __init__(self, **_): ...
        def create_repo(self, *_, **__):
            (folder / ".env.json").write_text("{}")  # comes while the repo is made

        def create_commit(self, operations, **_):
            sent.update({one.path_in_repo: one.path_or_fileobj for one in operations})
            return type("Commit", (), {"pr_url": None, "commit_url": "https://hub"})

    expected = {name.as_posix() for name in check_repo(folder)}
    monkeypatch.setattr("modeling_mengzi_oscar.hub.repo.HfApi", Hub)
    assert push(folder, "user/x") == "https://hub"
    assert sent.keys() == expected


def test_assemble_writes_through_no_link(folder, tmp_path):
    outside = shutil.copytree(folder / "region_model", tmp_path / "outside")
    change(outside / "config.json", auto_map={})
    shutil.rmtree(folder / "region_model")
    (folder / "region_model").symlink_to(outside)
    before = (outside / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="region_model: is a link"):
        assemble(folder)
    assert (outside / "config.json").read_bytes() == before


HOSTILE = [
    'a"b',
    "it's: [x, {y",
    "x\n---\nlicense: evil\n",
    "---",
    "# title",
    "a | b",
    "<script>alert(1)</script>",
    "`code` *bold* [link](http://evil) ![x](y)",
    "two\n\n## lines\n\n* of Markdown",
    "\u2028 \x85 \t tab",
    "%&*!@",
    "null",
    "12",
    "中文：模型",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_says_names_as_names(name):
    """In every place that takes one; the metadata, read back, say exactly the same."""
    config = tiny_config()
    scores = {"dataset": name, "split": name, "how": name, name: 0.5, "char_bleu_4": 0.25}
    text = model_card("caption", config, name, base_model=name, datasets=[name, "user/data"], scores=scores)
    data = ModelCard(text).data
    assert data.base_model == name
    assert data.datasets == [name, "user/data"]
    assert data.license == "apache-2.0"
    assert yaml.safe_load(ModelCard(text).data.to_yaml())["model-index"][0]["name"] == name
    body = ModelCard(text).text
    outside_code = "".join(body.split("```")[::2])
    headings = [line for line in outside_code.splitlines() if line.startswith("#")]
    assert [line.split()[0] for line in headings] == ["#", "##", "##"]
    assert headings[0] == f"# {escaped(name)}"
    [row] = [line for line in body.splitlines() if line.endswith("| 0.5000 |")]
    assert row.replace("\\|", "").count("|") == 3
    assert "<" not in outside_code
    assert "](" not in outside_code.replace("\\]", "")
    assert f"\n# {escaped(name)}\n" in detector_card(VinVLConfig(), name)


def test_names_of_the_command_line_reach_the_card_as_names(tiny_checkpoint, tmp_path):
    name = "x\n---\nlicense: evil"
    output = tmp_path / "`a` <b>"
    regions = str(tiny_checkpoint / "region_model")
    options = [
        "--region-model",
        regions,
        "--base-model",
        name,
        "--dataset",
        name,
        "--scores",
        str(tmp_path / "scores.json"),
    ]
    (tmp_path / "scores.json").write_text(json.dumps({"dataset": name, "split": "test", "cider|d": 0.5}))
    assert main(["convert", str(tiny_checkpoint), str(output), *options]) == 0
    card = ModelCard.load(output / "README.md")
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("apache-2.0", name, [name])
    assert "# \\`a\\` &lt;b&gt;\n" in card.text


@pytest.mark.parametrize("scores", [{"dataset": 3, "x": 0.5}, {"split": ["x"], "x": 0.5}, {"dataset": {}, "x": 0.5}])
def test_scores_of_something_else_are_refused(folder, tmp_path, capsys, scores):
    change(folder / "config.json", region_model=None)
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    command = ["convert", str(folder), str(tmp_path / "new"), "--scores", str(tmp_path / "scores.json")]
    assert main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "both must be texts" in line
