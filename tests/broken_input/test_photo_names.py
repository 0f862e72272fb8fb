"""Which files are photos, and what they are called: one list at every door, and nothing left out without a word."""

import csv
import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from PIL import Image

from datasets_scripts.image_captions import ImageCaptions
from datasets_scripts.reading import find_photos, say_photos
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.features.photo_sources import open_source
from modeling_mengzi_oscar.photos import SUFFIXES, PhotoError, is_photo_name

PHOTO = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(PHOTO, "JPEG")
PHOTO = PHOTO.getvalue()
BESIDE = b"\0\x05\x16\x07\0\2\0\0Mac OS X" + bytes(100)  # AppleDouble

COUNTED = {f"{number:02d}{suffix}": PHOTO for number, suffix in enumerate((*SUFFIXES, ".JFIF", ".Jpe", ".HEIC"))}
NEVER = {
    "._00.jpg": BESIDE,
    "sub/._a.JPG": BESIDE,
    "__MACOSX/sub/._a.jpg": BESIDE,
    ".DS_Store": b"\0\0\0\1Bud1",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "notes.txt": b"notes",
    "BM.txt": b"BM is no bitmap",
}
UNNAMED = {"scan": PHOTO, "old.dat": PHOTO, ".hidden.jpg": PHOTO}
IDS = {name.rpartition(".")[0] for name in COUNTED}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tarred(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_names():
    for name in ("a.jfif", "a.JPE", "b/a.heic", "a.HEIF", "a.avif", "./a.jpg", "../a.jpg", "b\\a.jpg", Path("a.png")):
        assert is_photo_name(name), name
    for name in ("._a.jpg", "b/._a.jpg", "b\\._a.jpg", ".a.jpg", ".b/a.jpg", "__MACOSX/a.jpg", "a.jpg.txt", "jpg", "a"):
        assert not is_photo_name(name), name


@pytest.mark.parametrize("kind", ["folder", "tar", "tar with dots"])
def test_streams(kind, tmp_path):
    files = COUNTED | NEVER | UNNAMED
    if kind == "folder":
        source = open_source(write(tmp_path / "photos", files))
    else:
        source = open_source(
            tarred(tmp_path / "photos.tar", {("./" if "dots" in kind else "") + k: v for k, v in files.items()})
        )
    assert {photo.image_id.removeprefix("./") for photo in source.fetch_photos()} == IDS
    assert source.passed_over.count == 3
    assert "3 passed over that are photos by content but not by name, the first: " in str(source.passed_over)
    list(source.fetch_photos())
    assert source.passed_over.count == 3  # of one stream, not of all
    assert kind != "folder" or source.total == len(COUNTED)


def test_lists(tmp_path):
    (tmp_path / "list.txt").write_text("a.jfif\n._a.jfif\nsub/._b.jpg\n")
    (tmp_path / "list.csv").write_text("image_id,path\n1,a.jpe\n2,._a.jpe\n")
    assert [photo.image_id for photo in open_source(tmp_path / "list.txt").fetch_photos()] == ["a"]
    assert [photo.image_id for photo in open_source(tmp_path / "list.csv").fetch_photos()] == ["1"]
    (tmp_path / "links.txt").write_text("https://example.org/a.jpg\n")
    [photo] = open_source(tmp_path / "links.txt").fetch_photos()
    assert photo.name == photo.fetch() == "https://example.org/a.jpg"


def test_one_file(tmp_path):
    write(tmp_path, {"scan": PHOTO, "._a.jpg": BESIDE, "notes": b"notes"})
    [photo] = open_source(tmp_path / "scan").fetch_photos()
    assert photo.fetch() == tmp_path / "scan"
    for name, reason in (("._a.jpg", "macOS"), ("notes", "no photo, list")):
        with pytest.raises(PhotoError, match=reason):
            open_source(tmp_path / name)
    with pytest.raises(PhotoError, match="^https://example.org/photos: addresses are not fetched"):
        open_source("https://example.org/photos")
    write(tmp_path / "scans", {"scan": PHOTO})
    with pytest.raises(PhotoError, match="holds no photos .* 1 passed over .*scan$"):
        open_source(tmp_path / "scans")


def test_commands(tmp_path, tiny_checkpoint, capsys):
    """What macOS keeps beside photos changes no status; what is left out is told."""
    write(tmp_path / "photos", {"a.jfif": PHOTO} | NEVER | UNNAMED)
    model = ["--model", str(tiny_checkpoint)]
    assert main(["extract", str(tmp_path / "photos"), "--output", str(tmp_path / "store"), *model]) == 0
    line = capsys.readouterr().out
    assert ": 1 photos (" in line
    assert f"3 passed over that are photos by content but not by name, the first: {tmp_path}" in line
    photos = [str(tmp_path / "photos" / name) for name in ("._00.jpg", "a.jfif", "sub/._a.JPG")]
    assert main(["caption", *photos, *model]) == 0
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == photos[1:2]
    assert f"passed over 2 files that macOS keeps next to photos, e.g. {photos[0]}" in err
    assert main(["caption", photos[0], *model]) == 2
    assert main(["ask", photos[0], "什么？", *model]) == 2


def test_builders(tmp_path, capsys):
    photos = {name: content for name, content in COUNTED.items() if name not in ("16.HEIC",)}
    write(tmp_path / "data" / "images", photos | NEVER | UNNAMED)
    with open(tmp_path / "data" / "captions.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "caption"])
        rows.writerows([name, "一只猫。"] for name in (*photos, "._00.jpg"))
    builder = ImageCaptions(data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    report = capsys.readouterr().out
    assert f"{len(photos)} photos with {len(photos)} sentences" in report
    assert "Left out: 0 photos without sentences" in report
    assert "3 files that are photos by content but not by name, the first: " in report
    found = find_photos(tmp_path / "data", "images")
    assert found.keys() == {name.rpartition(".")[0] for name in photos}
    assert say_photos(found, found).startswith("0 photos without a row; 3 files that are photos by content")


# zips


def zipped(path, names, encoding=None, more=()):
    """A zip whose names are these bytes: without the flag that says UTF-8 unless `encoding` is None."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            placeholder = f"{number:04d}".ljust(len(name.encode(encoding)), "x") if encoding else name
            archive.writestr(placeholder, PHOTO)
        for name, content in more:
            archive.writestr(name, content)
    if encoding:
        content = path.read_bytes()
        for number, name in enumerate(names):
            placeholder = f"{number:04d}".ljust(len(name.encode(encoding)), "x").encode()
            content = content.replace(placeholder, name.encode(encoding))
        path.write_bytes(content)
    return str(path)


def listed(photos_in, path):
    return {name: read for name, read in photos_in([(Path(path).name, path)])}


@pytest.mark.parametrize("encoding", [None, "utf-8", "gbk", "cp437"])
def test_names_in_zips(encoding, tmp_path):
    photos_in = pytest.importorskip("uploads", reason="needs gradio").photos_in
    names = ["résumé.jpg"] if encoding == "cp437" else ["照片/一只猫.jpg", "两个人在海边.JFIF", "plain.jpg"]
    found = listed(photos_in, zipped(tmp_path / "a.zip", names, encoding))
    assert list(found) == names
    assert all(read().size == (30, 20) for read in found.values())


def test_what_is_no_photo_in_a_zip_is_listed(tmp_path, monkeypatch):
    uploads = pytest.importorskip("uploads", reason="needs gradio")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heic = b"\0\0\0\x18ftypheic" + bytes(12)
    more = [*NEVER.items(), ("scan", PHOTO), ("IMG_1.HEIC", heic), ("b.jfif", PHOTO)]
    found = listed(uploads.photos_in, zipped(tmp_path / "a.zip", ["a.jpg"], more=more))
    assert list(found) == ["a.jpg", "Thumbs.db", "notes.txt", "BM.txt", "scan", "IMG_1.HEIC", "b.jfif"]
    keys = {}
    for name, read in found.items():
        try:
            keys[name] = read().size
        except uploads.UserError as error:
            keys[name] = error.key
    none = {name: "not_a_photo" for name in ("Thumbs.db", "notes.txt", "BM.txt")}
    assert keys == none | {name: (30, 20) for name in ("a.jpg", "scan", "b.jfif")} | {"IMG_1.HEIC": "needs_library"}


def test_labels_beside_the_photos_of_a_zip_do_not_count(tmp_path):
    uploads = pytest.importorskip("uploads", reason="needs gradio")
    most = uploads.MAX_PHOTOS
    labels = [(f"{number}.txt", b"0 0.5 0.5 1 1") for number in range(most + 50)]
    path = zipped(tmp_path / "a.zip", [f"{number}.jpg" for number in range(most)], more=labels)
    found = listed(uploads.photos_in, path)
    assert sum(name.endswith(".jpg") for name in found) == most
    assert "… (+ 50)" in found
    with pytest.raises(uploads.UserError, match=f"Up to {most}"):
        uploads.photos_in([("a.zip", path), ("b.jpg", path)])


def test_uploads_beside_photos_are_passed_over(tmp_path, monkeypatch):
    uploads = pytest.importorskip("uploads", reason="needs gradio")
    monkeypatch.setattr(uploads, "checked_path", str)
    files = [{"path": "/x/1", "orig_name": "._a.jpg"}, {"path": "/x/2", "orig_name": "a.jpg"}]
    assert uploads.uploaded(files) == [("a.jpg", "/x/2")]


def test_one_upload_that_cannot_be_taken_costs_only_itself(tmp_path, monkeypatch):
    uploads = pytest.importorskip("uploads", reason="needs gradio")
    functions = pytest.importorskip("functions")
    monkeypatch.setattr(uploads, "get_upload_folder", lambda: str(tmp_path))
    good = str(write(tmp_path, {"a.jpg": PHOTO}) / "a.jpg")
    bad = [None, "data:image/png;base64,?", "https://a.b/c.jpg", "/etc/passwd"]
    engine = SimpleNamespace(prepare=lambda photo: photo)  # what it makes of photos is no part of this
    [(name, photo), *others] = functions.Functions(engine).gallery([good, *bad], False)
    assert (name, photo.size) == ("a.jpg", (30, 20))
    keys = ["no_photo", "damaged", "no_links", "not_uploaded"]
    assert [(name, error.message) for name, error in others] == [
        (f"photo {number}", uploads.UserError(key).message) for number, key in enumerate(keys, 2)
    ]
    assert len(uploads.photos_in(uploads.uploaded([good, *bad]))) == 5
    with pytest.raises(uploads.UserError, match="Give a photo"):
        uploads.uploaded(bad)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tar", "a.parquet", "a.jpg"])
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(PhotoError, match="not a file"):
        open_source(tmp_path / name)


def test_rows_of_what_lies_beside_photos_are_passed_over(tmp_path):
    photos = [{"bytes": PHOTO, "path": "a.jpg"}, {"bytes": BESIDE, "path": "x/._a.jpg"}, {"bytes": PHOTO, "path": None}]
    rows = {"image_id": ["a", "beside", "b"], "image": photos}
    rows = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for source in (rows, tmp_path / "a.parquet", tmp_path / "saved"):
        assert [photo.image_id for photo in open_source(source).fetch_photos()] == ["a", "b"], source
    assert [photo.image_id for photo in open_source(rows.select([2, 1])).fetch_photos()] == ["b"]


# other programs' files beside photos

FOREIGN = {
    "of another program": {"version": 3, "files": ["a"]},
    "a list": [1, 2],
    "a number": 7,
    "no list": {"_data_files": "a.arrow", "splits": "train"},
    "numbers in a list": {"_data_files": [1], "splits": [{}]},
    "no name": {"_data_files": [{}], "splits": [None]},
    "leads up": {"_data_files": [{"filename": "../outside.arrow"}], "splits": ["../outside"]},
    "leads away": {"_data_files": [{"filename": "/etc/hostname"}], "splits": ["/etc"]},
    "a NUL": {"_data_files": [{"filename": "a\0b"}], "splits": ["a\0b"]},
    "not there": {"_data_files": [{"filename": "a.arrow"}], "splits": ["train"]},
}


@pytest.mark.parametrize("kind", [*FOREIGN, "no JSON", "no text", "deep"])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_a_photo_folder_is_one_whatever_lies_in_it(name, kind, tmp_path):
    contents = {"no JSON": b"{", "no text": b"\xff\xfe\0", "deep": b"[" * 100_000}
    content = contents.get(kind) or json.dumps(FOREIGN[kind]).encode()
    write(tmp_path / "photos", {"a.jpg": PHOTO, name: content})
    assert [photo.image_id for photo in open_source(tmp_path / "photos").fetch_photos()] == ["a"]
    (tmp_path / "photos" / "a.jpg").unlink()  # and without a photo it is one line
    with pytest.raises(PhotoError) as error:
        open_source(tmp_path / "photos")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "photos") in str(error.value)


def test_a_saved_data_set_leads_nowhere_else(tmp_path):
    rows = datasets.Dataset.from_dict({"image": [{"bytes": PHOTO, "path": None}]})
    rows = rows.cast_column("image", datasets.Image())
    rows.save_to_disk(tmp_path / "inside")
    rows.save_to_disk(tmp_path / "outside")
    assert len(list(open_source(tmp_path / "inside").fetch_photos())) == 1
    [arrow] = (tmp_path / "inside").glob("*.arrow")
    arrow.unlink()
    os.symlink(tmp_path / "outside" / arrow.name, arrow)
    for name in (arrow.name, f"../outside/{arrow.name}", str(tmp_path / "outside" / arrow.name)):
        state = json.loads((tmp_path / "outside" / "state.json").read_text("utf-8"))
        state["_data_files"] = [{"filename": name}]
        (tmp_path / "inside" / "state.json").write_text(json.dumps(state), "utf-8")
        with pytest.raises(PhotoError, match="no file in this folder"):
            open_source(tmp_path / "inside")
    arrow.unlink()
    arrow.write_bytes(b"not Arrow")
    state["_data_files"] = [{"filename": arrow.name}]
    (tmp_path / "inside" / "state.json").write_text(json.dumps(state), "utf-8")
    with pytest.raises(PhotoError, match="cannot be read as Arrow"):
        open_source(tmp_path / "inside")
