"""Kills at every stage of what is written: the next start finishes, equals an uninterrupted one, and leaves nothing."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
import torch
from conftest import tiny_config
from forks import FORK, call, die, result_of, start
from PIL import Image

from modeling_mengzi_oscar import (
    GridRegionConfig,
    GridRegionImageProcessor,
    GridRegionModel,
    MengziOscarForImageTextRetrieval,
    MengziOscarProcessor,
    RegionFeatureStore,
)
from modeling_mengzi_oscar import files as files_room
from modeling_mengzi_oscar.features.extraction import extract
from modeling_mengzi_oscar.features.oscar_tsv import export_tsv, import_tsv
from modeling_mengzi_oscar.matching import Matcher
from modeling_mengzi_oscar.retrieval import score_matrix

SETTINGS = {"dtype": "float32", "batch_size": 1, "images_per_shard": 4}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    torch.manual_seed(0)
    config = GridRegionConfig(
        backbone="test_efficientnet", num_features=256, grid_size=2, tag_labels=["狗", "猫"], tag_threshold=0.1
    )
    GridRegionModel(config).save_pretrained(folder)
    GridRegionImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(9):
        noise = np.random.default_rng(number).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no photo")
    return folder


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(photos, grid, output, format, processes, before=lambda index: None):
    """An extraction by so many processes; their results. `before(index)` is called in each."""
    barrier = FORK.Barrier(processes, timeout=60)

    def one(index):
        before(index)
        share = {"process_index": index, "num_processes": processes, "wait_for_everyone": barrier.wait}
        return extract(photos, output, grid, format=format, **share, **SETTINGS)

    children = [start(one, index) for index in range(processes)]
    results = []
    for child in children:
        child.join(0.01)
    while any(child.is_alive() and not child.reader.poll(0.01) for child in children):
        if any(child.exitcode not in (None, 0) for child in children):  # as a launcher does
            for child in children:
                child.kill()
    for child in children:
        results.append(result_of(child)[0])
    return results


def dies_in_forward(index, at):
    """In process `index`, instead of forward number `at`."""

    def before(this):
        calls, forward = [], GridRegionModel.forward

        def dying(self, *args, **kwargs):
            calls.append(0)
            return die() if len(calls) == at else forward(self, *args, **kwargs)

        if this == index:
            GridRegionModel.forward = dying

    return before


@pytest.mark.parametrize(
    ("format", "processes", "victim", "at"),
    [("tsv-retrieval", 1, 0, 6), ("store", 2, 0, 3), ("tsv-retrieval", 2, 1, 3)],
)
def test_a_killed_extraction_resumes_to_the_same_bytes(photos, grid, tmp_path, format, processes, victim, at):
    whole, output = tmp_path / "whole" / "photos", tmp_path / "killed" / "photos"
    assert run(photos, grid, whole, format, processes)[0][1] == 1  # the one that is no photo
    assert "killed" in run(photos, grid, output, format, processes, dies_in_forward(victim, at))
    line, unreadable = run(photos, grid, output, format, processes)[0]
    assert (unreadable, "9 photos" in line) == (1, True)
    expected = files_of(whole)
    report = "errors.jsonl" if format == "store" else "store/errors.jsonl"
    assert files_of(output) == expected
    assert json.loads(expected[report])["image_id"] == "broken"
    run(photos, grid, output, format, processes)  # once more: nothing to do
    assert files_of(output) == expected


@pytest.mark.parametrize(("first", "then"), [(1, 2), (3, 2)])
def test_other_processes_go_on_with_it(photos, grid, tmp_path, first, then):
    run(photos, grid, tmp_path / "whole", "store", 1)
    assert "killed" in run(photos, grid, tmp_path / "store", "store", first, dies_in_forward(first - 1, 2))
    assert run(photos, grid, tmp_path / "store", "store", then)[0][1] == 1
    expected, found = (RegionFeatureStore.open(tmp_path / name) for name in ("whole", "store"))
    assert found.verify() == 9
    for image_id in expected:
        for name, values in expected[image_id].items():
            np.testing.assert_array_equal(found[image_id][name], values)
    assert not [name for name in files_of(tmp_path / "store") if re.search("tmp|lock|errors-", name)]


def dies_at_write(number):
    """Before the file number `number` gets its name, behind the one before it."""
    count, replace = [], os.replace

    def dying(*paths):
        count.append(0)
        return die() if len(count) == number else replace(*paths)

    files_room.os.replace = dying  # in this process only


def test_a_kill_at_every_write_of_an_extraction(photos, grid, tmp_path):
    run(photos, grid, tmp_path / "whole" / "x", "tsv-caption", 1)
    expected, number = files_of(tmp_path / "whole" / "x"), 0
    while True:
        number += 1
        output = tmp_path / str(number) / "x"
        killed = run(photos, grid, output, "tsv-caption", 1, lambda _, number=number: dies_at_write(number)) == [
            "killed"
        ]
        assert extract(photos, output, grid, format="tsv-caption", **SETTINGS)[1] == 1
        assert files_of(output) == expected, number
        if not killed:
            break
    assert number > 10


def test_a_second_start_waits_for_the_first(photos, grid, tmp_path):
    """Also where the first has other processes: one of two lives on, its launcher and its sibling are dead."""
    began, store = FORK.Event(), tmp_path / "store"

    def hangs():
        def forward(*args, **kwargs):
            began.set()
            time.sleep(60)

        GridRegionModel.forward = forward
        extract(photos, store, grid, process_index=1, num_processes=2, **SETTINGS)

    child = start(hangs)
    assert began.wait(60)
    for processes in (1, 2):
        value, *_ = run(photos, grid, store, "store", processes)
        assert isinstance(value, ValueError)
        assert re.search(
            rf"another process \(pid {child.pid} on .*\) is writing {store}: wait for it, or end it", str(value)
        )
    child.kill()
    child.join()
    assert run(photos, grid, store, "store", 1)[0][1] == 1
    assert RegionFeatureStore.open(store).verify() == 9
    assert not list(store.glob("lock*"))


def test_sigterm_keeps_what_is_done(photos, grid, tmp_path):
    def before(_):
        calls, forward = [], GridRegionModel.forward

        def asked(self, *args, **kwargs):
            calls.append(0)
            if len(calls) == 4:  # the second of the second shard
                os.kill(os.getpid(), signal.SIGTERM)
            return forward(self, *args, **kwargs)

        GridRegionModel.forward = asked

    assert run(photos, grid, tmp_path / "store", "store", 1, before) == [128 + signal.SIGTERM]
    assert RegionFeatureStore.open(tmp_path / "store").verify() == 3
    assert run(photos, grid, tmp_path / "store", "store", 1)[0][1] == 1
    assert RegionFeatureStore.open(tmp_path / "store").verify() == 9


def test_a_kill_at_every_write_of_an_import(photos, grid, tmp_path):
    run(photos, grid, tmp_path / "store", "store", 1)
    export_tsv(RegionFeatureStore.open(tmp_path / "store"), tmp_path / "f.tsv")
    import_tsv(tmp_path / "f.tsv", tmp_path / "whole", images_per_shard=2)
    number, killed = 0, "killed"
    while killed == "killed":
        number += 1
        output = tmp_path / str(number)

        def dying(output=output, number=number):
            dies_at_write(number)
            return import_tsv(tmp_path / "f.tsv", output, images_per_shard=2)

        killed, _ = call(dying)
        import_tsv(tmp_path / "f.tsv", output, images_per_shard=2)
        assert files_of(output) == files_of(tmp_path / "whole")
    assert number > 5


# Scores of all pairs.

TEXTS = ["一只猫", "两个人在草地上骑马", "狗", "一只狗在跑。"]
IMAGES = [
    {"region_features": np.random.default_rng(number).standard_normal((3, 22), dtype=np.float32), "tags": ["猫"]}
    for number in range(4)
]


def matcher_of(tokenizer, seed):
    torch.manual_seed(seed)
    model = MengziOscarForImageTextRetrieval(tiny_config()).eval()
    return Matcher(model, MengziOscarProcessor(tokenizer, max_length=12, max_regions=5))


def dies_at_row(number):
    row, calls = Matcher.row, []

    def dying(self, *arguments):
        calls.append(0)
        return die() if len(calls) == number else row(self, *arguments)

    Matcher.row = dying


def scored(matcher, path, stage=None):
    import modeling_mengzi_oscar.retrieval.score_file as score_file

    score_file.SECONDS_PER_FLUSH = 0
    if stage:
        stage[0](*stage[1:])
    return np.array(score_matrix(matcher, IMAGES, TEXTS, path))


STAGES = [(dies_at_row, 1), (dies_at_row, 3)]
STAGES += [(dies_at_write, number) for number in range(1, 5)]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: f"{stage[0].__name__}-{stage[1]}")
def test_scores_after_a_kill_are_of_one_model(tokenizer, tmp_path, stage):
    old, new, path = matcher_of(tokenizer, 0), matcher_of(tokenizer, 1), tmp_path / "scores" / "scores.npy"
    expected = {matcher: matcher.scores(IMAGES, TEXTS).astype(np.float16) for matcher in (old, new)}
    assert call(scored, old, path, stage)[0] == "killed"
    # The same model goes on.
    value, _ = call(scored, old, path)
    np.testing.assert_allclose(value.astype(np.float32), expected[old], rtol=2e-3, atol=1e-3)
    assert {file.name for file in path.parent.iterdir()} == {"scores.npy", "scores.npy.json"}
    # Another one is refused, and starts anew when the advice is followed.
    value, _ = call(scored, new, path)
    assert isinstance(value, ValueError)
    assert "was made from something else (weights differ)" in str(value)
    for name in re.search("delete (.*) to start again", str(value))[1].split(", "):
        (path.parent / name).unlink()
    value, _ = call(scored, new, path)
    np.testing.assert_allclose(value.astype(np.float32), expected[new], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("stage", STAGES[1::2], ids=lambda stage: f"{stage[0].__name__}-{stage[1]}")
@pytest.mark.parametrize("deleted", [(), ("scores.npy.json",), ("scores.npy", "scores.npy.json"), ("scores.npy.rows",)])
def test_half_followed_advice_mixes_nothing(tokenizer, tmp_path, stage, deleted):
    old, new, path = matcher_of(tokenizer, 0), matcher_of(tokenizer, 1), tmp_path / "scores.npy"
    expected = new.scores(IMAGES, TEXTS).astype(np.float32)
    call(scored, old, path, stage)
    for name in deleted:
        (tmp_path / name).unlink(missing_ok=True)
    for _ in range(5):
        value, _ = call(scored, new, path)
        if not isinstance(value, ValueError):
            break
        named = re.search("delete (.*) to start again", str(value))[1].split(", ")
        (tmp_path / named[0]).unlink()  # of the files named only the first, each time
    np.testing.assert_allclose(value.astype(np.float32), expected, rtol=2e-3, atol=1e-3)
