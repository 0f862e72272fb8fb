"""One bad photo, name or setting costs only itself; what can be checked is checked before the work begins."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from conftest import REPOSITORY, rounded
from PIL import Image
from test_pipeline import with_heads  # noqa: F401  (a fixture)

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.demo.pictures import save_picture
from modeling_mengzi_oscar.photos import PhotoError

MINI = REPOSITORY / "checkpoints" / "mengzi-oscar-mini"


def noise(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 30, 3), dtype=np.uint8))


@pytest.fixture
def photos(tmp_path):
    """Three photos, the second of which is none."""
    names = [str(tmp_path / name) for name in ("一.png", "bad.jpg", "三.png")]
    noise(1).save(names[0])
    Path(names[1]).write_bytes(b"no photo")
    noise(3).save(names[2])
    return names


@pytest.fixture(scope="module")
def pipeline(with_heads):  # noqa: F811
    return MengziOscarPipeline.from_pretrained(with_heads)


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(MengziOscarPipeline, "from_pretrained", load)


def lines(capsys):
    said = capsys.readouterr()
    return said.out.splitlines(), [line for line in said.err.splitlines() if line.strip()]


def test_a_list_loses_only_the_bad_photo(pipeline, photos):
    good = [photos[0], photos[2]]
    doors = {
        "caption": pipeline.caption,
        "ask": lambda given: pipeline.ask(given, "有只狗？"),
        "match": lambda given: pipeline.match(given, ["一只狗", "猫"]),
    }
    for name, door in doors.items():
        results = door(photos)
        assert len(results) == 3, name
        assert results[1].keys() == {"error"}
        assert results[1]["error"].startswith(f"{photos[1]}: not a photo")
        alone = [door(photo) for photo in good]
        if name == "caption":
            results, alone = [[one["caption"] for one in rows if "caption" in one] for rows in (results, alone)]
            assert results == alone
        else:
            assert rounded([results[0], results[2]]) == rounded(alone)  # passes are shared
        with pytest.raises(PhotoError, match="not a photo"):
            door(photos[1])
        assert [row.keys() for row in door([photos[1], None])] == [{"error"}] * 2
    assert "photo 2: " in pipeline.caption([noise(), None])[1]["error"]  # what has no path is numbered
    for batch_size in (1, 2):
        results = pipeline.caption((photo for photo in photos), batch_size=batch_size)
        assert ["caption" in one for one in results] == [True, False, True]


def test_in_transformers_pipeline_too(tiny_checkpoint, photos):
    captioning = transformers.pipeline("mengzi-oscar-captioning", model=str(tiny_checkpoint), trust_remote_code=True)
    for batch_size in (1, 2):
        results = captioning(photos, batch_size=batch_size)
        assert ["caption" in one for one in results] == [True, False, True]
        assert results[1] == {"error": f"{photos[1]}: not a photo we can read; save it as JPEG, PNG or WebP"}
    with pytest.raises(ValueError, match="not a photo we can read"):
        captioning(photos[1])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "gbk"])
@pytest.mark.parametrize("as_json", [False, True])
def test_names_that_cannot_be_printed(tiny_checkpoint, tmp_path, monkeypatch, encoding, as_json):
    """Bytes that are no UTF-8, letters that the terminal has not, line ends: told, and all photos are captioned."""
    names = [os.fsdecode("照片".encode("gbk")) + ".png", "é😀.png", "a\nb\t.png", "照片.png"]
    for name in names:
        with open(tmp_path / name, "wb") as file:
            noise().save(file, "PNG")
    missing = os.fsdecode("没有".encode("gbk")) + "\n.jpg"
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(tiny_checkpoint), "--picture", "out.png"] + ["--json"] * as_json
    assert main(["caption", missing, *names, *options]) == 2
    out, error = (stream.buffer.getvalue().decode(encoding) for stream in streams.values() if not stream.flush())
    assert len(out.splitlines()) == 4
    if as_json:
        assert [json.loads(line)["photo"] for line in out.splitlines()] == names
    else:
        assert [line.count("\t") for line in out.splitlines()] == [2] * 4
        assert out.splitlines()[2].startswith(r"a\nb\t.png")
    assert len([line for line in error.splitlines() if r"\udcd3\udcd0\n.jpg: no such file" in line]) == 1
    assert Image.open(tmp_path / "out.png").width > 800


def test_one_path_twice_is_two_results(tiny_checkpoint, photos, capsys):
    assert main(["caption", photos[0], photos[0], photos[2], "--model", str(tiny_checkpoint)]) == 0
    out, _ = lines(capsys)
    assert [line.split("\t")[0] for line in out] == [photos[0], photos[0], photos[2]]
    assert out[0] == out[1]


SETTINGS = {  # options of `caption`: what the one line says
    ("--num-beams", "1000000"): "from 1 to 100",
    ("--num-beams", "101"): "from 1 to 100",
    ("--num-beams", "9" * 5000): "from 1 to 100",
    ("--num-beams", "-3"): "from 1 to 100",
    ("--num-beams", "2.5"): "from 1 to 100",
    ("--max-length", "1"): "from 2 to 512",
    ("--max-length", "10000000"): "from 2 to 512",
}


@pytest.mark.parametrize("options", SETTINGS)
def test_numbers_that_no_checkpoint_takes(options, photos, capsys, nothing_is_loaded):
    with pytest.raises(SystemExit) as status:
        main(["caption", photos[0], *options])
    assert status.value.code == 2
    assert SETTINGS[options] in lines(capsys)[1][-1]


@pytest.mark.parametrize("command", ["ask", "extract"])
def test_numbers_of_the_other_commands(command, photos, capsys, nothing_is_loaded):
    tried = {
        "ask": [[photos[0], "有只狗？", "--top", value] for value in ("0", "-1", "1.5", "10" * 9)],
        "extract": [
            [photos[0], "--output", "x", option, value]
            for option in ("--batch-size", "--images-per-shard", "--limit-pixels")
            for value in ("0", "-1", "1e3", "9" * 30)
        ],
    }
    for arguments in tried[command]:
        with pytest.raises(SystemExit):
            main([command, *arguments])
        assert "must be a whole number from 1 to" in lines(capsys)[1][-1]
    assert not Path("x").exists()


def test_what_this_checkpoint_cannot_do_is_said_before_the_first_photo(photos, capsys):
    for options, said in {
        ("--max-length", "78"): "at most 50 tokens",
        ("--max-length", "51"): "at most 50 tokens",
    }.items():
        assert main(["caption", photos[2], photos[0], "--model", str(MINI), *options]) == 2
        out, [error] = lines(capsys)
        assert not out
        assert said in error
    pipeline = MengziOscarPipeline.from_pretrained(MINI)
    for settings, said in [
        ({"max_length": 78}, "at most 50"),
        ({"max_new_tokens": 77}, "at most 50"),
        ({"max_length": 1}, "max_length must be a whole number from 2"),
        ({"max_length": "20"}, "max_length must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1"),
        ({"num_beams": 10**6}, "num_beams must be a whole number from 1 to 100"),
        ({"num_beams": 2.5}, "num_beams must be a whole number from 1 to 100"),
        ({"num_return_sequences": 10**6, "do_sample": True}, "num_return_sequences must be a whole number"),
        ({"num_return_sequences": 4, "num_beams": 3}, "at most num_beams, 3"),
        ({"num_beam": 3}, "does not know num_beam"),
        ({"input_ids": [[2]]}, "does not know input_ids"),
        ({"style": "long"}, "style 'long'; it has: detailed, short"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1"),
        ({"batch_size": 2.0}, "batch_size must be a whole number from 1"),
        ({"generation_config": transformers.GenerationConfig(max_length=78)}, "at most 50"),
    ]:
        for given in ([], ["no such photo.jpg"], photos[1]):
            with pytest.raises(ValueError, match=said) as error:
                pipeline.caption(given, **settings)
            assert "\n" not in str(error.value)
    long = pipeline.caption(photos[0], max_length=50, num_beams=1)  # what is allowed works
    assert long["caption"]


def test_where_no_picture_can_be(photos, tmp_path, capsys, nothing_is_loaded):
    (tmp_path / "folder.png").mkdir()
    bad = {
        "folder.png": "is a folder",
        ".": "PNG files",
        "captions.jpg": "name it captions.png",
        "captions": "name it captions.png",
        "no/such/folder/x.png": "no such folder",
        "bad.jpg/x.png": "no such folder",
        "x" * 300 + ".png": "File name too long",
        "一.png": "is one of the photos",
    }
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, said in bad.items():
        for command in (["caption", *photos], ["extract", str(tmp_path), "--output", str(tmp_path / "store")]):
            if command[0] == "extract" and name == "一.png":
                continue
            assert main([*command, "--picture", str(tmp_path / name)]) == 2
            out, [error] = lines(capsys)
            assert not out
            assert said in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_picture_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_picture(noise(), tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tiny_checkpoint, photos, capsys, monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["caption", photos[0], "--model", str(tiny_checkpoint)]) == 2
    assert lines(capsys)[1][-1] == "[Errno 28] No space left on device"


def test_files_where_words_should_stand(photos, tmp_path, capsys, nothing_is_loaded):
    for command, said in {
        ("match", photos[0], "一只猫", photos[2]): f"{photos[2]}: is a file, not a sentence; photos come first",
        ("match", photos[0], "一只猫", "*.jpg"): "*.jpg: is a file, not a sentence; photos come first",
        ("match", photos[0], str(tmp_path)): f"{tmp_path}: is a file, not a sentence",
        ("ask", photos[0], photos[2]): f"{photos[2]}: is a file, not a question",
        ("ask", photos[0], "no/such/folder/"): "is a file, not a question",
        ("ask", photos[0], "how", "many"): "one question at a time, not 'how', 'many'; quote a question",
    }.items():
        assert main([*command]) == 2
        out, [error] = lines(capsys)
        assert not out
        assert said in error
