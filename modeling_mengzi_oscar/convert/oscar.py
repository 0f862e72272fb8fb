"""An original Mengzi-Oscar (or Oscar, or plain BERT) checkpoint -> a Hub repo of ours.

Parameter names do not change, so `from_pretrained` reads original folders too; what it lacks is strictness. Here every
key and shape must fit, the task is found from the keys, pickles are read as tensors only, and the result is complete:
safetensors, config, code, tokenizer, processor and generation config, model card. What the original's loaders accept
silently (LayerNorm.gamma, a text BERT as a start, a relation head of another size) is done here and said.

An output inside the folder of a checkpoint (`both/match`, `both/ask`) is a head of that checkpoint: heads.py.
"""

import copy
import inspect
import re
from functools import cached_property
from pathlib import Path

import torch
from transformers import BertTokenizer

from .. import modeling_mengzi_oscar as modeling
from ..checkpoint_folder import (
    CALIBRATION,
    WEIGHTS,
    CheckpointError,
    CheckpointFolder,
    check_weights,
    not_pinned,
    read_tensors,
    read_vocabulary,
)
from ..configuration_mengzi_oscar import PINNED, MengziOscarConfig
from ..fields import check_fields, flag
from ..generation_mengzi_oscar import published_generation_config
from ..hub.model_card import head_section, model_card
from ..hub.repo import (
    REGION_MODEL_FOLDER,
    assemble,
    card_task,
    copy_files,
    describe_head,
    folder_of_region_model,
    region_model_config,
    save_vocabulary,
    task_of,
    written_beside,
)
from ..loading import check_size, generation_config, load_processor
from ..processing_mengzi_oscar import MengziOscarProcessor
from . import vinvl
from .heads import check_fits, checkpoint_around
from .label_maps import read_answers

HEADS = {
    "pretrain": modeling.MengziOscarForPreTraining,
    "caption": modeling.MengziOscarForImageCaptioning,
    "retrieval": modeling.MengziOscarForImageTextRetrieval,
    "vqa": modeling.MengziOscarForVisualQuestionAnswering,
    "gqa": modeling.MengziOscarForVisualQuestionAnswering,
    "nlvr2": modeling.MengziOscarForVisualReasoning,
}
PROCESSOR_SETTINGS = {  # of the published commands of Mengzi-Oscar, else of Oscar's; all of them feed tags
    "pretrain": {"layout": "pair", "max_length": 35, "max_regions": 50},
    "caption": {"layout": "caption", "max_length": 70, "max_regions": 50},
    "retrieval": {"layout": "pair", "max_length": 70, "max_regions": 70},
    "vqa": {"layout": "pair", "max_length": 128, "max_regions": 50},
    "gqa": {"layout": "pair", "max_length": 165, "max_regions": 45},
    "nlvr2": {"layout": "pair", "max_length": 55, "max_regions": 40},
}
CONFIG_FIELDS = {*inspect.signature(MengziOscarConfig).parameters, "num_labels", "id2label", "label2id"} - {"kwargs"}
OF_THE_IMAGE = ("bert.img_embedding.", "bert.LayerNorm.", "cls.seq_relationship.")  # what no text BERT has
OF_THE_HEADS = ("bert.pooler.", "cls.", "classifier.")
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


