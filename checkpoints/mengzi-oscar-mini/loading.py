"""How models, processors and region models come into memory: looked at first, then built, or refused in one line.

No library reads a checkpoint's JSON files, no code that it holds or names runs, and sizes and weights are looked at
before a model is built.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AddedToken, BertTokenizer, GenerationConfig

from .checkpoint_folder import (
    CheckpointError,
    CheckpointFolder,
    known,
    one_line,
    read_vocabulary,
    shown,
    tell_unless_pinned,
)
from .configuration_mengzi_oscar import PINNED, MengziOscarConfig
from .fields import check_fields, either, flag, listed, mapping, number, one_of, optional, whole, word
from .processing_mengzi_oscar import MengziOscarProcessor

if TYPE_CHECKING:  # transformers before 5.10 brings only the files that the file of a class names itself
    from .supported_transformers import OLDEST  # noqa: F401

ROOM_FOR_NEW_PARTS = 50_000_000  # numbers that a model may have and its file not: a new head
TOKENIZERS = (  # a BERT tokenizer, or whatever a BERT's tokenizer.json says, as some releases of transformers write it
    *(None, "BertTokenizer", "BertTokenizerFast"),
    *("TokenizersBackend", "PreTrainedTokenizerFast"),
)
WITH_PROCESSOR = {"AutoProcessor": "processing_mengzi_oscar.MengziOscarProcessor"}  # transformers writes it there too
TASKS = {  # class of a checkpoint's root -> what it does with a photo
    "MengziOscarForImageCaptioning": "caption",
    "MengziOscarForImageTextRetrieval": "match",
    "MengziOscarForVisualQuestionAnswering": "ask",
}
WITHOUT_TASK = {  # class of a root that does nothing with a single photo -> what it is, and what loads it
    "MengziOscarForVisualReasoning": "judges a sentence about two photos: load it with AutoModelForMultipleChoice",
    "MengziOscarForPreTraining": "is pre-trained for no task yet: fine-tune it first (docs/recipes.md)",
}
KINDS = {"caption": "a captioner", "match": "a match head", "ask": "a head that answers questions"}
SPECIAL_TOKENS = ("cls_token", "mask_token", "pad_token", "sep_token", "unk_token")
TOKEN = either(
    word,
    mapping(
        one_of("content", "lstrip", "normalized", "rstrip", "single_word", "special", "__type"), either(word, flag)
    ),
)
TOKENIZER_FIELDS = {
    **dict.fromkeys(SPECIAL_TOKENS, TOKEN),
    "do_lower_case": flag,
    "strip_accents": optional(flag),
    "tokenize_chinese_chars": flag,
    "model_max_length": optional(number(1, 1e31)),
    "extra_special_tokens": optional(either(listed(TOKEN), one_of({}))),
}
TOKEN_IDS = either(whole(0, 10_000_000), listed(whole(0, 10_000_000)))
GENERATION_FIELDS = {
    "bos_token_id": optional(whole(0, 10_000_000)),
    "eos_token_id": optional(TOKEN_IDS),
    "pad_token_id": optional(whole(0, 10_000_000)),
    "do_sample": optional(flag),
    "early_stopping": optional(either(flag, one_of("never"))),
    "length_penalty": optional(number(-100, 100)),
    "max_length": optional(whole(1, 1_000_000)),
    "max_new_tokens": optional(whole(1, 1_000_000)),
    "min_length": optional(whole(0, 1_000_000)),
    "no_repeat_ngram_size": optional(whole(0, 1_000)),
    "num_beams": optional(whole(1, 100)),
    "num_return_sequences": optional(whole(1, 100)),
    "repetition_penalty": optional(number(0.01, 100)),
    "temperature": optional(number(0.01, 100)),
    "top_k": optional(whole(0, 10_000_000)),
    "top_p": optional(number(0, 1)),
    "use_cache": optional(flag),
}


def as_folder(name, revision=None, subfolder="") -> CheckpointFolder:
    return name if isinstance(name, CheckpointFolder) else CheckpointFolder(name, revision, subfolder)


def load_model(model_class, name, revision=None, subfolder="", dtype="float32", attn_implementation=None, **settings):
    """A model, and transformers' report of what its file lacked, had left over, or had in another shape.

    Args:
        name: folder or Hub id, or a `CheckpointFolder`.
        dtype, attn_implementation: as `from_pretrained` takes them.
        **settings: fields of the config that shall have another value than the file's.

    Raises:
        CheckpointError: nothing to load, a file damaged, a field that may not be, or a config of another model.
    """
    folder = as_folder(name, revision, subfolder)
    config = folder.config(model_class.config_class)
    for field, value in settings.items():
        setattr(config, field, value)
    generation = None
    if model_class.can_generate():
        generation = folder.json("generation_config.json", {})
        with folder.reading("generation_config.json"):
            generation = generation_config(generation, config)
    state = folder.weights()
    with folder.reading("config.json"):
        check_size(model_class, config, state)
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except ImportError:
        raise
    except Exception as error:
        raise CheckpointError(f"{folder.name}: cannot be loaded as {model_class.__name__}: {one_line(error)}") from None
    if generation is not None:
        model.generation_config = generation
    model.name_or_path = model.config.name_or_path = folder.checkpoint
    model.config._commit_hash = folder.commit
    return model, report


def load_checked(model_class, name, revision=None, subfolder="", **options):
    """`load_model` that refuses a checkpoint which does not fit the model.

    Raises:
        CheckpointError: as `load_model`; weights missing, left over or of another shape.
    """
    folder = as_folder(name, revision, subfolder)
    model, report = load_model(model_class, folder, **options)
    problems = {kind: sorted(map(str, report[kind])) for kind in report if kind.endswith("keys") and report[kind]}
    if problems:
        found = "; ".join(f"{len(keys)} {kind.replace('_', ' ')}, e.g. {keys[0]}" for kind, keys in problems.items())
        raise CheckpointError(
            f"{folder.name}: its weights do not fit {model_class.__name__} ({found}); "
            "config.json and weights must be of one checkpoint"
        )
    return model


def check_size(model_class, config, state) -> None:
    """A config of another model may ask for more memory than there is: it is told from the file before. Whole numbers
    that stand for weights would be cast in silence.

    Raises:
        ValueError
    """
    with torch.device("meta"):
        model = model_class(config)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(tensor.numel() for tensor in state.values())
    if wanted > 2 * stored + ROOM_FOR_NEW_PARTS:
        raise ValueError(f"describes a model of {wanted:,} numbers, but the weights are {stored:,}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name in state and not state[name].is_floating_point():
            raise ValueError(f"describes a model of weights, but {name} holds {state[name].dtype}")


def generation_config(said: dict, config) -> GenerationConfig | None:
    """What a generation_config.json says of the search; None where it says nothing."""
    check_fields(said, GENERATION_FIELDS)
    said = {name: value for name, value in said.items() if name in GENERATION_FIELDS}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if said.get(name) not in (None, getattr(config, name), [getattr(config, name)]):
            raise ValueError(f"{name} is {said[name]}; config.json says {getattr(config, name)}")
    for name in ("max_length", "max_new_tokens"):
        if (said.get(name) or 0) > config.max_position_embeddings:
            raise ValueError(f"{name} is {said[name]}; the model has {config.max_position_embeddings} positions")
    if (said.get("num_return_sequences") or 1) > (said.get("num_beams") or 1) and not said.get("do_sample"):
        raise ValueError(f"num_return_sequences is {said['num_return_sequences']}, more than num_beams")
    return GenerationConfig(**said) if said else None


def load_processor(name, revision=None, subfolder="") -> MengziOscarProcessor:
    """The processor of a checkpoint, whose vocabulary and lengths are those of its model.

    Raises:
        CheckpointError: a file is missing or damaged, a field may not be, or the tokenizer is not one of ours.
    """
    folder = as_folder(name, revision, subfolder)
    config = folder.config(MengziOscarConfig)
    original = folder.json("config.json").get("model_type") != MengziOscarConfig.model_type  # they have no such file
    said = folder.json("processor_config.json", {} if original else None)
    tokenizer = load_tokenizer(folder)
    with folder.reading("processor_config.json"):
        processor = MengziOscarProcessor(**known(MengziOscarProcessor, said) | {"tokenizer": tokenizer})
        processor.max_length = min(processor.max_length, config.max_position_embeddings)  # texts are cut there
    with folder.reading("tokenizer.json" if folder.file("tokenizer.json") else "vocab.txt"):
        check_together(processor, config)
    return processor


def load_tokenizer(folder: CheckpointFolder) -> BertTokenizer:
    """A BERT tokenizer from tokenizer.json or vocab.txt, which must agree where both are there."""
    said = folder.json("tokenizer_config.json", {})
    if said.get("tokenizer_class") not in TOKENIZERS or said.get("auto_map") not in (None, WITH_PROCESSOR):
        named = said.get("auto_map") or said["tokenizer_class"]
        raise CheckpointError(
            f"{folder.said('tokenizer_config.json')}: asks for {shown(named)}, which is not run; "
            "a checkpoint of ours has a BertTokenizer"
        )
    vocabulary = None
    if path := folder.file("vocab.txt"):
        vocabulary = read_vocabulary(path, folder.said("vocab.txt"))
    added = []
    if folder.file("tokenizer.json"):
        data = folder.json("tokenizer.json")
        with folder.reading("tokenizer.json"):
            tokens, added = vocabulary_of(data)
            said = normalizer_of(data) | said
        if vocabulary not in (None, tokens, data["model"]["vocab"]):  # vocab.txt may lack what was added to it
            raise CheckpointError(f"{folder.said('vocab.txt')}: names other tokens than tokenizer.json; one is wrong")
        vocabulary = tokens
    if not vocabulary:
        raise CheckpointError(f"{folder.said('vocab.txt')}: no vocabulary there, and none in a tokenizer.json either")
    with folder.reading("tokenizer_config.json"):
        if "additional_special_tokens" in said:  # its name before transformers 5
            said = {"extra_special_tokens": said["additional_special_tokens"]} | said
        check_fields(said, TOKENIZER_FIELDS)
        said = {name: value for name, value in said.items() if name in TOKENIZER_FIELDS}
        for name in SPECIAL_TOKENS:
            said[name] = content(said.get(name, f"[{name.removesuffix('_token').upper()}]"))
        said["extra_special_tokens"] = [content(token) for token in said.get("extra_special_tokens") or []]
        special = [*(said[name] for name in SPECIAL_TOKENS), *said["extra_special_tokens"]]
        for token in special:
            if token not in vocabulary:
                raise ValueError(f"{shown(token)} is not in the vocabulary")
        tokenizer = BertTokenizer(vocab=vocabulary, **said)
    with folder.reading("tokenizer.json"):
        tokenizer.add_tokens([AddedToken(**token) for token in added if token["content"] not in special])
    return tokenizer


def content(token) -> str:
    """Of a token as older files write it, with its flags."""
    return token["content"] if isinstance(token, dict) else token


def normalizer_of(data: dict) -> dict:
    """What a tokenizer.json says of capitals, accents and Chinese characters, as a tokenizer_config.json does."""
    normalizer = data.get("normalizer")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        raise ValueError("its normalizer is not that of a BERT tokenizer")
    names = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
    }
    return {name: normalizer[theirs] for name, theirs in names.items() if theirs in normalizer}


def vocabulary_of(data: dict) -> tuple[dict[str, int], list[dict]]:
    """{token: id} of a tokenizer.json, and the tokens in it that are not cut into pieces.

    Raises:
        ValueError: it is not the file of a BERT tokenizer.
    """
    model, added = data.get("model"), data.get("added_tokens", [])
    if not isinstance(model, dict) or model.get("type") != "WordPiece" or not isinstance(model.get("vocab"), dict):
        raise ValueError("holds no WordPiece vocabulary, as a BERT tokenizer has it")
    names = {"content", *("lstrip", "normalized", "rstrip", "single_word", "special")}
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError("added_tokens is no list of tokens")
    rules = {"id": whole(0, 10_000_000), "content": word} | dict.fromkeys(names - {"content"}, flag)
    for token in added:
        check_fields({"id": None, "content": None} | token, rules)
    vocabulary = model["vocab"] | {token["content"]: token["id"] for token in added}
    if {*map(repr, vocabulary.values())} != {*map(repr, range(len(vocabulary)))}:
        raise ValueError(f"its {len(vocabulary):,} tokens have not the ids 0 to {len(vocabulary) - 1:,}, each once")
    return vocabulary, [{name: value for name, value in token.items() if name in names} for token in added]


def check_together(processor: MengziOscarProcessor, config: MengziOscarConfig) -> None:
    """
    Raises:
        ValueError: vocabulary, tokens or lengths of a processor are not those of the model.
    """
    tokenizer = processor.tokenizer
    if len(tokenizer) != config.vocab_size:
        raise ValueError(f"holds {len(tokenizer):,} tokens, config.json says vocab_size {config.vocab_size:,}")
    for name, token_id in (
        ("pad_token_id", tokenizer.pad_token_id),
        ("bos_token_id", tokenizer.cls_token_id),
        ("eos_token_id", tokenizer.sep_token_id),
        ("mask_token_id", tokenizer.mask_token_id),
    ):
        if getattr(config, name) not in (None, token_id):
            raise ValueError(f"config.json says {name} {getattr(config, name)}, in the vocabulary it is {token_id}")
    if processor.layout == "caption" and processor.tag_position_offset != config.tag_position_offset:
        raise ValueError(
            f"tag_position_offset is {processor.tag_position_offset} in processor_config.json and "
            f"{config.tag_position_offset} in config.json"
        )
    for style, token in (processor.styles or {}).items():
        if token not in tokenizer.get_vocab():
            raise ValueError(f"the style {style!r} begins with {token!r}, which is not in the vocabulary")
    for style, length in (processor.style_lengths or {}).items():
        if style not in (processor.styles or {}):
            raise ValueError(f"style_lengths names {style!r}, which is none of its styles")
        if length > config.max_position_embeddings:
            raise ValueError(
                f"the style {style!r} has captions of {length} tokens; the model has {config.max_position_embeddings} "
                "positions"
            )


def region_model_classes(model_type):
    """Model and image processor of a `model_type`, None where it is no region model.

    They are ours: code of another repo never runs. Each is imported where it is needed: the detector needs no timm, the
    grid model no torchvision.
    """
    if model_type == "grid_regions":
        from .modeling_grid_regions import GridRegionImageProcessor, GridRegionModel

        return GridRegionModel, GridRegionImageProcessor
    if model_type == "object_regions":
        from .modeling_object_regions import ObjectRegionImageProcessor, ObjectRegionModel

        return ObjectRegionModel, ObjectRegionImageProcessor
    if model_type == "vinvl":
        from .image_processing_vinvl import VinVLImageProcessor
        from .modeling_vinvl import VinVLModel

        return VinVLModel, VinVLImageProcessor
    return None


def refuse_blind_originals(folder: CheckpointFolder) -> None:
    """
    Raises:
        CheckpointError: an original checkpoint that names no region model; how to make one of it that sees photos.
    """
    said = folder.json("config.json")
    if said.get("model_type") in (None, "bert") and not said.get("region_model"):
        raise CheckpointError(
            f"{folder.name}: an original checkpoint, which names no region model: mengzi-oscar convert {folder.name} "
            "OUTPUT --region-model FOLDER_OR_ID@REVISION makes one that takes photos"
        )


def region_model_folder(name, subfolder="", revision=None) -> CheckpointFolder:
    """Where the region model lies: at `name`, or where the config of the checkpoint at `name` says.

    Raises:
        CheckpointError: there is none.
    """
    folder = CheckpointFolder(name, revision, subfolder)
    said = folder.json("config.json")
    if region_model_classes(said.get("model_type")) is not None:
        return folder
    if not said.get("region_model"):
        model_type = shown(said.get("model_type"))
        refuse_blind_originals(folder)
        if said.get("model_type") == MengziOscarConfig.model_type:
            raise CheckpointError(
                f"{folder.said('config.json')}: names no region model, so it takes features only: for photos convert "
                "the original with --region-model"
            )
        raise CheckpointError(
            f"{folder.said('config.json')}: no region model there, and its config names none (model_type {model_type})"
        )
    named = folder.config(MengziOscarConfig).region_model
    if PINNED.fullmatch(named):
        tell_unless_pinned(named)
        repository, _, revision = named.partition("@")
        named = CheckpointFolder(repository, revision, from_hub=True)  # whatever folder of that name lies here
    else:
        subfolder, named = named, CheckpointFolder(name, revision, named)
        if named.file("config.json") is None:
            beside = Path(name).resolve().parent
            if Path(name).is_dir() and (beside / subfolder / "config.json").is_file():
                raise CheckpointError(f"{name}: is a part of the checkpoint {beside}: name that one")
            raise CheckpointError(
                f"{folder.name}: its config names the region model {subfolder}/, which is not there: copy that folder "
                "from the checkpoint that this one came from, or save that with MengziOscarPipeline.save_pretrained"
            )
    model_type = named.json("config.json").get("model_type")
    if region_model_classes(model_type) is None:
        raise CheckpointError(f"{named.said('config.json')}: is not of a region model (model_type {shown(model_type)})")
    return named


def load_region_model(name, subfolder="", revision=None):
    """Region model and its image processor, float32, from a folder or Hub id.

    `name` is a region model or a Mengzi-Oscar checkpoint that names one in its config: a subfolder of its own repo,
    or "org/name@revision".

    Raises:
        CheckpointError: it is neither, or its weights do not fit.
    """
    from .openvino_networks import read_calibration

    folder = region_model_folder(name, subfolder, revision)
    processor = load_region_processor(folder)
    model_class, _ = region_model_classes(folder.json("config.json")["model_type"])
    model = load_checked(model_class, folder, dtype="float32").eval()
    model.calibration = read_calibration(folder)
    return model.to(memory_format=torch.channels_last), processor  # convolutions are 1.5 times as fast on CPUs


def load_region_processor(folder: CheckpointFolder):
    """The image processor of a region model's folder."""
    _, processor_class = region_model_classes(folder.json("config.json")["model_type"])
    said = folder.json("preprocessor_config.json")
    with folder.reading("preprocessor_config.json"):
        return processor_class(**known(processor_class, said))


