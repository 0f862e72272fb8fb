"""A checkpoint as one folder, laid out as a Hub repo, and the way to the Hub.

A repo of ours works where this package is not installed: its config names the classes for transformers' Auto classes
(`auto_map`), and the files of this package that they need lie beside it. `assemble` adds both to any folder that
`save_pretrained` wrote, `check_repo` says what is missing or does not belong, `push` sends what passes.
"""

import json
import os
import re
import shutil
from importlib import import_module
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors import SafetensorError, safe_open

from ..checkpoint_folder import CheckpointError
from ..loading import region_model_classes
from .model_card import model_card

PACKAGE = Path(__file__).resolve().parents[1]
REGION_MODEL_FOLDER = "region_model"
PINNED = re.compile(r"[\w.-]+/[\w.-]+@[\w.-]+")  # Hub id with revision
RELATIVE_IMPORT = re.compile(r"^\s*from \.(\w+) import ", re.MULTILINE)  # those by which transformers finds code files
MODELING = "modeling_mengzi_oscar."
AUTO_MAPS = {  # model_type -> `auto_map` of config.json; every checkpoint can start every head
    "mengzi_oscar": {
        "AutoConfig": "configuration_mengzi_oscar.MengziOscarConfig",
        "AutoModel": MODELING + "MengziOscarModel",
        "AutoModelForPreTraining": MODELING + "MengziOscarForPreTraining",
        "AutoModelForImageTextToText": MODELING + "MengziOscarForImageCaptioning",
        "AutoModelForSequenceClassification": MODELING + "MengziOscarForImageTextRetrieval",
        "AutoModelForVisualQuestionAnswering": MODELING + "MengziOscarForVisualQuestionAnswering",
        "AutoModelForMultipleChoice": MODELING + "MengziOscarForVisualReasoning",
    },
    "grid_regions": {
        "AutoConfig": "modeling_grid_regions.GridRegionConfig",
        "AutoModel": "modeling_grid_regions.GridRegionModel",
    },
    "vinvl": {"AutoConfig": "configuration_vinvl.VinVLConfig", "AutoModel": "modeling_vinvl.VinVLModel"},
}
PROCESSORS = {  # model_type -> the file that names the processor, and its `auto_map`
    "mengzi_oscar": ("processor_config.json", {"AutoProcessor": "processing_mengzi_oscar.MengziOscarProcessor"}),
    "grid_regions": (
        "preprocessor_config.json",
        {"AutoImageProcessor": "modeling_grid_regions.GridRegionImageProcessor"},
    ),
    "vinvl": ("preprocessor_config.json", {"AutoImageProcessor": "image_processing_vinvl.VinVLImageProcessor"}),
}
CUSTOM_PIPELINES = {
    "mengzi-oscar-captioning": {
        "impl": "pipeline_mengzi_oscar.MengziOscarCaptioningPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
SENT = (".json", ".jsonl", ".md", ".txt", ".py", ".safetensors", ".png", ".jpg", ".gitattributes")  # nothing that runs


def save_checkpoint(
    folder, model, processor, region_model=None, image_processor=None, dtype=torch.float16, card=None, task="caption"
):
    """Writes everything that `MengziOscarPipeline.from_pretrained` reads; replaces an older folder when it is whole.

    The weights are stored in `dtype`, the models passed in stay as they are. `card` is the text of README.md; without
    it there is one from `model_card`. Without a region model the config keeps naming the one it names.
    """
    folder = Path(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if region_model is not None:
        model.config.region_model = REGION_MODEL_FOLDER
        save_in_dtype(region_model, temporary / REGION_MODEL_FOLDER, dtype)
        image_processor.save_pretrained(temporary / REGION_MODEL_FOLDER)
    save_in_dtype(model, temporary, dtype)
    processor.save_pretrained(temporary)
    save_vocabulary(processor.tokenizer, temporary / "vocab.txt")
    assemble(temporary, card or model_card(task, model.config, folder.name))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def save_in_dtype(model, folder, dtype):
    """`save_pretrained` of a copy of the floating-point weights in another type; tied weights stay one tensor."""
    state, copies = {}, {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor
        if tensor.is_floating_point():
            state[name] = copies.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))
    before, model.config.dtype = model.config.dtype, dtype
    model.save_pretrained(folder, state_dict=state)
    model.config.dtype = before


def save_vocabulary(tokenizer, path):
    """vocab.txt, one token a line in the order of the ids, as BERT checkpoints have it."""
    vocabulary = tokenizer.get_vocab()
    path.write_text("".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")


def assemble(folder, card=None) -> None:
    """Makes a folder written by `save_pretrained` a Hub repo: `auto_map`s, the code files they need, README.md.

    Models in subfolders (region model, further tasks) get an `auto_map` too: transformers looks for code at the root
    of a repo, whatever the subfolder. Code files from an earlier time are replaced, so a folder that is a repo already
    can be brought up to date.

    Args:
        card: text of README.md; None keeps the one that is there.
    """
    folder = Path(folder)
    for config_path in [folder / "config.json", *sorted(folder.glob("*/config.json"))]:
        config = read_json(config_path)
        config["auto_map"] = AUTO_MAPS[config["model_type"]]
        config.pop("custom_pipelines", None)
        if is_captioner_of_photos(config):
            config["custom_pipelines"] = CUSTOM_PIPELINES
        write_json(config_path, config)
        name, auto_map = PROCESSORS[config["model_type"]]
        if (config_path.parent / name).exists():
            write_json(config_path.parent / name, read_json(config_path.parent / name) | {"auto_map": auto_map})
    needed = code_files(folder)
    for path in folder.glob("*.py"):
        path.unlink()
    for name in needed:
        shutil.copyfile(PACKAGE / name, folder / name)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def add_head(folder, head, task, note=None) -> None:
    """Puts a head that a training saved as a repo of its own into `folder`/<task>, where the pipeline looks for it.

    Args:
        folder: of the captioner, a repo. head: folder of the head. task: "ask" or "match".
        note: text of a section of README.md; one of an earlier time is replaced.
    """
    folder, head = Path(folder), Path(head)
    shutil.rmtree(folder / task, ignore_errors=True)
    (folder / task).mkdir()
    for name in ("config.json", "model.safetensors", "processor_config.json", *TOKENIZER_FILES):
        shutil.copyfile(head / name, folder / task / name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    if note is not None:
        card = re.sub(rf"\n## {task}/\n.*?(?=\n## |\Z)", "", card, flags=re.DOTALL).rstrip()
        card += f"\n\n## {task}/\n\n{note}\n"
    assemble(folder, card)


def is_captioner_of_photos(config: dict) -> bool:
    return bool(config.get("region_model")) and "MengziOscarForImageCaptioning" in (config.get("architectures") or [])


def code_files(folder) -> list[str]:
    """Files of this package that the Auto classes and the pipeline of a repo folder import."""
    folder, references = Path(folder), set()
    for config_path in folder.rglob("config.json"):
        config = read_json(config_path)
        references |= {*AUTO_MAPS[config["model_type"]].values(), *PROCESSORS[config["model_type"]][1].values()}
        if is_captioner_of_photos(config):
            references |= {pipeline["impl"] for pipeline in CUSTOM_PIPELINES.values()}
    return with_imports({file_of(reference) for reference in references})


def with_imports(names) -> list[str]:
    """Files of this package and those that they import, directly or not."""
    files, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        files.add(name)
        code = (PACKAGE / name).read_text(encoding="utf-8")
        waiting |= {f"{module}.py" for module in RELATIVE_IMPORT.findall(code)} - files
    return sorted(files)


def file_of(reference) -> str:
    """ "file.Class" -> "file.py" """
    return f"{reference.split('.')[0]}.py"


def region_model_config(name):
    """Config of a region model: a folder, or a Hub id with revision.

    Raises:
        CheckpointError: it cannot be read, or is no region model.
    """
    from transformers import PreTrainedConfig

    name = str(name)
    path, revision = name.split("@") if PINNED.fullmatch(name) and not Path(name).exists() else (name, None)
    try:
        model_type = PreTrainedConfig.get_config_dict(path, revision=revision)[0].get("model_type")
    except OSError as error:
        raise CheckpointError(f"{name}: no region model's config.json there ({one_line(error)})") from None
    classes = region_model_classes(model_type)
    if classes is None:
        raise CheckpointError(f"{name}: is not a region model (model_type {model_type!r})")
    return classes[0].config_class.from_pretrained(path, revision=revision)


def check_repo(folder) -> list[Path]:
    """The files of a folder that is a whole repo of ours, relative to it, sorted: what `push` sends.

    Raises:
        CheckpointError: a file is missing, is left over or would not be safe to load, weights and config disagree.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json there; name a folder that convert or the training wrote")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    for name in files:
        if (folder / name).is_symlink() or any(part.startswith(".") for part in name.parts[:-1]):
            raise CheckpointError(f"{folder}: {name} does not belong into a Hub repo; remove it")
        if name.suffix not in SENT and name.name != ".gitattributes":
            raise CheckpointError(f"{folder}: {name} is not of a kind that we send ({' '.join(SENT)}); remove it")
    for config_path in sorted(folder.rglob("config.json")):
        check_model(config_path.parent)
    needed, there = set(code_files(folder)), {str(name) for name in files if name.suffix == ".py"}
    for problem, names in (("lacks the code file", needed - there), ("has code of no use to it:", there - needed)):
        if names:
            raise CheckpointError(
                f"{folder}: {problem} {sorted(names)[0]}; modeling_mengzi_oscar.hub.assemble mends it"
            )
    card = folder / "README.md"
    metadata = ModelCard(card.read_text(encoding="utf-8")).data.to_dict() if card.is_file() else {}
    missing = [key for key in ("license", "language", "library_name", "pipeline_tag") if not metadata.get(key)]
    if missing:
        raise CheckpointError(f"{folder}: README.md does not say {', '.join(missing)} in its metadata")
    return files


def check_model(folder) -> None:
    """Config, weights and processor of one model (a repo's root or a subfolder) are there and fit one another."""
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if model_type not in AUTO_MAPS:
        raise CheckpointError(
            f"{folder}: model_type {model_type!r} is none of ours; convert original checkpoints first"
        )
    if config.get("auto_map") != AUTO_MAPS[model_type]:
        raise CheckpointError(f"{folder}: config.json has not the auto_map of a Hub repo; hub.assemble adds it")
    name = (config.get("architectures") or [AUTO_MAPS[model_type]["AutoModel"].split(".")[1]])[0]
    expected = [PROCESSORS[model_type][0], *(TOKENIZER_FILES if model_type == "mengzi_oscar" else ())]
    expected += ["generation_config.json"] if name == "MengziOscarForImageCaptioning" else []
    for file in expected:
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder}: {file} is missing")
    module = AUTO_MAPS[model_type]["AutoModel"].split(".")[0]
    model_class = getattr(import_module(f"..{module}", __package__), name)
    try:
        with torch.device("meta"):
            model = model_class(model_class.config_class.from_pretrained(folder))
        with safe_open(folder / "model.safetensors", "pt") as weights:
            found = {key: list(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder}: {one_line(error)}") from None
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    unsaved = set(model.all_tied_weights_keys) - set(found)
    wrong = sorted(key for key in {**shapes, **found} if found.get(key) != shapes.get(key) and key not in unsaved)
    if wrong:
        found, wanted = found.get(wrong[0]), shapes.get(wrong[0])
        raise CheckpointError(
            f"{folder}: model.safetensors does not fit {name}, e.g. {wrong[0]}: {found} instead of {wanted}"
        )


def push(folder, repo_id, private=False, create_pr=False) -> str:
    """Sends a folder that passes `check_repo` to the Hub as one commit (or pull request); returns its address.

    Raises:
        CheckpointError: the folder does not pass, or the Hub refuses (no token, no right, no connection).
    """
    files = check_repo(folder)
    try:
        api = HfApi(library_name="mengzi-oscar")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[str(name) for name in files],
            create_pr=create_pr,
            commit_message="Upload with mengzi-oscar push",
        )
    except (OSError, HTTPError, HFValidationError) as error:
        raise CheckpointError(f"{repo_id}: the Hub did not take it: {one_line(error)}") from None
    return commit.pr_url or commit.commit_url


def read_json(path) -> dict:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not JSON ({one_line(error)})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}; a JSON object is needed")
    return data


def write_json(path, data) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def one_line(error, limit=200) -> str:
    return " ".join(str(error).split())[:limit] or type(error).__name__