def convert(
    source,
    output,
    task="auto",
    region_model=None,
    answers=None,
    vocab=None,
    allow_missing=False,
    base_model=None,
    datasets=None,
    scores=None,
) -> tuple[str, list[str]]:
    """Convert a checkpoint; `output` appears only when it is complete.

    Args:
        source: folder with config.json and pytorch_model.bin (or model.safetensors), one of these files with the
            config beside it, or a Hub id, "name/repo" or "name/repo@revision".
        output: folder to create; it must not exist or be empty. `match` or `ask` in the folder of a checkpoint: the
            source is a head, original, converted or trained, and becomes one of that checkpoint.
        task: a key of `HEADS`, or "auto": found from the keys and the config's `loss_type`.
        region_model: "name/repo@revision", or the folder of one, which is copied into the output.
        answers: file of VQA's or GQA's answers: JSON or pickle of {answer: id}, or of a list of answers.
        vocab: vocab.txt, if there is none next to the weights.
        allow_missing: parameters of the heads and the pooler may be missing; they are initialised.
        base_model, datasets, scores: for the model card, see `model_card`.

    Returns:
        The task, and a sentence for everything that was not taken over as it was.

    Raises:
        CheckpointError: in one line what does not fit. Nothing has been written then.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output}: is not an empty folder; give another output, or remove it first")
    folder, state = read_source(source)
    raw_config = folder.json("config.json")
    ours = raw_config.get("model_type") == MengziOscarConfig.model_type and folder.file("processor_config.json")
    with folder.reading("config.json"):
        if task == "auto":
            task = card_task(raw_config) if ours and task_of(raw_config) else find_task(state, raw_config)
    tokenizer = make_tokenizer(vocab, folder)
    config = make_config(raw_config, state, tokenizer, folder)
    if answers:
        names = read_answers(answers)
        if len(names) != config.num_labels:
            raise CheckpointError(f"{answers}: holds {len(names)}, but the model has {config.num_labels} answers")
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    root = checkpoint_around(output)
    if root:
        config.region_model = check_fits(root, output, task, config, folder, region_model)
    elif region_model:
        config.region_model = check_region_model(region_model, config.img_feature_dim)
    elif config.region_model and not PINNED.fullmatch(config.region_model):
        raise CheckpointError(
            f"{folder.said('config.json')}: names the region model {config.region_model!r}: give its folder with "
            "--region-model"
        )
    with folder.reading("config.json"):
        check_size(HEADS[task], config, state)
        model = HEADS[task](config)
    state, notes = fit(state, model, source, allow_missing)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    if ours:  # as it was stored
        model.to(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
    if task == "caption":
        with folder.reading("generation_config.json"):
            said = generation_config(folder.json("generation_config.json", {}), config) if ours else None
        model.generation_config = said or published_generation_config(config)
    if base_model is None and not Path(source).exists():
        base_model = str(source).split("@")[0]
    if line := not_pinned(config.region_model):
        notes.append(f"{line[0].upper()}{line[1:]}.")
    origin = (
        "Converted from the original weights by `mengzi-oscar convert`." if not ours else "Taken from a checkpoint."
    )
    card = model_card(task, config, output.name, base_model, datasets, scores, notes=[origin, *notes])
    with written_beside(output, ".partial") as partial:
        model.save_pretrained(partial)
        settings = processor_settings(task, config)
        processor = load_processor(folder) if ours else MengziOscarProcessor(tokenizer, **settings)
        processor.save_pretrained(partial)
        save_vocabulary(processor.tokenizer, partial / "vocab.txt")
        if not root and config.region_model == REGION_MODEL_FOLDER:
            (partial / REGION_MODEL_FOLDER).mkdir()
            detector = folder_of_region_model(region_model)
            names = ["config.json", "preprocessor_config.json", "model.safetensors"]
            names += [CALIBRATION] if detector.file(CALIBRATION) else []
            copy_files(detector, names, partial / REGION_MODEL_FOLDER)
        if not root:
            assemble(partial, card)
    if root:
        describe_head(root, output.name, head_section(task, notes=[origin, *notes]))
    return task, notes


def processor_settings(task, config) -> dict:
    """Layout and lengths with which a task was published, within the positions that the model has."""
    settings = PROCESSOR_SETTINGS[task]
    return settings | {"max_length": min(settings["max_length"], config.max_position_embeddings)}


class OriginalFolder(CheckpointFolder):
    """An original checkpoint, read as what `convert` makes of it, without writing that: for a training to start from.

    What it lacks or has left over is for whoever loads it to judge.
    """

    def config(self, config_class) -> MengziOscarConfig:
        return copy.deepcopy(self.original_config)

    @cached_property
    def original_config(self) -> MengziOscarConfig:
        return make_config(self.json("config.json"), self.weights(), make_tokenizer(None, self), self)

    def weights(self) -> dict[str, torch.Tensor]:
        state = with_todays_names(super().weights(), self.name)
        if DECODER in state:  # a pickle has tied weights as one tensor; a model that does not tie them trains two
            state[DECODER] = state[DECODER].clone()
        return state

    def processor(self, task) -> MengziOscarProcessor:
        """With layout, lengths and tags of a task."""
        return MengziOscarProcessor(make_tokenizer(None, self), **processor_settings(task, self.original_config))


def checkpoint_to_start_from(name) -> CheckpointFolder:
    """A checkpoint of ours, or an original one as an `OriginalFolder`.

    Raises:
        CheckpointError: no such folder, and not from the Hub either.
    """
    folder = CheckpointFolder(name)
    is_ours = folder.json("config.json").get("model_type") not in (None, "bert")
    return folder if is_ours else OriginalFolder(name)


def convert_detector(source, output, labelmap, labels=None) -> str:
    """The original's detector (vinvl_vg_x152c4.pth) into a Hub repo of its own; what came out, in words."""
    if not labelmap:
        raise CheckpointError(f"{source}: the detector needs its label map (--labelmap)")
    output = vinvl.convert(source, output, labelmap, labels)
    config = region_model_config(output)
    said = f"region model vinvl, features {config.region_feature_size} wide."
    if labels is None:
        said += (
            " Its Chinese words are this package's own; a released captioner wants the words it learnt: give its"
            " dictionary with --labels (docs/vinvl.md says where it is)."
        )
    return said


