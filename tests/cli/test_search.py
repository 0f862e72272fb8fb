"""`mengzi-oscar search` prints what `rank` finds; what it prepared serves again, for the photos that it is of only."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import load_file, save_file
from test_pipeline import with_heads  # noqa: F401

from modeling_mengzi_oscar import GridRegionModel, MengziOscarPipeline, RegionFeatureStore
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.features import prepared


def save_noise(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 30 + seed, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    return [save_noise(tmp_path / "photos" / f"{seed}.png", seed) for seed in range(4)]


@pytest.fixture
def search(with_heads, capsys):  # noqa: F811
    """search(words) -> (status, lines of standard output, lines of the screen)"""

    def run(*words):
        capsys.readouterr()
        status = main(["search", *map(str, words), "--model", str(with_heads)])
        output = capsys.readouterr()
        return status, output.out.splitlines(), output.err.splitlines()

    return run


def printed(ranking, photos):
    return [f"{rank}\t{row['probability']:.3f}\t{photos[row['photo']]}" for rank, row in enumerate(ranking, 1)]


def test_prints_the_ranking(search, photos, with_heads, tmp_path):  # noqa: F811
    ranking = MengziOscarPipeline.from_pretrained(with_heads).rank("一只狗", photos)
    everything = printed(ranking, photos)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(photos[0], "inside/0.png")
    for source in ([tmp_path / "photos"], photos, [tmp_path / "photos" / "*.png"], [*photos, photos[0]]):
        assert search(*source, "一只狗") == (0, everything, [])
    assert search(tmp_path / "photos", "一只狗", "--top", "2")[1] == everything[:2]
    [line] = search(tmp_path / "shard.tar", "一只狗")[1]
    assert line.endswith("shard.tar/inside/0.png")
    both = MengziOscarPipeline.from_pretrained(with_heads).rank(["一只狗", "两个人"], photos, top=1)
    status, lines, _ = search(*photos, "一只狗", "两个人", "--top", "1")
    assert lines == [
        f"{text}\t{printed(best, photos)[0]}" for text, best in zip(["一只狗", "两个人"], both, strict=True)
    ]
    records = [json.loads(line) for line in search(*photos, "一只狗", "两个人", "--top", "1", "--json")[1]]
    assert [record["sentence"] for record in records] == ["一只狗", "两个人"]
    assert records[0]["photos"] == [
        {"rank": 1, "photo": photos[both[0][0]["photo"]], "probability": round(both[0][0]["probability"], 4)}
    ]


def test_a_bad_photo_costs_itself_and_mistakes_are_one_line(search, photos, tmp_path):
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"x")
    for more in ([], ["--prepared", tmp_path / "prepared"], ["--prepared", tmp_path / "prepared"]):
        status, lines, errors = search(tmp_path / "photos", tmp_path / "gone.jpg", "狗", *more)
        assert (status, len(lines)) == (2, 4)
        assert [error.split(": ")[0] for error in errors] == [
            str(tmp_path / name) for name in ("photos/broken.jpg", "gone.jpg")
        ]
    for words, reason in {
        (photos[0],): f"{photos[0]}: is a file, not a sentence; photos come first",
        ("一只狗",): "一只狗: only one word; name photos first, then a sentence",
        (photos[0], "狗", photos[1]): f"{photos[1]}: is a file, not a sentence",
        (photos[0], "狗", "--prepared", tmp_path / "photos"): "holds something else than prepared photos",
        (photos[0], "狗", "--picture", photos[0]): "is one of the photos",
        (photos[0], " "): "is empty",
        (tmp_path / "nowhere/*.jpg", "狗"): "no file matches",
    }.items():
        status, lines, errors = search(*words)
        assert (status, lines, len(errors)) == (2, [], 1), errors
        assert reason in errors[0]


def test_what_is_prepared_is_not_looked_at_again(search, photos, tmp_path, monkeypatch):
    """Equal to the digit; new and changed photos are looked at, those that went are not found."""
    folder, keep = tmp_path / "photos", ["--prepared", tmp_path / "prepared"]
    looked = []
    extract = prepared.extract_regions

    def counted(source, *arguments, **options):
        looked.append(extract(source, *arguments, **options))

    monkeypatch.setattr(prepared, "extract_regions", counted)
    fresh = search(folder, "一只狗", "--json")
    assert search(folder, "一只狗", "--json", *keep)[1:] == (fresh[1], [])
    assert search(folder, "一只狗", "--json", *keep) == fresh
    assert looked == [4]
    save_noise(photos[1], 7)
    save_noise(folder / "new.png", 8)
    os.unlink(photos[2])
    fresh = search(folder, "一只狗", "--json")
    assert search(folder, "一只狗", "--json", *keep)[:2] == fresh[:2]
    assert looked == [4, 2]
    assert search(photos[0], "一只狗", *keep)[1][0].endswith(photos[0])
    assert looked == [4, 2]
    assert RegionFeatureStore.open(tmp_path / "prepared").verify() == 6


def test_a_photo_that_changes_meanwhile_is_said(search, photos, tmp_path, monkeypatch):
    extract = prepared.extract_regions

    def late(*arguments, **options):
        save_noise(photos[1], 9)
        return extract(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "extract_regions", late)
        status, lines, [error] = search(*photos, "狗", "--prepared", tmp_path / "prepared")
    assert (status, len(lines)) == (2, 3)
    assert error == f"{photos[1]}: changed while it was being read; search again"
    assert search(*photos, "狗", "--prepared", tmp_path / "prepared") == search(*photos, "狗")


def test_a_run_that_was_interrupted_goes_on(photos, tmp_path, with_heads):  # noqa: F811
    pipeline = MengziOscarPipeline.from_pretrained(with_heads)
    stream = prepared.StampedPhotos(prepared_source(photos))
    fetch, calls = stream.fetch_photos, []

    def interrupted():
        calls.append(1)
        for number, photo in enumerate(fetch()):
            if len(calls) == 2 and number == 2:
                raise KeyboardInterrupt
            yield photo

    stream.fetch_photos = interrupted
    with pytest.raises(KeyboardInterrupt):
        prepared.prepare(pipeline, stream, tmp_path / "prepared")
    (tmp_path / "prepared" / "00000-000007.safetensors.00000.tmp").write_bytes(b"of a killed run")
    there, errors = prepared.prepare(pipeline, prepared.StampedPhotos(prepared_source(photos)), tmp_path / "prepared")
    assert [name for _, name in there] == photos
    assert errors == []
    assert RegionFeatureStore.open(tmp_path / "prepared").verify() == 4


KILLED = """
import os, signal, sys
from functools import partial
from modeling_mengzi_oscar import GridRegionModel
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.features import prepared
prepared.extract_regions = partial(prepared.extract_regions, images_per_shard=1)
calls, forward = [], GridRegionModel.forward
def dying(self, *args, **kwargs):
    calls.append(0)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, *args, **kwargs)
