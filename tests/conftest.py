import os
import sys
from pathlib import Path

import pytest
import torch
from announced_removals import no_announced_removals  # noqa: F401  (for every test)
from PIL import Image
from transformers import BertTokenizer

from modeling_mengzi_oscar import (
    GridRegionConfig,
    GridRegionImageProcessor,
    GridRegionModel,
    MengziOscarConfig,
    MengziOscarForImageCaptioning,
    MengziOscarProcessor,
)
from modeling_mengzi_oscar.generation_mengzi_oscar import published_generation_config
from modeling_mengzi_oscar.hub import save_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(
    os.environ.get("MENGZI_OSCAR_SHARED", REPOSITORY.parent / "shared")
)  # goldens and photos, not in the repo
SCRIPTS = ("train", "train/mini", "space", "tests/datasets_scripts")  # not packages; the last has builders.py
sys.path[:0] = [str(REPOSITORY / room) for room in SCRIPTS]

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
COLOURS = {"红": "red", "绿": "green", "蓝": "blue"}
CHARACTERS = list("一二三两个只人男女孩狗猫马草地在上下跑骑坐着红白黑色的大小，。") + ["dog", "cat", "##s"]


def shared_path(relative: str) -> Path:
    """A file of the golden data; tests that need it are skipped where it is not at hand."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} from the project's shared folder (set MENGZI_OSCAR_SHARED), which is not here")
    return path


@pytest.fixture(autouse=True, scope="session")
def _without_matrix_units():
    """dtype="auto" is float32 on every machine that tests run on; `with_matrix_units` is the other kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)
        yield


@pytest.fixture
def with_matrix_units(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rounded(value):
    """Probabilities as far as they are the same whatever shares a pass."""
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return {name: round(one, 5) if isinstance(one, float) else one for name, one in value.items()}


def tiny_config(**changes) -> MengziOscarConfig:
    settings = {
        "vocab_size": len(SPECIAL_TOKENS + CHARACTERS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 80,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "mask_token_id": 4,
        "img_feature_dim": 22,
        "use_img_layernorm": True,
        "initializer_range": 0.5,  # wide, so that the output depends on the input
    }
    return MengziOscarConfig(**settings | changes)


def tiny_captioner(**changes) -> MengziOscarForImageCaptioning:
    return MengziOscarForImageCaptioning(tiny_config(**changes)).eval()


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS + CHARACTERS) + "\n", encoding="utf-8")
    return BertTokenizer.from_pretrained(tmp_path)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A whole checkpoint folder with random weights: captioner, processor, region model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS + CHARACTERS) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    region_model = GridRegionModel(
        GridRegionConfig(backbone="test_efficientnet", num_features=256, grid_size=3, tag_labels=["狗", "猫", "草地"])
    )
    captioner = tiny_captioner(img_feature_dim=262)
    captioner.generation_config = published_generation_config(captioner.config, max_length=12, num_beams=3)
    save_checkpoint(
        folder / "tiny",
        captioner,
        MengziOscarProcessor(BertTokenizer.from_pretrained(folder), max_regions=9),
        region_model,
        GridRegionImageProcessor(size={"height": 96, "width": 96}),
    )
    return folder / "tiny"


@pytest.fixture
def data(tmp_path):
    """data(name): a copy of a builder's original files with generated photos."""
    from builders import copy_files

    return lambda name: copy_files(name, tmp_path)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Flickr8k-CN's layout: photos of one colour, whose sentences name it."""
    folder = tmp_path_factory.mktemp("flickr8k-cn")
    (folder / "images").mkdir()
    sentences, ids = [], []
    for number in range(6):
        word, colour = list(COLOURS.items())[number % 3]
        ids.append(f"photo{number}")
        Image.new("RGB", (64, 48), colour).save(folder / "images" / f"photo{number}.jpg")
        sentences += [f"photo{number}.jpg#zhc#{i} 一面{word}色的墙{'。' * (i % 2)}" for i in range(5)]
    (folder / "flickr8kzhc.caption.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    for split, members in {"train": ids[:4], "val": ids[4:5], "test": ids[5:]}.items():
        (folder / f"flickr8k{split}.txt").write_text("\n".join(members) + "\n", encoding="utf-8")
    return folder


def newest_checkpoint(output_dir):
    from common.checkpoints import whole_checkpoints

    return next((str(folder) for folder in reversed(whole_checkpoints(output_dir))), None)
