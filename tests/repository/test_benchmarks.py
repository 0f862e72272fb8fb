"""The benchmarks' plain paths are what they claim to be, and their helper counts and measures."""

import importlib.util
import itertools
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY, tiny_captioner
from test_generation import inputs, until_sep

BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A benchmark as a module; some have the name of a script in train/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("seed", range(3))
def test_plain_search_finds_the_captions_of_generate(load, seed):
    torch.manual_seed(seed)
    model, batch = tiny_captioner(), inputs()
    settings = {"num_beams": 3, "max_length": 12}
    fast = model.generate(**batch, **settings, early_stopping="never", pad_token_id=0)
    assert load("caption").naive_captions(model, batch, **settings) == [until_sep(ids) for ids in fast]


def test_original_rows_and_packed_rows_hold_the_same_captions(load):
    train_step = load("train_step")
    captions = [[[101, 7, 8, 9, 102], [101, 5, 6, 102]], [[101, 4, 102], [101, 3, 2, 1, 102]]]
    tags = [11, 12, 102]
    items = [(torch.randn(regions, 2054).numpy(), tags, rows) for regions, rows in zip((4, 6), captions, strict=True)]
    original, packed = train_step.original_captions(items), train_step.packed_captions(items)
    assert original["input_ids"].shape == (4, 70)
    assert original["region_features"].shape == (4, 50, 2054)
    labelled = original["labels"] != -100
    assert (original["input_ids"][labelled] == train_step.MASK).all()
    whole = torch.where(labelled, original["labels"], original["input_ids"])
    assert [row[mask.bool()].tolist() for row, mask in zip(whole, original["attention_mask"], strict=True)] == [
        [*ids, *tags] for rows in captions for ids in rows
    ]
    assert original["token_type_ids"].nonzero()[:, 1].unique().tolist() == [40, 41, 42]
    assert packed["region_features"].shape == (2, 6, 2054)
    learned = packed["labels"][packed["labels"] != -100].tolist()
    assert learned == [token for rows in captions for ids in rows for token in ids[1:]]


def test_every_variant_trains_on_the_same_images(load):
    train_step = load("train_step")
    options = SimpleNamespace(batch=4, captions=2, workers=0, device="cpu")
    seen = [list(itertools.islice(train_step.endless(range(7), options, list), 8)) for _ in range(2)]
    assert seen[0] == seen[1]
    assert all(len(images) == 2 for images in seen[0])
    assert len({image for images in seen[0][:3] for image in images}) == 6  # an epoch has each once at the most


def test_helper_measures(load):
    measure = load("measure")
    x = torch.randn(30, 40)
    assert measure.count_flops(lambda: x @ x.T) == 2 * 30 * 40 * 30
    runs = measure.in_turn({"short": lambda: None, "long": lambda: time.sleep(0.02)}, runs=2)
    assert runs["long"].seconds >= 0.02 > runs["short"].seconds
    assert runs["long"].peak_mib > 10
    machine = measure.Machine(matrix_rate=100.0, copy_bandwidth=10.0)
    assert machine.floor(200, 10) == 2.0
    assert machine.floor(100, 30) == 3.0
    lines = measure.table(["what", "s"], [["a", 0.5], ["b", 12345]]).splitlines()
    assert lines == ["| what | s |", "| --- | --: |", "| a | 0.5 |", "| b | 12,345 |"]


@pytest.mark.parametrize("script", [path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "measure"])
def test_help(load, script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        load(script).main()
    assert f"python benchmarks/{script}.py" in capsys.readouterr().out


def test_average_precision_of_objects(load):
    """Two dogs, one found twice (the second time wrong), one not; a cat found; a person that nobody asked for."""
    found = [
        [
            {"label": "dog", "score": 0.9, "box": [0, 0, 10, 10]},
            {"label": "dog", "score": 0.8, "box": [0, 0, 10, 9]},
            {"label": "teddy bear", "score": 0.7, "box": [5, 5, 9, 9]},
            {"label": "person", "score": 0.6, "box": [5, 5, 9, 9]},
        ],
        [
            {"label": "dog", "score": 0.7, "box": [50, 50, 60, 60]},
            {"label": "dog", "score": 0.3, "box": [20, 20, 30, 29]},
        ],
    ]
    truth = [
        [("dog", [0, 0, 10, 10]), ("teddybear", [5, 5, 9, 9])],
        [("dog", [20, 20, 30, 30]), ("cat", [0, 0, 1, 1])],
    ]
    scores = load("objects").average_precisions(found, truth)
    assert scores == {"dog": pytest.approx(0.5 * 1 + 0.5 * 2 / 4), "teddybear": 1.0, "cat": 0.0}
