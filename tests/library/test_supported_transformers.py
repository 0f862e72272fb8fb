"""What shipped code takes from transformers, and what it says where a release is too old or newer than the tests."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from conftest import REPOSITORY

from modeling_mengzi_oscar import hub
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.supported_transformers import NEWEST_TESTED, OLDEST, check

AUTO = "Auto classes: the way in that every user types"
TAKEN = {  # all that shipped files import from transformers, and why it can be relied upon
    "PretrainedConfig": "base of every config; this spelling is the one that all releases have",
    "PreTrainedModel": "base of every model",
    "GenerationMixin": "beam search, sampling and their arguments",
    "GenerationConfig": "what generation_config.json holds",
    "ProcessorMixin": "base of every processor",
    "BaseImageProcessor": "base of every image processor",
    "BatchFeature": "what processors return",
    "AddedToken": "documented: a token that is not cut into pieces",
    "BertTokenizer": "the tokenizer of every checkpoint of ours",
    "Pipeline": "base of a custom pipeline",
    "AutoConfig": AUTO,
    "AutoModel": AUTO,
    "AutoModelForImageTextToText": AUTO,
    "AutoModelForMultipleChoice": AUTO,
    "AutoModelForObjectDetection": AUTO,
    "AutoModelForPreTraining": AUTO,
    "AutoModelForSequenceClassification": AUTO,
    "AutoModelForVisualQuestionAnswering": AUTO,
    "AutoProcessor": AUTO,
    "utils.ModelOutput": "base of every output; documented under this path",
    "modeling_outputs.BaseModelOutputWithPooling": "documented output class",
    "modeling_outputs.SequenceClassifierOutput": "documented output class",
    "modeling_utils.ALL_ATTENTION_FUNCTIONS": "documented way to sdpa, flash and registered attention functions",
}
UNDERSCORED = {  # names with an underscore that belong to transformers, and why there is no way around them
    "_attn_implementation": "what `attn_implementation` and `set_attn_implementation` leave in the config",
    "_commit_hash": "what loading from the Hub leaves in the config; without it a saved model names no region model",
    "_gradient_checkpointing_func": "what `gradient_checkpointing_enable` leaves in a module that has a flag",
    "_init_weights": "documented hook of PreTrainedModel",
    "_keep_in_fp32_modules_strict": "documented class attribute",
    "_no_split_modules": "documented class attribute",
    "_tied_weights_keys": "documented class attribute",
    "_supports_sdpa": "documented class attribute",
    "_supports_flash_attn": "documented class attribute",
    "_supports_attention_backend": "documented class attribute",
    "_sanitize_parameters": "documented hook of Pipeline",
    "_forward": "documented hook of Pipeline",
    "_load_processor": "documented class attribute of Pipeline",
    "_load_tokenizer": "documented class attribute of Pipeline",
    "_load_image_processor": "documented class attribute of Pipeline",
    "_load_feature_extractor": "documented class attribute of Pipeline",
    "_load_video_processor": "documented class attribute of Pipeline",
}


def shipped_files():
    references = {hub.file_of(name) for names in hub.AUTO_MAPS.values() for name in names.values()}
    references |= {hub.file_of(name) for _, names in hub.PROCESSORS.values() for name in names.values()}
    references.add(hub.file_of(hub.PIPELINE["impl"]))
    return [hub.PACKAGE / name for name in hub.with_imports(references)]


@pytest.fixture(scope="module")
def trees():
    return {path.name: ast.parse(path.read_text("utf-8")) for path in shipped_files()}


def test_shipped_code_takes_only_what_is_listed(trees):
    taken = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] == "transformers":
                module = node.module.removeprefix("transformers").removeprefix(".")
                taken |= {f"{module}.{alias.name}".removeprefix(".") for alias in node.names}
            if isinstance(node, ast.Import):
                taken |= {alias.name for alias in node.names if alias.name.startswith("transformers.")}
    assert taken == TAKEN.keys()


def test_shipped_code_reaches_into_nothing_else(trees):
    """Of the names with an underscore none is one of transformers' own but these."""
    used = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            names = [getattr(node, field, None) for field in ("attr", "id", "name", "arg")]
            used |= {name for name in names if isinstance(name, str) and re.match("_[a-z]", name)}
    folder = Path(transformers.__file__).parent
    files = [*folder.glob("*.py"), *folder.glob("generation/*.py"), *folder.glob("pipelines/base.py")]
    of_transformers = set(re.findall(r"\b_[a-z]\w+\b", "".join(path.read_text("utf-8") for path in files)))
    assert used & of_transformers == UNDERSCORED.keys()