GridRegionModel.forward = dying
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on(search, photos, tmp_path, with_heads, monkeypatch):  # noqa: F811
    """Killed at the third of four photos; the two that were kept are not looked at again."""
    command = ["search", *photos, "一只狗", "--model", str(with_heads), "--prepared", str(tmp_path / "prepared")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], cwd=REPOSITORY, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    looked, forward = [], GridRegionModel.forward

    def counted(self, pixel_values, **inputs):
        looked.extend(pixel_values)
        return forward(self, pixel_values, **inputs)

    monkeypatch.setattr(GridRegionModel, "forward", counted)
    resumed = search(*photos, "一只狗", "--prepared", tmp_path / "prepared")
    assert len(looked) == 2
    assert resumed == search(*photos, "一只狗")
    assert RegionFeatureStore.open(tmp_path / "prepared").verify() == 4


def prepared_source(photos):
    from modeling_mengzi_oscar.features.photo_sources import open_source

    return open_source(os.path.dirname(photos[0]))


def test_another_region_model_refuses_what_was_prepared(search, photos, tmp_path, with_heads, capsys):  # noqa: F811
    keep = ["--prepared", str(tmp_path / "prepared")]
    assert search(*photos, "狗", *keep)[0] == 0
    other = shutil.copytree(with_heads, tmp_path / "other")
    weights = load_file(other / "region_model" / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[name] = weights[name] + 1
    save_file(weights, other / "region_model" / "model.safetensors", {"format": "pt"})
    assert main(["search", *photos, "狗", "--model", str(other), *keep]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "prepared by another region model" in line
    command = ["search", *photos, "狗", "--dtype", "bfloat16", *keep]
    assert main([*command, "--model", str(with_heads)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "prepared in float32, here the region model computes in bfloat16; name another folder" in line
    assert RegionFeatureStore.open(tmp_path / "prepared").precision == "float32"


def test_a_picture_of_the_best(search, photos, tmp_path):
    for number, sentences in enumerate((["狗"], ["狗", "两个人"])):
        status, _, errors = search(*photos, *sentences, "--top", "3", "--picture", tmp_path / f"{number}.png")
        assert (status, errors) == (0, [f"picture: {tmp_path / f'{number}.png'}"])
    one, two = (Image.open(tmp_path / f"{number}.png").size for number in (0, 1))
    assert one[0] == two[0] > 800
    assert two[1] > 1.5 * one[1]


def test_photos_that_go_after_they_were_found_are_left_out_of_the_picture(search, photos, tmp_path, monkeypatch):
    from modeling_mengzi_oscar.cli import search as command

    draw = command.draw

    def drawn_late(*arguments):
        os.remove(gone)
        draw(*arguments)

    monkeypatch.setattr(command, "draw", drawn_late)
    for gone, named, drawn in ((photos[0], photos[:2], True), (photos[1], photos[1:2], False)):
        picture = tmp_path / f"{len(named)}.png"
        status, _, [line, *_] = search(*named, "狗", "--picture", picture)
        assert status == 0
        assert line.startswith(f"{gone}: ")
        assert picture.exists() == drawn
