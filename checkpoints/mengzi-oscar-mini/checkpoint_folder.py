"""A folder of a checkpoint, wherever it comes from: its files are found and read here, before any library sees them.

It may come from a stranger. It is its own files: nothing in it leads out of it. Of its JSON files the fields that we
know are checked and passed on, all others have no effect. Pickles are read as tensors only.
"""

import inspect
import json
import pickle
import pickletools
import re
import reprlib
import stat
import warnings
import zipfile
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file

from .checksums import check_bytes
from .configuration_mengzi_oscar import MengziOscarConfig
from .fields import COMMON, mapping, word
from .supported_transformers import OLDEST  # noqa: F401  (importing it checks the installed release)

LARGEST_TEXT = 100_000_000  # bytes; the tokenizer.json of a large vocabulary has a few million
LARGEST_WEIGHT = 1e10  # no trained weight comes near; one flipped bit of an exponent does
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
CALIBRATION = "calibration.json"  # of a region model's weights, for 8 bits
CHECKPOINT_FILES = (  # what is fetched from the Hub, of a repo's root or of a subfolder
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", *WEIGHTS, "model-*-of-*.safetensors"),
    CALIBRATION,
)
FLOATING_POINT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OF_TENSORS = re.compile(  # what a pickle of a state dict calls; torch lets more through, which may ask for any memory
    r"collections OrderedDict|torch(\.storage)? \w*Storage|torch (Size|device|[a-z]+\d+)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
TOLD = {}  # what `tell_unless_pinned` has said
HUB_TIMEOUT = 10  # seconds
ATTENTION = (None, "eager", "sdpa")  # what a file may ask for; other attention comes from whoever loads


class CheckpointError(ValueError):
    """One line: which checkpoint, what is wrong with it, what to do."""


class CheckpointFolder:
    """The folder of one model on this disk: one that is here, or a subfolder of it, or what the Hub has under a name.

    Args:
        name: folder or Hub id, "org/name" or "org/name@revision". revision: of the Hub repo, the other way.
        subfolder: of either.
        from_hub: it is a Hub id, also where a folder of that name lies here.

    Raises:
        CheckpointError: no such folder, and not from the Hub either; the folder of a training; two revisions.
    """

    def __init__(self, name, revision: str | None = None, subfolder: str = "", from_hub: bool = False):
        if not str(name).strip():
            raise CheckpointError("the name of the checkpoint is empty; name a folder or a Hub id")
        root = Path(name)
        if from_hub or not root.is_dir():
            name, revision = name_and_revision(str(name), revision)
            root = download(name, revision, subfolder)
        else:
            refuse_a_training(root)
        self.checkpoint, self.name = str(name), "/".join(filter(None, (str(name), subfolder)))
        self.commit = root.name if root.parent.name == "snapshots" else None
        self.path = root / subfolder
        root = root.resolve()
        # The Hub's cache keeps the content of a repo's files in `blobs`, and links to it in `snapshots/<commit>`.
        self.places = [root] + [place.parent / "blobs" for place in root.parents if place.name == "snapshots"]

    def said(self, name: str) -> str:
        """A file as messages name it."""
        return f"{self.name}/{name}"

    def file(self, name: str) -> Path | None:
        """The path of a file; None where there is none.

        Raises:
            CheckpointError: it is no regular file, or a link that leads out of the folder.
        """
        path = self.path / name
        if not path.exists() and not path.is_symlink():
            return None
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise CheckpointError(f"{self.said(name)}: a broken link; put the file there") from None
        if not any(target.is_relative_to(place) for place in self.places):
            raise CheckpointError(f"{self.said(name)}: leads out of the folder, to {target}; copy the file into it")
        if not target.is_file():
            raise CheckpointError(f"{self.said(name)}: is not a file; put the checkpoint's there")
        return path

    def json(self, name: str, default: dict | None = None) -> dict:
        """
        Raises:
            CheckpointError: there is none, and no default, or it holds no JSON object.
        """
        path = self.file(name)
        if path is None and default is not None:
            return default
        if path is None:
            raise CheckpointError(f"{self.said(name)}: no such file; a whole checkpoint has one")
        return read_json(path, self.said(name))

    @contextmanager
    def reading(self, name: str):
        """Whatever a library makes of the content of a file becomes one line that names the file."""
        try:
            yield
        except (CheckpointError, ImportError):  # a library that is missing says itself what to install
            raise
        except Exception as error:
            raise CheckpointError(f"{self.said(name)}: {one_line(error)}") from None

    def config(self, config_class):
        """config.json as a `config_class`, every field of it checked.

        Raises:
            CheckpointError: a field that may not be, by name, or the config of another kind of model.
        """
        said, ours = self.json("config.json"), config_class.model_type
        originals = (None, "bert") if config_class is MengziOscarConfig else ()  # what the released folders say
        if said.get("model_type") not in (ours, *originals):
            model_type = said.get("model_type")
            raise CheckpointError(f"{self.said('config.json')}: model_type is {shown(model_type)}; {ours!r} is needed")
        for name in ("attn_implementation", "_attn_implementation"):
            if said.get(name) not in ATTENTION:
                raise CheckpointError(
                    f"{self.said('config.json')}: {name} is {shown(said[name])}; a file may ask for "
                    f"{' or '.join(map(str, ATTENTION[1:]))}, other attention is for whoever loads to choose"
                )
        with self.reading("config.json"):
            return config_class(**known(config_class, said, COMMON))

    def weights(self) -> dict[str, torch.Tensor]:
        """Tensors by name, as they are stored.

        Raises:
            CheckpointError: there are none, or they are damaged: see `read_tensors`, `check_weights`.
        """
        for name in WEIGHTS:
            if path := self.file(name):
                break
        else:
            raise CheckpointError(f"{self.name}: has no file named {WEIGHTS[0]}, and no {WEIGHTS[2]} either")
        if not name.endswith(".json"):
            state = read_tensors(path, self.said(name))
            check_weights(state, self.said(name))
            return state
        shards = read_json(path, self.said(name)).get("weight_map")
        if not mapping(word, word).holds(shards) or not shards:
            raise CheckpointError(f"{self.said(name)}: weight_map does not say which tensor is in which file")
        state = {}
        for shard in sorted({*shards.values()}):
            if not re.fullmatch(r"\w[\w.-]*\.safetensors", shard) or (path := self.file(shard)) is None:
                raise CheckpointError(
                    f"{self.said(name)}: weight_map names {shown(shard)}; no such file in this folder"
                )
            state |= (part := read_tensors(path, self.said(shard)))
            check_weights(part, self.said(shard))
        return state


def name_and_revision(name: str, revision: str | None) -> tuple[str, str | None]:
    """ "org/name@revision" taken apart.

    Raises:
        CheckpointError: another revision is given as well.
    """
    repository, _, named = name.partition("@")
    if named and revision not in (None, named):
        raise CheckpointError(f"{name}: revision {revision!r} is another one; give it once")
    return repository, named or revision


def not_pinned(region_model: str | None) -> str | None:
    """What to say of a region model that a config names, where its repo can still change what that means.

    A full commit is what it is for good; a branch, a tag or a short commit is not. A subfolder needs none.
    """
    repository, _, revision = (region_model or "").partition("@")
    if not revision or COMMIT.fullmatch(revision):
        return None
    return f"the region model {region_model} is not pinned: its repo can change it; name {repository}@<full commit>"


def tell_unless_pinned(region_model: str | None) -> None:
    """A line, once per program, where a region model is named without a full commit."""
    if line := not_pinned(region_model):
        warnings.warn_explicit(line, UserWarning, "mengzi-oscar", 1, registry=TOLD)


def refuse_a_training(folder: Path) -> None:
    """
    Raises:
        CheckpointError: a folder in which a training keeps its state; where the model is that it made.
    """
    best = folder / "best"
    if (folder / "trainer_state.json").is_file() and not (folder / "processor_config.json").is_file():
        best = folder.parent / "best"
    elif (folder / "config.json").is_file() or not (best / "config.json").is_file():
        return
    use = f"name {best}" if (best / "config.json").is_file() else "name the best/ that a finished one leaves beside it"
    raise CheckpointError(f"{folder}: a training state to resume from, without a processor: {use}")


def download(name: str, revision: str | None, subfolder: str) -> Path:
    """The files of a checkpoint, from the Hub or its cache."""
    patterns = ["/".join(filter(None, (subfolder, file))) for file in CHECKPOINT_FILES]
    no_answer = None
    if COMMIT.fullmatch(revision or ""):  # of such a one the list of files is asked for, six times over 23 seconds
        no_answer = ask_once(name, revision)
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=bool(no_answer))
        )
    except Exception as error:  # no such name, no connection, no right, ...
        if isinstance(error, LocalEntryNotFoundError):  # a paragraph about what this says in a few words
            error = no_answer or error.__cause__ or error
        raise CheckpointError(
            f"{name}: no such folder here, and as a Hub id it cannot be loaded: {one_line(error)}"
        ) from None