def read_source(source) -> tuple[CheckpointFolder, dict[str, torch.Tensor]]:
    """The folder of the config, and a state dict with today's names."""
    path = Path(source)
    if path.is_file():
        folder, state = CheckpointFolder(path.parent), read_tensors(path)
        check_weights(state, str(path))
        return folder, with_todays_names(state, path)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", str(source)):
        name, _, revision = str(source).partition("@")
        folder = CheckpointFolder(name, revision or None)
    elif not path.is_dir():
        raise CheckpointError(f"{source}: no such file or folder; check the path")
    else:
        folder = CheckpointFolder(source)
    if not any(folder.file(name) for name in WEIGHTS):
        raise CheckpointError(f"{source}: has neither {WEIGHTS[0]} nor {WEIGHTS[-1]}; name a folder that has")
    return folder, with_todays_names(folder.weights(), source)


def with_todays_names(state, path) -> dict[str, torch.Tensor]:
    """No "module.", weight and bias for gamma and beta, "bert." in front."""
    names = {}
    for key in state:
        name = key.removeprefix("module.")
        name = re.sub("LayerNorm.gamma$", "LayerNorm.weight", re.sub("LayerNorm.beta$", "LayerNorm.bias", name))
        if name.split(".")[0] in ("embeddings", "encoder", "pooler", "img_embedding", "LayerNorm"):
            name = f"bert.{name}"
        names[key] = name
    state = {names[key]: value for key, value in state.items() if not key.endswith("embeddings.position_ids")}
    if "cls.predictions.decoder.bias" in state:  # transformers' BERT has the one vector under two names
        copy = state.pop("cls.predictions.decoder.bias")
        if not same(state.setdefault("cls.predictions.bias", copy), copy):
            raise CheckpointError(f"{path}: cls.predictions.decoder.bias differs from cls.predictions.bias")
    return state


def is_plain_bert(state) -> bool:
    return "bert.img_embedding.weight" not in state


def find_task(state, config) -> str:
    """The head that the keys belong to; classifiers of one image by their loss and number of labels."""
    classifier = [state[key] for key in sorted(state) if key.startswith("classifier.") and key.endswith(".weight")]
    encoder_only = not any(key.startswith("cls.") for key in state)
    if is_plain_bert(state) or "cls.seq_relationship.weight" in state or (encoder_only and not classifier):
        return "pretrain"
    if not classifier:
        return "caption"
    if classifier[0].shape[1] != len(state["bert.img_embedding.weight"]):
        return "nlvr2"
    if config.get("loss_type") in ("bce", "kl"):
        return "vqa"
    return "retrieval" if len(classifier[-1]) <= 2 else "gqa"


