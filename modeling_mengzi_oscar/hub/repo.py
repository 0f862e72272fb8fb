"""A checkpoint as one folder, laid out as a Hub repo, and the way to the Hub.

A repo of ours works where this package is not installed: its config names the classes for transformers' Auto classes
(`auto_map`) and pipelines, and the files of this package that they need lie beside it. `assemble` adds both to any
folder that `save_pretrained` wrote, `check_repo` says what is missing or does not belong, `push` sends what passes.
"""

import json
import os
import re
import shutil
import stat
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError, HTTPError
from PIL import Image
from safetensors import SafetensorError, safe_open

from ..checkpoint_folder import (
    CALIBRATION,
    CHECKPOINT_FILES,
    CheckpointError,
    CheckpointFolder,
    one_line,
    read_json,
    shown,
    tell_unless_pinned,
)
from ..configuration_mengzi_oscar import PINNED, MengziOscarConfig
from ..fields import listed, word
from ..files import state_checksum
from ..loading import (
    TASKS,
    check_size,
    generation_config,
    load_processor,
    load_region_processor,
    load_tokenizer,
    region_model_classes,
    region_model_folder,
)
from ..openvino_networks import check_calibration, read_calibration
from .model_card import ON_PHOTOS, detector_card, head_section, model_card

PACKAGE = Path(__file__).resolve().parents[1]
REGION_MODEL_FOLDER = "region_model"
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
    "object_regions": {
        "AutoConfig": "modeling_object_regions.ObjectRegionConfig",
        "AutoModel": "modeling_object_regions.ObjectRegionModel",
    },
    "vinvl": {"AutoConfig": "configuration_vinvl.VinVLConfig", "AutoModel": "modeling_vinvl.VinVLModel"},
}
PROCESSORS = {  # model_type -> the file that names the processor, and its `auto_map`
    "mengzi_oscar": ("processor_config.json", {"AutoProcessor": "processing_mengzi_oscar.MengziOscarProcessor"}),
    "grid_regions": (
        "preprocessor_config.json",
        {"AutoImageProcessor": "modeling_grid_regions.GridRegionImageProcessor"},
    ),
    "object_regions": (
        "preprocessor_config.json",
        {"AutoImageProcessor": "modeling_object_regions.ObjectRegionImageProcessor"},
    ),
    "vinvl": ("preprocessor_config.json", {"AutoImageProcessor": "image_processing_vinvl.VinVLImageProcessor"}),
}
PIPELINES = {"caption": "mengzi-oscar-captioning", "match": "mengzi-oscar-matching", "ask": "mengzi-oscar-answering"}
PIPELINE = {"impl": "pipeline_mengzi_oscar.MengziOscarPhotoPipeline", "type": "multimodal"}
HEADS = ("match", "ask")  # subfolders of a captioner's repo, for further tasks on the same regions
ENDPOINT = ("handler.py", "requirements.txt")  # of a repo with pipelines: what Inference Endpoints start, and install
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
OF_A_MODEL = ("config.json", "model.safetensors", "model.safetensors.index.json")  # of root and subfolders, by kind
OF_A_KIND = {
    "mengzi_oscar": ("generation_config.json", "processor_config.json", *TOKENIZER_FILES),
    "grid_regions": ("preprocessor_config.json",),
    "object_regions": ("preprocessor_config.json",),
    "vinvl": ("preprocessor_config.json",),
}
MAY_BE_OF_A_KIND = {"vinvl": (CALIBRATION,)}
OF_A_REPO = ("README.md", "LICENSE", "samples.md", "samples.png", "curves.png", "scores.md", "scores.json")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
MENDS = "mengzi-oscar push DIR REPO_ID --assemble mends it"
NOT_SENT = {".gitattributes"}  # the Hub has its own
OF_WHO_LOADS = ("attn_implementation", "_attn_implementation", "quantization_config", "transformers_weights")