def check_width(region_model, config) -> None:
    """
    Args:
        region_model: None where regions come from elsewhere.

    Raises:
        CheckpointError: a captioner of other regions.
    """
    if region_model is None:
        return
    width = region_model.config.region_feature_size
    if width != config.img_feature_dim:
        raise CheckpointError(
            f"{config.name_or_path}: config.json says img_feature_dim {config.img_feature_dim}, but the regions of its "
            f"region model are {width} wide"
        )


def task_of_root(name, revision=None) -> str:
    """What the model at the root of a checkpoint does with a photo: "caption", "match" or "ask".

    Raises:
        CheckpointError: nothing, or there is no checkpoint of ours.
    """
    folder = CheckpointFolder(name, revision)
    said = folder.json("config.json")
    architectures = said.get("architectures")
    root = architectures[0] if listed(word).holds(architectures) and len(architectures) == 1 else None
    if root in WITHOUT_TASK:
        raise CheckpointError(f"{name}: {WITHOUT_TASK[root]}")
    refuse_blind_originals(folder)
    return TASKS.get(root, "caption")  # another class is told when its weights do not fit


def tasks_of(name, revision=None) -> list[str]:
    """What a checkpoint does with a photo: its root's task first, then those of its subfolders.

    Raises:
        CheckpointError: as `task_of_root`.
    """
    root = task_of_root(name, revision)
    return [root, *(task for task in ("match", "ask") if task != root and has_head(name, task, revision))]


def has_head(name, task, revision=None) -> bool:
    """Whether a checkpoint has a further task in a subfolder ("ask", "match")."""
    return CheckpointFolder(name, revision, task).file("config.json") is not None