@pytest.mark.parametrize("installed", ["5.0.0", "4.57.6", "3.5.1"])
def test_an_old_release_is_named_in_one_line(installed):
    with pytest.raises(ImportError) as error:
        check(installed)
    [line] = str(error.value).splitlines()
    assert f"transformers {OLDEST} and newer, {installed} is installed" in line
    assert f"pip install --upgrade 'transformers>={OLDEST}'" in line


@pytest.mark.parametrize("installed", [f"{OLDEST}.0", f"{NEWEST_TESTED}.9", f"{NEWEST_TESTED}.0.dev0"])
def test_the_range_is_silent(installed, recwarn):
    check(installed)
    assert not recwarn.list


def test_a_newer_release_is_told_once_and_tried(tmp_path):
    """All files of a checkpoint load one by one, each with a copy of its own of what checks."""
    mini = REPOSITORY / "checkpoints" / "mengzi-oscar-mini"
    code = f"""
import sys
sys.modules["modeling_mengzi_oscar"] = None
import transformers
from transformers import AutoConfig
sys.modules["transformers"].__version__ = "7.1.0"
options = {{"trust_remote_code": True}}
transformers.AutoConfig.from_pretrained({str(mini)!r}, **options)
transformers.AutoProcessor.from_pretrained({str(mini)!r}, **options)
print(type(transformers.AutoModelForImageTextToText.from_pretrained({str(mini)!r}, **options)).__name__)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "PYTHONPATH": ""}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "MengziOscarForImageCaptioning", run.stderr
    assert run.stderr.count(f"tested with transformers {OLDEST} to {NEWEST_TESTED}, 7.1.0 is installed") == 1


@pytest.mark.parametrize("auto_class", ["AutoConfig", "AutoProcessor", "AutoImageProcessor"])
def test_an_old_release_is_named_by_the_first_class_that_is_loaded(auto_class, tmp_path):
    mini = REPOSITORY / "checkpoints" / "mengzi-oscar-mini"
    subfolder = "region_model" if auto_class == "AutoImageProcessor" else ""
    code = f"""
import sys
sys.modules["modeling_mengzi_oscar"] = None
from transformers import {auto_class}
sys.modules["transformers"].__version__ = "4.57.6"
{auto_class}.from_pretrained({str(mini)!r}, subfolder={subfolder!r}, trust_remote_code=True)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "PYTHONPATH": ""}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: mengzi-oscar works with transformers {OLDEST} and newer, 4.57.6 is installed")


def test_the_command_says_it_in_one_line(monkeypatch, capsys):
    def too_old(options):
        check("4.57.6")

    monkeypatch.setattr("modeling_mengzi_oscar.cli.caption.load_pipeline", too_old)
    assert main(["caption", "--samples"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mengzi-oscar works with transformers {OLDEST} and newer")


def test_the_range_is_the_same_everywhere():
    """What installs, what is tested and what pages say: all as supported_transformers.py has it."""

    def found(pattern, *path):
        return re.findall(pattern, REPOSITORY.joinpath(*path).read_text("utf-8"), re.MULTILINE)

    assert found(r"^    transformers >= (\S+)$", "setup.cfg")[0] == OLDEST
    assert found(r"^(\d+\.\d+)\.\d+$", "tests", "releases", "releases.txt")[:: len(minors()) - 1] == [
        OLDEST,
        NEWEST_TESTED,
    ]
    for lock in ("constraints.txt", "space/requirements.txt"):
        assert found(r"^transformers==(\d+\.\d+)", lock) == [NEWEST_TESTED]
    for page in ("README.md", "README_zh.md", "docs/versions.md", "checkpoints/mengzi-oscar-mini/README.md"):
        ranges = found(r"transformers[`*]* (\d+\.\d+) (?:to|至|到) (\d+\.\d+)", page)
        assert set(ranges) == {(OLDEST, NEWEST_TESTED)}, page


def minors():
    """Every minor release of the matrix: none between the oldest and the newest is left out."""
    lines = (REPOSITORY / "tests" / "releases" / "releases.txt").read_text("utf-8").splitlines()
    found = [tuple(map(int, line.split(".")[:2])) for line in lines if not line.startswith("#")]
    first, last = found[0], found[-1]
    assert found == [(first[0], number) for number in range(first[1], last[1] + 1)]
    return found