def save_checkpoint(
    folder,
    model,
    processor,
    region_model=None,
    image_processor=None,
    dtype=torch.float16,
    card=None,
    task="caption",
    start=None,
):
    """Writes everything that `MengziOscarPipeline.from_pretrained` reads; replaces an older folder when it is whole.

    The weights are stored in `dtype`, the models passed in stay as they are. `card` is the text of README.md; without
    it there is one from `model_card`. Without a region model the config keeps naming the one it names.

    Args:
        start: folder of the checkpoint that a training began with. A region model that learnt something is stored in
            the dtype that it had. Where none is passed, or what is passed is still that of `start`, that comes along
            as it is, and with a captioner its heads `match/` and `ask/`, which read the same regions.

    What the processor says of `confidence` is left out: it was measured with other weights.
    """
    folder = Path(folder)
    with written_beside(folder, ".tmp") as temporary:
        before = None if region_model is None or start is None else region_model_folder(**same_files(start)).weights()
        if before is not None and holds(region_model, before):
            region_model = None
        heads = []
        if region_model is not None:
            stored = dtype if before is None else stored_dtype(before)
            model.config.region_model = REGION_MODEL_FOLDER
            save_in_dtype(region_model, temporary / REGION_MODEL_FOLDER, stored)
            image_processor.save_pretrained(temporary / REGION_MODEL_FOLDER)
        elif start is not None:
            for name in [model.config.region_model, *(HEADS if task == "caption" else ())]:
                if (part := subfolder_of(start, name)) is not None:
                    take_along(part, temporary / name)
                    heads += [name] if name in HEADS else []
        save_in_dtype(model, temporary, dtype)
        of_others, processor.confidence = processor.confidence, None
        processor.save_pretrained(temporary)
        processor.confidence = of_others
        save_vocabulary(processor.tokenizer, temporary / "vocab.txt")
        assemble(temporary, card or model_card(task, model.config, folder.name))
        for name in heads:
            if (head := card_task(read_json(temporary / name / "config.json"))) in ON_PHOTOS:
                describe_head(temporary, name, head_section(head, ["unchanged, as the training's start had it"]))


def same_files(checkpoint: CheckpointFolder) -> dict:
    """How to name a checkpoint again, whatever a repo of the Hub has become since."""
    is_here = Path(checkpoint.checkpoint).is_dir()
    name = checkpoint.checkpoint if is_here else checkpoint.checkpoint.partition("@")[0]
    return {"name": name, "revision": checkpoint.commit}


def subfolder_of(checkpoint: CheckpointFolder, name: str | None) -> CheckpointFolder | None:
    """A model in a subfolder of a checkpoint; None where there is none, or `name` is that of a repo."""
    if not name or PINNED.fullmatch(name):
        return None
    folder = CheckpointFolder(**same_files(checkpoint), subfolder=name)
    return folder if folder.file("config.json") is not None else None


def holds(model, stored: dict[str, torch.Tensor]) -> bool:
    """Whether a model has these weights still, up to the dtype that they are stored in."""
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    return all(name in state and torch.equal(state[name].to(weight.dtype), weight) for name, weight in stored.items())


def stored_dtype(weights: dict[str, torch.Tensor]) -> torch.dtype:
    return next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())


def take_along(folder: CheckpointFolder, target: Path) -> None:
    """The files of a model, as they are. Weights stay one file with two names where the disk can have that, so that
    none are copied; nothing here writes into a file of weights, new ones take the name of the old.
    """
    target.mkdir()
    for path in sorted(folder.path.iterdir()):
        if not any(map(path.match, CHECKPOINT_FILES)):
            continue
        file = folder.file(path.name)
        if file.suffix == ".safetensors":
            with suppress(OSError):  # another disk, or one without links
                os.link(file.resolve(), target / file.name)
                continue
        shutil.copyfile(file, target / file.name)


