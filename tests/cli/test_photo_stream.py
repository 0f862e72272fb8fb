"""Many photos as a stream: sources and patterns, batches, files of rows that go on after a kill, stores."""

import csv
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_pipeline import with_heads  # noqa: F401  (a fixture)

from modeling_mengzi_oscar import MengziOscarPipeline, RegionFeatureStore
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.cli.photos import photos_and_texts
from modeling_mengzi_oscar.features import photo_stream
from modeling_mengzi_oscar.features.photo_sources import Photo


def noise(path, seed, size=(40, 30)):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """photos/0.png to 4.png, of two sizes; the working directory holds them and a broken one."""
    for number in range(5):
        noise(tmp_path / "photos" / f"{number}.png", number, (40 + number % 2, 30))
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(with_heads):  # noqa: F811
    return ["--model", str(with_heads)]


def call(capsys, *arguments):
    capsys.readouterr()
    status = main([*map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out.splitlines(), [line for line in said.err.splitlines() if line.strip()]


def test_sources_patterns_and_names_give_the_same_lines(folder, model, capsys):
    names = [f"photos/{number}.png" for number in range(5)]
    (folder / "list.txt").write_text("\n".join(names))
    pipeline = MengziOscarPipeline.from_pretrained(model[1])
    alone = [pipeline.caption(name) for name in names]
    expected = [f"{name}\t{one['caption']}\t{one['score']:.3f}" for name, one in zip(names, alone, strict=True)]
    for given in (names, ["photos"], ["photos/"], ["photos/*.png"], ["**/*.png"], ["photos/**"], ["photos/[0-4].png"]):
        assert call(capsys, "caption", *given, *model) == (0, expected, []), given
    for batch_size in (1, 2, 3):
        assert call(capsys, "caption", "photos", *model, "--batch-size", batch_size)[1] == expected
    status, lines, errors = call(capsys, "caption", "bad.jpg", "photos/1.png", "no*.jpg", "no", "photos/3.png", *model)
    assert (status, lines) == (2, [expected[1], expected[3]])
    assert [line.split(": ")[0] for line in errors] == ["bad.jpg", "no*.jpg", "no"]
    assert "no file matches" in errors[1]
    _, lines, _ = call(capsys, "caption", "list.txt", *model)
    assert [line.split("\t", 1)[1] for line in lines] == [line.split("\t", 1)[1] for line in expected]
    (folder / "photos" / "[1].png").write_bytes((folder / "photos" / "1.png").read_bytes())
    assert call(capsys, "caption", "photos/[1].png", *model)[1][0].startswith("photos/[1].png\t")  # a name goes first


def test_a_few_are_read_ahead_and_their_pixels_let_go(monkeypatch):
    """However many photos: opened are those of a batch and a few more, never all."""
    opened, used, most = [], [], []
    photos = [Photo(str(n), str(n), lambda n=n: n) for n in range(100)]

    def open_photo(content, name):
        opened.append(content)
        return Image.new("RGB", (2, 2))

    monkeypatch.setattr(photo_stream, "open_photo", open_photo)
    sizes = []
    for batch in photo_stream.in_batches(photo_stream.opened(photos), 8):
        sizes.append(len(batch))
        used += [photo.name for photo, _ in batch]
        most.append(len(opened) - len(used))
    assert used == [str(n) for n in range(100)]
    assert sizes[:4] == [1, 2, 4, 8]
    assert max(sizes) == 8
    assert max(most) <= photo_stream.AHEAD + 1
    monkeypatch.setattr(photo_stream, "BATCH_PIXELS", 8)
    assert {len(batch) for batch in photo_stream.in_batches(photo_stream.opened(photos[:20]), 8)} == {1, 2}
    monkeypatch.setattr(photo_stream, "FAST", 0)
    assert {len(batch) for batch in photo_stream.in_batches(photo_stream.opened(photos[:9]), 8)} == {1}
    rows = photo_stream.opened(photos)
    next(rows)
    rows.close()  # nobody asks for the rest
    assert len(opened) < 2 * len(photos)


def read(path):
    text = Path(path).read_text("utf-8-sig")
    return (
        [json.loads(line) for line in text.splitlines()]
        if path.endswith("l")
        else list(csv.DictReader(text.splitlines()))
    )


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_file_of_rows_goes_on_where_it_was(name, folder, model, capsys):
    caption = ["caption", "photos", "bad.jpg", *model, "--output"]
    status, lines, errors = call(capsys, *caption, f"whole{name}")
    assert (status, lines) == (2, [f"whole{name}: 5 photos, 1 could not be read"])
    assert [line.split(": ")[0] for line in errors] == ["bad.jpg"]
    whole = read(f"whole{name}")
    assert [row["photo"] for row in whole] == [*(f"photos/{number}.png" for number in range(5)), "bad.jpg"]
    assert whole[5]["error"] == errors[0]
    assert not os.path.exists(f"whole{name}.lock")
    content = Path(f"whole{name}").read_bytes()
    good = b"".join(content.splitlines(keepends=True)[: 5 if name.endswith("jsonl") else 6])
    for cut in (0, 5, len(good) // 2, len(good) - 1, len(good), len(content) - 3):
        Path(name).write_bytes(content[:cut])
        status, lines, errors = call(capsys, *caption, name)
        assert status == 2
        assert len(errors) == 1
        assert Path(name).read_bytes() == content, cut
        done = sum(row["photo"] != "bad.jpg" for row in read(name)) - int(lines[0].split(": ")[1].split()[0])
        assert f"{done} skipped, already done" in lines[0] if done else "left out" not in lines[0]
    noise(folder / "bad.png", 7)
    os.replace("bad.png", "bad.jpg")  # what could not be read is tried again
    assert call(capsys, *caption, name) == (0, [f"{name}: 1 photo, 5 skipped, already done"], [])
    assert read(name)[5]["caption"]
    assert call(capsys, *caption, name)[1] == [f"{name}: 0 photos, 6 skipped, already done"]
    noise(folder / "photos" / "1.png", 8)  # a changed photo is another photo
    assert call(capsys, *caption, name)[1] == [f"{name}: 1 photo, 5 skipped, already done"]
    assert Counter(row["photo"] for row in read(name)).most_common(1)[0][1] == 1
    assert call(capsys, *caption, name, "--dtype", "float32")[0] == 0  # what auto means on this machine
    others = [["--num-beams", "2"], ["--max-length", "9"], ["--dtype", "bfloat16"]]
    for other in others + [["--details"]] * name.endswith("jsonl"):
        before = Path(name).read_bytes()
        status, lines, [error] = call(capsys, *caption, name, *other)
        assert (status, lines) == (2, [])
        assert f"{name}: row 1 was made with" in error
        assert Path(name).read_bytes() == before


def test_other_weights_are_other_rows(folder, model, capsys):
    shutil.copytree(model[1], "copy")
    call(capsys, "caption", "photos", "--model", "copy", "--output", "a.jsonl")
    shutil.copy("copy/region_model/model.safetensors", "copy/model.safetensors")
    status, _, [error] = call(capsys, "caption", "photos", "--model", "copy", "--output", "a.jsonl")
    assert status == 2
    assert "was made with copy (" in error


def test_files_that_hold_something_else_stay_as_they_are(folder, model, capsys):
    others = {"a.csv": b"name,price\nx,1\n", "b.csv": b"note", "a.jsonl": b'{"id": 1}\n', "b.jsonl": b"[1]\n"}
    others |= {"c.jsonl": b'{"photo": "a.jpg"}\n', "d.jsonl": b'{"photo": 1'}
    for name, content in others.items():
        (folder / name).write_bytes(content)
        status, lines, [error] = call(capsys, "caption", "photos", *model, "--output", name)
        assert (status, lines) == (2, [])
        assert error.startswith(f"{name}: ")
        assert (folder / name).read_bytes() == content
    for name, said in {
        "out.txt": "name it out.jsonl",
        "no/such/a.csv": "no such folder",
        "photos.csv": "is not a file",
    }.items():
        (folder / "photos.csv").mkdir(exist_ok=True)
        status, lines, [error] = call(capsys, "caption", "photos", *model, "--output", name)
        assert (status, lines) == (2, [])
        assert said in error
    assert call(capsys, "caption", "photos", *model, "--details", "--output", "x.csv")[0] == 2


SLOWLY = """
import sys, time
from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.cli import main

caption = MengziOscarPipeline.caption
MengziOscarPipeline.caption = lambda *given, **settings: (time.sleep(0.3), caption(*given, **settings))[1]
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on(folder, tiny_checkpoint, capsys):
    for number in range(5, 30):
        noise(folder / "photos" / f"{number:02}.png", number)
    command = ["caption", "photos", "--model", str(tiny_checkpoint), "--output", "out.jsonl"]
    with subprocess.Popen([sys.executable, "-c", SLOWLY, *command, "--batch-size", "1"]) as process:
        while process.poll() is None and not (os.path.exists("out.jsonl") and os.path.getsize("out.jsonl")):
            time.sleep(0.01)
        status, _, [error] = call(capsys, *command)  # meanwhile
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert status == 2
    assert "another process" in error
    done = len(read("out.jsonl"))
    assert 0 < done < 30
    assert call(capsys, *command)[1] == [f"out.jsonl: {30 - done} photos, {done} skipped, already done"]
    rows = read("out.jsonl")
    assert [row["photo"] for row in rows] == sorted(f"photos/{path.name}" for path in (folder / "photos").iterdir())


def test_ask_and_match_take_many_photos(folder, model, capsys):
    pipeline = MengziOscarPipeline.from_pretrained(model[1])
    names, texts = [f"photos/{number}.png" for number in range(5)], ["一只猫", "两个人"]
    answers = {name: pipeline.ask(name, "有只狗？", 2) for name in names}
    matches = {name: pipeline.match(name, texts) for name in names}
    ask = ["ask", "photos/0.png", "photos/1.png", "photos/[2-4].png", "有只狗？", "--top", "2", *model]
    expected = [f"{name}\t{row['answer']}\t{row['probability']:.3f}" for name in names for row in answers[name]]
    assert call(capsys, *ask) == (0, expected, [])
    assert (
        call(capsys, "ask", "photos/0.png", "--top", "2", "有只狗？", *model)[1]
        == [  # an option between the words
            line.partition("\t")[2] for line in expected[:2]
        ]
    )
    match = ["match", "photos/", *texts, *model]
    expected = [f"{name}\t{row['text']}\t{row['probability']:.3f}" for name in names for row in matches[name]]
    assert call(capsys, *match) == (0, expected, [])
    records = [json.loads(line) for line in call(capsys, *match, "--json")[1]]
    assert [record["photo"] for record in records] == names
    assert records[1]["matches"] == [
        {"text": row["text"], "probability": round(row["probability"], 4)} for row in matches[names[1]]
    ]
    for command, columns in ((ask, ["answer", "probability", "answer 2", "probability 2"]), (match, texts)):
        call(capsys, *command, "--output", f"{command[0]}.csv")
        rows = read(f"{command[0]}.csv")
        assert [row["photo"] for row in rows] == names
        assert list(rows[0]) == ["photo", *columns, "error", "made_with"]
        assert call(capsys, *command, "--output", f"{command[0]}.csv")[1][0].endswith("5 skipped, already done")
    assert float(read("match.csv")[2]["两个人"]) == round(matches[names[2]][1]["probability"], 4)
    assert read("ask.csv")[3]["answer 2"] == answers[names[3]][1]["answer"]
    status, _, [error] = call(capsys, "match", "photos/", "一只狗", *model, "--output", "match.csv")
    assert status == 2
    assert "match.csv: holds other columns" in error


def test_which_words_are_photos(folder):
    for words, photos in {
        ("a.jpg", "有几个人？"): 1,
        ("nowhere", "有几个人？"): 1,
        ("a.jpg", "missing.PNG", "photos", "一只猫"): 3,
        ("photos/*.png", "*.gif", "男/女"): 2,
        ("a.jpg", "a/b/c", "a cat / a dog"): 2,
        ("a.jpg", "list.csv", "x?"): 2,
    }.items():
        found, texts = photos_and_texts(words, "question")
        assert len(found) == photos, words
        assert [*found, *texts] == [*words]


def test_json_is_short_and_details_are_all(folder, model, capsys):
    [short] = call(capsys, "caption", "photos/0.png", *model, "--json")[1]
    record = json.loads(short)
    assert list(record) == ["photo", "caption", "score", "captions", "tags", "objects"]
    assert [list(one) for one in record["captions"]] == [["caption", "score"]] * 3
    [long] = call(capsys, "caption", "photos/0.png", *model, "--details")[1]
    details = json.loads(long)
    assert all(details[name] == record[name] for name in ("photo", "caption", "score", "tags"))
    assert details["captions"][0]["region_weights"]
    assert details["regions"][0]["box"] == [round(side, 1) for side in details["regions"][0]["box"]]
    assert max(map(len, re.findall(r"\.(\d+)", long.partition('"score"')[2]))) <= 4


def test_bar_and_lines_never_share_a_line(folder, model, monkeypatch):
    """Both on one terminal: every caption stands alone on its line."""
    monkeypatch.setattr("modeling_mengzi_oscar.progress.SECONDS_WITHOUT_BAR", 0)
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    with open(end, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        assert main(["caption", "photos", "bad.jpg", *model]) == 2
        shown = b""
        while select.select([terminal], [], [], 0)[0]:
            shown += os.read(terminal, 10_000)
    shown = shown.decode()
    assert "photo/s" in shown
    screen = [re.split("\r|\x1b\\[A", line)[-1] for line in shown.replace("\r\n", "\n").split("\n")]
    assert [line.split("\t")[0].split(":")[0] for line in screen if line.strip()] == [
        *(f"photos/{number}.png" for number in range(5)),
        "bad.jpg",
    ]


def test_a_bar_before_the_first_photo_is_done(folder, model, monkeypatch):
    """VinVL takes seconds for one."""
    monkeypatch.setattr("modeling_mengzi_oscar.progress.SECONDS_WITHOUT_BAR", 0.05)
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    caption = MengziOscarPipeline.caption

    def slow(self, photos, **settings):
        time.sleep(0.5 if photos else 0)
        return caption(self, photos, **settings)

    monkeypatch.setattr(MengziOscarPipeline, "caption", slow)
    with open(end, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        assert main(["caption", "photos/0.png", *model]) == 0
        assert b"0/1" in os.read(terminal, 10_000)


def test_lines_about_progress_where_nobody_looks(folder, model, capsys, monkeypatch):
    monkeypatch.setattr("modeling_mengzi_oscar.progress.SECONDS_PER_LINE", 0)
    _, lines, errors = call(capsys, "caption", "photos", *model)
    assert len(lines) == 5
    assert errors[0].startswith("1 of 5 photos, ")
    assert not [line for line in errors if "\r" in line]


def test_ctrl_c_says_what_is_kept(folder, model, capsys, monkeypatch):
    ask, asked = MengziOscarPipeline.caption, []

    def interrupted(self, photos, **settings):
        asked.extend(photos)
        if len(asked) > 3:
            raise KeyboardInterrupt
        return ask(self, photos, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(MengziOscarPipeline, "caption", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped; out.csv: 3 photos: start again to resume"):
            main(["caption", "photos", *model, "--output", "out.csv"])
    assert call(capsys, "caption", "photos", *model, "--output", "out.csv")[1] == [
        "out.csv: 2 photos, 3 skipped, already done"
    ]


def test_captions_of_a_store(folder, model, capsys):
    call(capsys, "extract", "photos", "--output", "store", "--dtype", "float32", *model)
    pipeline = MengziOscarPipeline.from_pretrained(model[1])
    expected = {str(n): pipeline.caption(f"photos/{n}.png") for n in range(5)}
    _, lines, errors = call(capsys, "caption", "--features", "store", *model)
    assert not errors
    assert [line.split("\t")[:2] for line in lines] == [[name, one["caption"]] for name, one in expected.items()]
    assert any(one["tags"] for one in expected.values())
    for line in call(capsys, "caption", "--features", "store", *model, "--details")[1]:
        record = json.loads(line)
        assert record["tags"] == expected[record["photo"]]["tags"]
        assert record["score"] == pytest.approx(expected[record["photo"]]["score"], abs=1e-3)
        assert len(record["regions"]) == len(expected[record["photo"]]["regions"])
    output = ["caption", "--features", "store", *model, "--output", "out.csv"]
    assert call(capsys, *output)[1] == ["out.csv: 5 photos"]
    assert call(capsys, *output)[1] == ["out.csv: 0 photos, 5 skipped, already done"]
    shutil.copytree(model[1], "alone")  # a captioner without a region model captions features all the same
    shutil.rmtree("alone/region_model")
    config = json.loads((folder / "alone" / "config.json").read_text())
    (folder / "alone" / "config.json").write_text(json.dumps(config | {"region_model": None}))
    assert call(capsys, "caption", "--features", "store", "--model", "alone")[1] == lines


def test_stores_of_other_features_are_refused(folder, model, capsys):
    def store(name, width, **more):
        with RegionFeatureStore.writer(folder / name, labels=more.pop("labels", None)) as writer:
            writer.add("a", {"region_features": np.ones((2, width), np.float32)} | more)
        return name

    tags = {"tag_ids": np.array([1]), "tag_scores": np.array([0.5], np.float32)}
    for arguments, said in {
        (store("narrow", 22),): "narrow: its regions are 22 wide, ",
        (store("words", 262, labels=["", "马"], **tags),): "words: its 1 tags are of another region model",
        (store("short", 262, **tags | {"tag_ids": np.array([9])}),): "has the tag 9, but only 3 have names",
        ("nowhere",): "nowhere is not a region feature store",
        ("narrow", "photos/0.png"): "leave out photos",
    }.items():
        status, lines, [error] = call(capsys, "caption", *arguments[1:], "--features", arguments[0], *model)
        assert (status, lines) == (2, [])
        assert said in error