def make_config(raw, state, tokenizer, folder) -> MengziOscarConfig:
    source = folder.name
    fields = {key: value for key, value in raw.items() if key in CONFIG_FIELDS}
    if is_plain_bert(state):  # as the published pre-training starts
        fields = {"img_feature_dim": 2054, "use_img_layernorm": True, "num_contrast_classes": 3} | fields
    elif "img_feature_dim" not in fields:
        width = state["bert.img_embedding.weight"].shape[1]
        raise CheckpointError(f"{source}: config.json has no img_feature_dim; the weights have {width}: add it")
    if str(fields.get("img_feature_type", "")).startswith("dis_code"):
        raise CheckpointError(f"{source}: img_feature_type {fields['img_feature_type']!r} (codes) is not supported")
    fields |= {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with folder.reading("config.json"):
        config = MengziOscarConfig(**fields)
    if len(tokenizer) != config.vocab_size:
        raise CheckpointError(
            f"{source}: the vocabulary has {len(tokenizer)} tokens, the config says {config.vocab_size}; "
            "name the one of the training (--vocab)"
        )
    return config


def fit(state, model, source, allow_missing=False) -> tuple[dict[str, torch.Tensor], list[str]]:
    """What `model` takes of a state dict, and a sentence for everything that was left out or stays initialised.

    Raises:
        CheckpointError: keys left over, missing, or of another shape, by name.
    """
    state, notes, plain = dict(state), [], is_plain_bert(state)
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    relation = [key for key in state if key.startswith("cls.seq_relationship.") and key in expected]
    if plain and any(state[key].shape != expected[key] for key in relation):
        state = {key: value for key, value in state.items() if key not in relation}
        notes.append("Its next-sentence head has another number of classes and was left out.")
    tied = DECODER in model.all_tied_weights_keys
    absent = sorted(expected.keys() - state.keys() - ({DECODER} if tied else set()))  # safetensors keep one of the two
    problems = {
        "left over": sorted(state.keys() - expected.keys()),
        "missing": [key for key in absent if not may_miss(key, plain, allow_missing)],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key])}"
            for key in sorted(expected.keys() & state.keys())
            if state[key].shape != expected[key]
        ],
    }
    if any(problems.values()):
        said = [
            f"{len(keys)} {what}: {', '.join(keys[:3])}{' …' * (len(keys) > 3)}"
            for what, keys in problems.items()
            if keys
        ]
        heads = all(may_miss(key, plain, True) for key in problems["missing"]) and problems["missing"]
        hint = " (--allow-missing initialises what is missing)" if heads else ""
        hint += " (config.json lacks use_img_layernorm)" if "bert.LayerNorm.weight" in problems["left over"] else ""
        raise CheckpointError(f"{source}: does not fit {type(model).__name__}: {'; '.join(said)}{hint}")
    if tied and not same(state.get(DECODER, state[WORDS]), state[WORDS]):
        raise CheckpointError(f"{source}: {DECODER} differs from the word embeddings, but this model ties them")
    if absent:
        notes.append(f"Not in the source and initialised at random: {', '.join(absent)}.")
    return state, notes


def may_miss(key, plain, allow_missing) -> bool:
    return (plain and key.startswith(OF_THE_IMAGE)) or (allow_missing and key.startswith(OF_THE_HEADS))


def same(one, other) -> bool:
    return one.shape == other.shape and (one.is_meta or torch.equal(one, other))


def make_tokenizer(vocab, folder) -> BertTokenizer:
    path, said = (Path(vocab), str(vocab)) if vocab else (folder.file("vocab.txt"), folder.said("vocab.txt"))
    if path is None or not path.is_file():
        raise CheckpointError(f"{said}: no vocabulary there; name a BERT vocab.txt with --vocab")
    tokens = read_vocabulary(path, said)
    missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} - tokens.keys()
    if missing:
        raise CheckpointError(f"{said}: lacks {sorted(missing)[0]}; it is not the vocabulary of a BERT")
    lower_case = folder.json("tokenizer_config.json", {}).get("do_lower_case", True)
    with folder.reading("tokenizer_config.json"):
        check_fields({"do_lower_case": lower_case}, {"do_lower_case": flag})
    return BertTokenizer(vocab=tokens, do_lower_case=bool(lower_case))


def check_region_model(name, img_feature_dim) -> str:
    """What the config says of the region model; its features must be as wide as the training's."""
    if not Path(name).is_dir() and not PINNED.fullmatch(str(name)):
        raise CheckpointError(f"{name}: a region model is a folder, or a Hub id with revision: name/repo@revision")
    config = region_model_config(name)
    width = config.region_feature_size
    if width != img_feature_dim:
        raise CheckpointError(
            f"{name}: its features are {width} wide, this checkpoint was trained on {img_feature_dim}"
        )
    return REGION_MODEL_FOLDER if Path(name).is_dir() else str(name)