@contextmanager
def written_beside(folder, ending):
    """`with written_beside(...) as temporary:` what is written there replaces `folder` once it is whole.

    Weights state their checksum, which loading looks at.

    Raises:
        CheckpointError: a full disk, or a place where one may not write. Nothing is left behind then.
    """
    folder = Path(folder)
    temporary = folder.with_name(folder.name + ending)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for weights in temporary.rglob("*.safetensors"):
            if weights.stat().st_nlink == 1:  # others came along from a checkpoint, as they are
                state_checksum(weights)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        of_the_disk = isinstance(error, (OSError, SafetensorError)) or "os error" in str(error)  # as Rust says it
        if isinstance(error, CheckpointError) or not of_the_disk:
            raise
        name = getattr(error, "filename", None) or temporary
        raise CheckpointError(
            f"{name}: cannot be written ({getattr(error, 'strerror', None) or one_line(error)})"
        ) from None


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
    """Turns a folder of `save_pretrained` into a Hub repo: `auto_map`s, pipelines, the code they need, README.md; with
    pipelines also what Inference Endpoints start (`handler.py`) and install (`requirements.txt`).

    Models in subfolders (region model, further tasks) get an `auto_map`, too. transformers looks for code at the root
    of a repo only, so copies of our code in a subfolder are deleted. Older code files are replaced, so an existing
    repo is updated.

    Args:
        card: text of README.md; None keeps an existing one, or writes a plain one.

    Raises:
        CheckpointError: a link in the folder (its target would be overwritten), or a config of another library.
    """
    folder = Path(folder)
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise CheckpointError(f"{path}: is a link; put the file itself there")
    for config_path in [folder / "config.json", *sorted(folder.glob("*/config.json"))]:
        config = read_json(config_path)
        config["auto_map"] = AUTO_MAPS[kind_of(config, config_path)]
        config.pop("custom_pipelines", None)
        if config_path.parent == folder and (pipelines := custom_pipelines(folder)):
            config["custom_pipelines"] = pipelines
        write_json(config_path, config)
        name, auto_map = PROCESSORS[config["model_type"]]
        if (config_path.parent / name).exists():
            write_json(config_path.parent / name, read_json(config_path.parent / name) | {"auto_map": auto_map})
        tokenizer = config_path.parent / "tokenizer_config.json"
        if tokenizer.exists() and (said := read_json(tokenizer)).pop("auto_map", None) is not None:
            write_json(tokenizer, said)  # transformers repeats the processor's there
        if tokenizer.exists() and not (config_path.parent / "vocab.txt").exists():
            save_vocabulary(load_tokenizer(CheckpointFolder(config_path.parent)), config_path.parent / "vocab.txt")
        if config_path.parent != folder:
            for path in config_path.parent.glob("*.py"):
                if (PACKAGE / path.name).is_file():
                    path.unlink()
    needed = code_files(folder)
    for path in code_in(folder):
        path.unlink()
    for name in needed:
        shutil.copyfile(PACKAGE / name, folder / name)
    if card is None and not (folder / "README.md").exists():
        card = plain_card(folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def plain_card(folder: Path) -> str:
    """README.md of a checkpoint of which nobody says more than what it is."""
    config = read_json(folder / "config.json")
    if config["model_type"] == "vinvl":
        return detector_card(region_model_config(folder), folder.name)
    if config["model_type"] != "mengzi_oscar":
        raise CheckpointError(f"{folder}: has no README.md; write one, with license, language and pipeline_tag")
    return model_card(card_task(config), CheckpointFolder(folder).config(MengziOscarConfig), folder.name)


def card_task(config: dict) -> str:
    """The key of the card's `TASKS` for a config.json of ours."""
    name = (config.get("architectures") or [None])[0]
    if name == "MengziOscarForVisualQuestionAnswering":
        return "vqa" if config.get("loss_type") in ("bce", "kl") else "gqa"
    return {
        "MengziOscarForImageCaptioning": "caption",
        "MengziOscarForImageTextRetrieval": "retrieval",
        "MengziOscarForVisualReasoning": "nlvr2",
    }.get(name, "pretrain")


def kind_of(config: dict, said) -> str:
    """The `model_type` of a config.

    Raises:
        CheckpointError: none of ours.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in AUTO_MAPS:
        raise CheckpointError(
            f"{said}: model_type {shown(model_type)} is none of ours; convert original checkpoints first"
        )
    return model_type


def add_head(folder, head, task, note=None) -> None:
    """Puts a head that a training saved as a repo of its own into `folder`/<task>, where the pipeline looks for it.

    Args:
        folder: of the captioner, a repo. head: folder of the head. task: "ask" or "match".
        note: text of a section of README.md; one of an earlier time is replaced.

    Raises:
        CheckpointError: a file of the head is missing or leads out of its folder, or the disk is full.
    """
    folder, head = Path(folder), CheckpointFolder(head)
    with written_beside(folder / task, ".tmp") as temporary:
        copy_files(head, ("config.json", "model.safetensors", "processor_config.json", *TOKENIZER_FILES), temporary)
    describe_head(folder, task, note)


def describe_head(folder: Path, task, note=None) -> None:
    """Brings the root of a repo up to date with a head that came into `folder`/<task>; `note` as `add_head` has it."""
    assemble(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    if note is not None:
        card = re.sub(rf"\n## {task}/\n.*?(?=\n## |\Z)", "", card, flags=re.DOTALL).rstrip()
        (folder / "README.md").write_text(f"{card}\n\n## {task}/\n\n{note}\n", encoding="utf-8")


def copy_files(folder: CheckpointFolder, names, target: Path) -> None:
    """Copies files of a checkpoint.

    Raises:
        CheckpointError: one is missing, or leads out of the folder.
    """
    for name in names:
        if (path := folder.file(name)) is None:
            raise CheckpointError(f"{folder.said(name)}: no such file; a whole checkpoint has one")
        shutil.copyfile(path, target / name)


def custom_pipelines(folder) -> dict:
    """transformers' pipelines over photos that a repo offers: of its root's task, and of the heads in subfolders."""
    config = read_json(Path(folder) / "config.json")
    root = task_of(config)
    if root is None or not config.get("region_model"):
        return {}
    tasks = [root]
    for task in HEADS:
        head = Path(folder) / task / "config.json"
        if task != root and head.is_file() and task_of(read_json(head)) == task:
            tasks.append(task)
    reference = MODELING + config["architectures"][0]
    auto_class = next(name for name, other in AUTO_MAPS["mengzi_oscar"].items() if other == reference)
    return {PIPELINES[task]: PIPELINE | {"pt": [auto_class]} for task in tasks}


def task_of(config: dict) -> str | None:
    """ "caption", "match" or "ask"; None where a model does nothing with a single photo."""
    architectures = config.get("architectures")
    return TASKS.get(architectures[0]) if listed(word).holds(architectures) and len(architectures) == 1 else None


def code_files(folder) -> list[str]:
    """Files of this package that a repo folder carries: what its Auto classes and pipelines import, and `ENDPOINT`."""
    folder, references = Path(folder), set()
    for config_path in folder.rglob("config.json"):
        config = read_json(config_path)
        kind = kind_of(config, config_path)
        references |= {*AUTO_MAPS[kind].values(), *PROCESSORS[kind][1].values()}
    if custom_pipelines(folder):
        references.add(PIPELINE["impl"])
    return sorted([*with_imports(map(file_of, references)), *(ENDPOINT if custom_pipelines(folder) else ())])


def code_in(folder: Path) -> list[Path]:
    """The files at the root of a repo folder that `code_files` may name."""
    return [*folder.glob("*.py"), *folder.glob(ENDPOINT[1])]


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
    folder = folder_of_region_model(name)
    return folder.config(region_model_classes(folder.json("config.json")["model_type"])[0].config_class)


def folder_of_region_model(name) -> CheckpointFolder:
    """Of a name as convert takes it: a folder, or "org/name@revision"."""
    name, _, revision = (
        str(name).partition("@") if PINNED.fullmatch(str(name)) and not Path(name).exists() else (str(name), "", None)
    )
    folder = CheckpointFolder(name, revision)
    model_type = folder.json("config.json").get("model_type")
    if region_model_classes(model_type) is None:
        raise CheckpointError(f"{name}: is not a region model (model_type {shown(model_type)})")
    return folder


def check_repo(folder) -> list[Path]:
    """The files of a complete repo, relative to its folder, sorted: what `push` sends.

    Only files on an allowlist: those with the names of a checkpoint's files, with valid contents that load; our code,
    byte for byte; and `auto_map`s that name no other code.

    Raises:
        CheckpointError: a file is missing, unexpected or unsafe to load, or weights and config disagree.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json there; name a folder that convert or the training wrote")
    files = own_files(folder)
    if isinstance(region_model := read_json(folder / "config.json").get("region_model"), str):
        tell_unless_pinned(region_model)
    models = {
        name.parent: kind_of(read_json(folder / name), folder / name) for name in files if name.name == "config.json"
    }
    for name in files:
        kind = models.get(name.parent)
        known = (*OF_A_MODEL, *OF_A_KIND.get(kind, ()), *MAY_BE_OF_A_KIND.get(kind, ()))
        of_the_model = kind and (name.name in known or SHARD.fullmatch(name.name))
        of_the_repo = len(name.parts) == 1 and (name.name in (*OF_A_REPO, *ENDPOINT) or name.suffix == ".py")
        if len(name.parts) > 2 or not (of_the_model or of_the_repo):
            raise CheckpointError(f"{folder}: {name} is no file that a checkpoint of ours has; {what_to_do(name)}")
        check_content(folder / name)
    for subfolder in sorted(models):
        check_model(folder / subfolder, custom_pipelines(folder) if subfolder == Path() else {})
    check_widths(folder, models)
    needed, there = set(code_files(folder)), {path.name for path in code_in(folder)}
    for problem, names in (
        ("lacks the code file", needed - there),
        ("has code that it does not need:", there - needed),
    ):
        if names:
            raise CheckpointError(f"{folder}: {problem} {sorted(names)[0]}; {MENDS}")
    for name in sorted(needed):
        if (folder / name).read_bytes() != (PACKAGE / name).read_bytes():
            raise CheckpointError(f"{folder}: {name} is not the code of this package; {MENDS}")
    card = folder / "README.md"
    try:
        metadata = ModelCard(card.read_text(encoding="utf-8")).data.to_dict() if card.is_file() else {}
    except Exception as error:  # YAML of a stranger makes its reader raise anything at all
        raise CheckpointError(f"{card}: its metadata cannot be read ({one_line(error)})") from None
    missing = [key for key in ("license", "language", "library_name", "pipeline_tag") if not metadata.get(key)]
    if missing:
        what = f"README.md does not say {', '.join(missing)} in its metadata: write that into it"
        raise CheckpointError(f"{folder}: {what if card.is_file() else f'has no README.md; {MENDS}'}")
    return files


def what_to_do(name: Path) -> str:
    """About a file that no checkpoint of ours has."""
    if name.suffix == ".py" and (PACKAGE / name.name).is_file():
        return MENDS
    if name.parts[0] in PIPELINES and len(name.parts) > 1:
        return f"remove it (mengzi-oscar convert HEAD DIR/{name.parts[0]} brings a head without such files)"
    return "remove it"


def check_widths(folder: Path, models: dict) -> None:
    """
    Raises:
        CheckpointError: a head reads other features than the root.
    """
    widths = {
        subfolder: read_json(folder / subfolder / "config.json").get("img_feature_dim")
        for subfolder, kind in models.items()
        if kind == "mengzi_oscar"
    }
    for subfolder, width in widths.items():
        if width != widths.get(Path(), width):
            raise CheckpointError(
                f"{folder}: {subfolder}/ reads features {width} wide, the root {widths[Path()]}; put a head there that "
                "was trained with the root's region model"
            )


def own_files(folder: Path) -> list[Path]:
    """Every file below a folder, relative to it, sorted.

    Raises:
        CheckpointError: a link, hard or symbolic, a hidden file, or something that is no file: nothing that lies
            elsewhere, or that nobody sees, is sent. Weights of a subfolder may be a hard link (`take_along`): they are
            sent only if they are those of the model that the subfolder's config describes.
    """
    files = []
    for place, subfolders, names in os.walk(folder):  # follows no links
        for name in [*subfolders, *names]:
            path = Path(place, name)
            relative, status = path.relative_to(folder), path.lstat()
            if relative.as_posix() in NOT_SENT and stat.S_ISREG(status.st_mode):
                continue
            if name.startswith(".") or stat.S_ISLNK(status.st_mode):
                what = "a link" if stat.S_ISLNK(status.st_mode) else "hidden"
                raise CheckpointError(f"{folder}: {relative} does not belong in a Hub repo: it is {what}; remove it")
            if name in subfolders:
                continue
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{folder}: {relative} is no file; remove it")
            if status.st_nlink > 1 and not (len(relative.parts) == 2 and path.suffix == ".safetensors"):
                raise CheckpointError(
                    f"{folder}: {relative} is one file with another name elsewhere (a hard link); put a copy there"
                )
            files.append(relative)
    return sorted(files)


def check_content(path: Path) -> None:
    """A file holds what its name says.

    Raises:
        CheckpointError: a pickle named .json, ...
    """
    if path.suffix == ".json":
        read_json(path)
        return
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return
        if path.suffix == ".png":
            with Image.open(path, formats=["PNG"]) as image:
                image.verify()
            return
        path.read_text(encoding="utf-8")
    except Exception as error:  # whatever a reader makes of what is something else
        raise CheckpointError(f"{path}: is not what its name says ({one_line(error)})") from None


def check_model(folder, pipelines: dict) -> None:
    """Config, weights and processor of one model (a repo's root or a subfolder) are there and fit one another.

    Args:
        pipelines: what its config must say of `custom_pipelines`.
    """
    files, config = CheckpointFolder(folder), read_json(folder / "config.json")
    kind = kind_of(config, folder / "config.json")
    for name, field, found, wanted in (
        ("config.json", "auto_map", config.get("auto_map"), AUTO_MAPS[kind]),
        ("config.json", "custom_pipelines", config.get("custom_pipelines"), pipelines or None),
        *((name, field, said.get(field), wanted) for name, field, said, wanted in processor_files(files, kind)),
        *(("config.json", field, config.get(field), None) for field in OF_WHO_LOADS),
    ):
        if found != wanted:
            wanted = f"not the {field} of a Hub repo" if wanted else f"{field}, which no checkpoint of ours says"
            mends = MENDS if field in ("auto_map", "custom_pipelines") else "take it out"
            raise CheckpointError(f"{folder}: {name} has {wanted}; {mends}")
    classes = {reference.split(".")[1]: reference.split(".")[0] for reference in AUTO_MAPS[kind].values()}
    name = (config.get("architectures") or [AUTO_MAPS[kind]["AutoModel"].split(".")[1]])[0]
    if not isinstance(name, str) or name not in classes or name.endswith("Config"):
        raise CheckpointError(f"{folder}: config.json names the class {shown(name)}, which is none of ours")
    for file in OF_A_KIND[kind]:
        searches = file != "generation_config.json" or name == "MengziOscarForImageCaptioning"
        if searches and files.file(file) is None:
            from_tokenizer = (
                file == "vocab.txt" and files.file("tokenizer_config.json") and files.file("tokenizer.json")
            )
            mends = MENDS if from_tokenizer else "copy it from where the checkpoint came from"
            raise CheckpointError(f"{folder}: {file} is missing; {mends}")
    model_class = getattr(import_module(f"..{classes[name]}", __package__), name)
    config = files.config(model_class.config_class)
    if kind == "mengzi_oscar":
        load_processor(folder)
        with files.reading("generation_config.json"):
            generation_config(files.json("generation_config.json", {}), config)
    else:
        load_region_processor(files)
    weights = files.weights()
    if (calibration := read_calibration(files)) is not None:
        check_calibration(calibration, weights, files.name)
    with files.reading("config.json"), torch.device("meta"):
        check_size(model_class, config, weights)
        model = model_class(config)
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: list(tensor.shape) for key, tensor in weights.items()}
    unsaved = set(model.all_tied_weights_keys) - set(found)
    wrong = sorted(key for key in {**shapes, **found} if found.get(key) != shapes.get(key) and key not in unsaved)
    if wrong:
        found, wanted = found.get(wrong[0]), shapes.get(wrong[0])
        raise CheckpointError(
            f"{folder}: model.safetensors does not fit {name}, e.g. {wrong[0]}: {found} instead of {wanted}"
        )


def processor_files(folder: CheckpointFolder, kind: str):
    """(file, "auto_map", what it says, what it must say) of the files beside config.json that may name code."""
    name, auto_map = PROCESSORS[kind]
    yield name, "auto_map", folder.json(name, {}), auto_map
    if kind == "mengzi_oscar":
        yield "tokenizer_config.json", "auto_map", folder.json("tokenizer_config.json", {}), None


def push(folder, repo_id, private=False, create_pr=False) -> str:
    """Sends a folder that passes `check_repo` to the Hub as one commit (or pull request); returns its address.

    Raises:
        CheckpointError: the folder does not pass, or the Hub refuses (no token, no right, no connection).
    """
    files = check_repo(folder)
    try:
        api = HfApi(library_name="mengzi-oscar")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id=repo_id,
            operations=[CommitOperationAdd(name.as_posix(), Path(folder, name)) for name in files],
            create_pr=create_pr,
            commit_message="Upload with mengzi-oscar push",
        )
    except (OSError, HTTPError, HFValidationError) as error:
        raise CheckpointError(f"{repo_id}: the Hub rejected it: {one_line(error)}") from None
    return commit.pr_url or commit.commit_url


def write_json(path, data) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