def ask_once(name: str, revision: str) -> Exception | None:
    """Why the Hub gives no answer about a repo, None where it gives one, whichever that is."""
    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT)
    except HfHubHTTPError:
        return None
    except Exception as error:
        return error
    return None


def read_json(path, said=None) -> dict:
    """A JSON object; `said` is how messages name the file.

    Raises:
        CheckpointError: missing, too large, nested too deeply, not JSON, or JSON of something else.
    """
    said = said or path
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ValueError("a folder, pipe or device")  # which could keep us waiting for ever
        if Path(path).stat().st_size > LARGEST_TEXT:
            raise ValueError(f"more than {LARGEST_TEXT:,} bytes")
        data = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except FileNotFoundError:
        raise CheckpointError(f"{said}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{said}: is not JSON ({one_line(error)})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{said}: holds a {type(data).__name__}; a JSON object is needed")
    return data


def refuse_constant(name):
    raise ValueError(f"{name} is no number of JSON")


def known(function, said: dict, others=()) -> dict:
    """Of what a file says what a function takes by name; the rest has no effect."""
    parameters = inspect.signature(function).parameters.values()
    names = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD} | {*others}
    return {name: value for name, value in said.items() if name in names}


def read_tensors(path, said=None) -> dict[str, torch.Tensor]:
    """What a file of weights holds: safetensors, or a pickle of tensors, whose check sums must hold if it has any.

    Raises:
        CheckpointError: damaged, no file of tensors, or a pickle that asks for more than tensors, which does not run.
    """
    path, said = Path(path), said or path
    try:
        if path.suffix == ".safetensors":
            check_bytes(path)
            return load_file(path)
        if is_zip(path):
            check_sums(path)
        check_calls(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        function = re.search(r"GLOBAL (\S+)", str(error))
        if function:
            raise CheckpointError(
                f"{said}: refused and not run: it is a pickle that calls {function[1]}, not only tensors"
            ) from None
        raise CheckpointError(f"{said}: damaged, or not a file of weights ({one_line(error)})") from None
    except Exception as error:  # what is no file of weights makes its readers raise anything at all
        raise CheckpointError(f"{said}: damaged, or not a file of weights ({one_line(error)})") from None
    for key in ("model", "state_dict"):
        state = state.get(key, state) if isinstance(state, dict) else None
    if not state or not all(isinstance(name, str) and is_plain(tensor) for name, tensor in state.items()):
        raise CheckpointError(f"{said}: holds no state dict of tensors, neither at the top nor under 'model'")
    if sum(tensor.nbytes for tensor in state.values()) > 4 * path.stat().st_size:  # tied ones are there twice
        raise CheckpointError(f"{said}: damaged: its tensors are larger than the file")
    return state


def is_plain(tensor) -> bool:
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return not tensor.is_complex() and not tensor.is_quantized


def is_zip(path: Path) -> bool:
    """Whether torch reads it as one: releases before 1.6 wrote pickles one after the other, without check sums."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_sums(path: Path) -> None:
    """torch's files are zip archives, which torch reads without looking at their check sums."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("it is compressed, which torch files never are")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} does not match: download or copy it again")


def check_calls(path: Path) -> None:
    """
    Raises:
        pickle.UnpicklingError: a pickle in a file of torch calls something that makes no tensors, by name.
    """
    with ExitStack() as opened:
        if is_zip(path):
            archive = opened.enter_context(zipfile.ZipFile(path))
            parts = [part for part in archive.infolist() if part.filename.lower().endswith("data.pkl")]
            pickles = [opened.enter_context(archive.open(part)) for part in parts]
        else:  # magic number, version, system, the state dict, names of its storages
            pickles = [opened.enter_context(path.open("rb"))] * 5
        for opcode, argument, _ in chain.from_iterable(map(pickletools.genops, pickles)):
            if opcode.name in ("GLOBAL", "INST") and not OF_TENSORS.fullmatch(argument):
                raise pickle.UnpicklingError(f"GLOBAL {argument.replace(' ', '.')}")


def check_weights(state: dict[str, torch.Tensor], said: str) -> None:
    """
    Raises:
        CheckpointError: a value that is no number, or that no training brings about, by the name of its tensor.
    """
    for name, tensor in state.items():
        if tensor.dtype not in FLOATING_POINT and (tensor.is_complex() or tensor.is_floating_point()):
            raise CheckpointError(f"{said}: {name} holds {tensor.dtype}, weights are float16, 32, 64 or bfloat16")
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)
            if not (low > -LARGEST_WEIGHT and high < LARGEST_WEIGHT):
                wrong = high if low > -LARGEST_WEIGHT else low
                raise CheckpointError(f"{said}: {name} holds {wrong.item()}, which is no weight: the file is damaged")


def read_vocabulary(path, said=None) -> dict[str, int]:
    """{token: id} of a vocab.txt: a token a line.

    Raises:
        CheckpointError: it is not UTF-8, or names a token twice.
    """
    if Path(path).stat().st_size > LARGEST_TEXT:
        raise CheckpointError(f"{said or path}: more than {LARGEST_TEXT:,} bytes; it is not the vocabulary of a BERT")
    try:
        tokens = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{said or path}: is not UTF-8 text ({one_line(error)})") from None
    if len({*tokens}) != len(tokens):
        twice = next(token for number, token in enumerate(tokens) if token in tokens[:number])
        raise CheckpointError(
            f"{said or path}: names the token {shown(twice)} twice; it is not the vocabulary of a BERT"
        )
    return {token: number for number, token in enumerate(tokens)} if tokens != [""] else {}


def shown(value) -> str:
    """A value of a stranger, for a message: short and on one line."""
    return reprlib.repr(value)


def one_line(error, limit=200) -> str:
    said = " ".join(str(error).split())[:limit]
    return said if said and isinstance(error, (ValueError, OSError, RuntimeError)) else f"{type(error).__name__} {said}"
