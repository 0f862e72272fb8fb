"""Other people's tables: read as what they are, or refused with what was found; a bad row is named and costs itself."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from builders import build, copy_files
from test_oscar_tsv import feature_row

from datasets_scripts.reading import json_lines, lines, read_json
from modeling_mengzi_oscar import RegionFeatureStore
from modeling_mengzi_oscar.features.oscar_tsv import import_tsv
from modeling_mengzi_oscar.modeling_regions import box_geometry

WIDTH, HEIGHT, DIM = 64, 48, 16
BOTTOM_UP = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
LXMERT = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", *BOTTOM_UP[3:]]


def encoded(values, dtype="<f4"):
    return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()


def photo(number, count=3):
    """Every column that one of the tables has."""
    generator = np.random.default_rng(number)
    left, top = generator.uniform(0, WIDTH / 2, count), generator.uniform(0, HEIGHT / 2, count)
    boxes = np.stack([left, top, left + WIDTH / 2 - 1, top + HEIGHT / 2 - 1], axis=1).astype("<f4")
    features = generator.normal(size=(count, DIM)).astype("<f4")
    return {
        **{"image_id": f"图{number}", "image_w": WIDTH, "image_h": HEIGHT, "num_boxes": count},
        **{"img_id": f"图{number}", "img_w": WIDTH, "img_h": HEIGHT},
        **{"boxes": encoded(boxes), "features": encoded(features), "cls_prob": encoded(np.ones((count, 5)))},
        **{"objects_id": encoded(range(count), "<i8"), "attrs_id": encoded(range(count), "<i8")},
        **{"objects_conf": encoded(np.full(count, 0.5)), "attrs_conf": encoded(np.full(count, 0.25))},
        "raw": (boxes, features),
    }


def write(path, columns, rows, header=False, end="\n"):
    text = ["\t".join(columns)] * header + ["\t".join(str(row[name]) for name in columns) for row in rows]
    path.write_bytes((end.join(text) + end).encode())
    return path


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n"])
@pytest.mark.parametrize(
    ("columns", "header"),
    [
        (BOTTOM_UP, False),
        ([*BOTTOM_UP, "cls_prob"], False),
        (LXMERT, False),
        (BOTTOM_UP, True),
        (LXMERT, True),
        (["features", "boxes", "image_h", "image_w", "num_boxes", "image_id"], True),
    ],
)
def test_tables_with_boxes(tmp_path, capsys, columns, header, end):
    rows = [photo(number, count=number % 4) for number in range(6)]
    path = write(tmp_path / "f.tsv", columns, rows, header, end)
    assert import_tsv(path, tmp_path / "store", dtype="float32") == {"imported": 6, "already there": 0, "skipped": 0}
    assert f"{DIM + 6} numbers per region" in (printed := capsys.readouterr().out)
    assert ("blank rows skipped" in printed) == ("\n \n" in end)
    store = RegionFeatureStore.open(tmp_path / "store")
    for row in rows:
        boxes, features = row["raw"]
        found = store[row["image_id"]]
        np.testing.assert_array_equal(found["boxes"], boxes)
        assert found["original_size"].tolist() == [HEIGHT, WIDTH]
        np.testing.assert_array_equal(found["region_features"][:, :DIM], features)
        geometry = box_geometry(torch.tensor(boxes)[None], torch.tensor([[HEIGHT, WIDTH]]))[0]
        np.testing.assert_allclose(found["region_features"][:, DIM:], geometry, rtol=1e-6)
        assert ("scores" in found) == (columns is LXMERT)


def swapped(one, other):
    return [{one: other, other: one}.get(name, name) for name in BOTTOM_UP]


@pytest.mark.parametrize(
    "columns",
    [
        swapped("boxes", "features"),
        swapped("image_id", "num_boxes"),
        swapped("num_boxes", "image_w"),
        swapped("num_boxes", "boxes"),
        ["image_id", "image_w", "image_h", "features"],
        ["image_id", "image_w", "features"],
        ["image_id", "image_w", "image_h", "num_boxes", "features"],
        ["image_id", "features"],
        ["image_id", "image_w", "image_h"],
        ["features"],
        [*LXMERT, "cls_prob"],
        LXMERT[:-1],
        [*BOTTOM_UP[:4], "features", "boxes", "cls_prob"],
    ],
    ids=" ".join,
)
def test_unknown_columns_are_refused_with_what_was_found(tmp_path, columns):
    # 48 boxes make every array divisible by the size of the photo, too.
    path = write(tmp_path / "f.tsv", columns, [photo(number, count=20 + number) for number in range(20)])
    with pytest.raises(ValueError, match="no table of region features that is known") as error:
        import_tsv(path, tmp_path / "store", skip_bad=True)
    line = one_line(error)
    assert f"row 1 has {len(columns)} columns between tabs: " in line
    assert "bottom-up-attention's (image_id, image_w, image_h, num_boxes, boxes, features)" in line
    assert not (tmp_path / "store").exists()


def test_width_and_height_swapped_are_refused_where_a_box_shows_it(tmp_path):
    rows = [photo(number) | {"image_w": HEIGHT, "image_h": WIDTH} for number in range(5)]
    with pytest.raises(ValueError, match="no table of region features"):
        import_tsv(write(tmp_path / "f.tsv", BOTTOM_UP, rows), tmp_path / "store")


BAD = {
    "other width": ({"features": encoded(np.zeros((3, DIM + 1)))}, f"bytes of features, 3 boxes of {DIM} float32 need"),
    "num_boxes": ({"num_boxes": 4}, "bytes of features, 4 boxes"),
    "boxes": ({"boxes": encoded(np.zeros((2, 4)))}, "32 bytes of boxes, 3 boxes need 48"),
    "outside": (
        {"boxes": encoded(np.full((3, 4), 500))},
        r"box 1 \(500, 500, 500, 500\) is none of a photo of 64 x 48",
    ),
    "turned": ({"boxes": encoded([[9, 9, 3, 3]] * 3)}, r"box 1 \(9, 9, 3, 3\) is none"),
    "not a number": ({"boxes": encoded(np.full((3, 4), np.nan))}, "box 1 .* is none"),
    "fractions": ({"boxes": encoded([[0, 0, 0.5, 1]] * 3)}, "between 0 and 1 instead of pixels"),
    "word": ({"image_w": "wide"}, "image_w is 'wide' instead of a whole number"),
    "negative": ({"num_boxes": -3}, "num_boxes is '-3' instead"),
    "empty id": ({"image_id": " "}, "no image id"),
    "python bytes": ({"features": "b'AAAA'"}, "base64|padding|Non-base64|bytes of features"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_or_skipped(tmp_path, kind):
    change, message = BAD[kind]
    rows = [photo(number) | (change if number == 3 else {}) for number in range(6)]
    path = write(tmp_path / "f.tsv", BOTTOM_UP, rows, end="\n\n")
    with pytest.raises(ValueError, match=rf"f.tsv row 7 \(image '.*'\): .*({message})"):
        import_tsv(path, tmp_path / "store")
    assert import_tsv(path, tmp_path / "store", skip_bad=True)["skipped"] == 1
    record = json.loads((tmp_path / "store" / "errors.jsonl").read_text("utf-8"))
    assert record["row"] == 7
    assert len(RegionFeatureStore.open(tmp_path / "store")) == 5


def test_blank_rows_do_not_part_features_from_labels(tmp_path):
    rows = ["\t".join(map(str, feature_row(number, "caption"))) for number in range(1, 4)]
    labels = [f"图{number}\t[]" for number in range(1, 4)]
    (tmp_path / "f.tsv").write_text("\n".join([rows[0], "", *rows[1:], "", ""]), "utf-8")
    (tmp_path / "l.tsv").write_text("\n".join([*labels[:2], "", labels[2], ""]), "utf-8")
    settings = {"label_tsv": tmp_path / "l.tsv", "labels_are": "tags", "labels": ["", "狗"]}
    assert import_tsv(tmp_path / "f.tsv", tmp_path / "store", **settings)["imported"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"\n\n", "holds no rows"),
        ("图1\t3\tAAAA".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (b"a,3,AAAA\nb,3,AAAA\n", "row 1 has 1 columns between tabs: text"),
        (b'a\t{"objects": [], "relations": null}\n', "2 columns between tabs: text, JSON with objects, relations"),
        (b"\0" * 100, "row 1 has 1 columns"),
    ],
)
def test_what_is_no_table(tmp_path, content, message):
    (tmp_path / "f.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        import_tsv(tmp_path / "f.tsv", tmp_path / "store", skip_bad=True)
    assert str(tmp_path / "f.tsv") in one_line(error)


# Tables of sentences.


def captions(tmp_path, content, **settings):
    folder = copy_files("image_captions", tmp_path)
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "captions.csv").write_bytes(content)
    dataset = build("image_captions", folder, validation_share=0, **settings)
    return dict(zip(dataset["train"]["image_id"], dataset["train"]["captions"], strict=True))


HEADER = "file_name,caption\n"


@pytest.mark.parametrize(
    "content",
    [
        "File_Name, Caption \ncat.jpg,猫\ndog.jpg,狗\n",
        '\ufeff"file_name","CAPTION"\r\ncat.jpg,猫\r\n\r\ndog.jpg,狗\r\n',
        "file_name,caption\rcat.jpg,猫\rdog.jpg,狗\r",
        "caption,file_name,split\n猫,cat.jpg, TRAIN\n狗,dog.jpg,train\n",
    ],
)
def test_csv_as_programs_write_it(tmp_path, content):
    assert captions(tmp_path, content) == {"cat": ["猫"], "dog": ["狗"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER, "captions.csv has no row of a photo and a sentence"),
        ("file_name,text\ncat.jpg,猫\n", "row 1: no column caption, but file_name, text: rename text to caption"),
        ("Image,Sentence\ncat.jpg,猫\n", "row 1: no column file_name, but image, sentence: rename image to file_name"),
        ("file_name;caption\ncat.jpg;猫\n", "row 1: columns are separated by semicolons; save it with commas"),
        ("file_name\tcaption\ncat.jpg\t猫\n", "row 1: columns are separated by tabs"),
        ("file_name|caption\n", "row 1: columns are separated by bars"),
        ("file_name,caption,Caption\ncat.jpg,猫,猫\n", "row 1: the column 'caption' comes twice"),
        ("", "captions.csv: is empty"),
        ((HEADER + "cat.jpg,猫\n").encode("utf-16"), "captions.csv: UTF-16 text"),
        ((HEADER + "cat.jpg,猫\n").encode("utf-16-le"), "captions.csv: UTF-16 text"),
        ('"file_name,caption\ncat.jpg,猫\n', "row 1: a quote that is never closed"),
    ],
)
def test_a_header_that_is_none_is_never_skipped(tmp_path, content, message):
    for skip_bad in (False, True):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            captions(tmp_path / str(skip_bad), content, skip_bad=skip_bad)
        assert "captions.csv" in one_line(error)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('bird.jpg,"鸟', "a quote that is never closed"),
        ('bird.jpg,"鸟"鸟', "',' expected after '\"'"),
        ('bird.jpg,"鸟\nno end"x', "a quote that is never closed"),
        ("bird.jpg", "not 2 columns, but 1"),
        ("bird.jpg,鸟,鸟", "not 2 columns, but 3"),
        ("bird.jpg,鸟\0", "a NUL byte"),
        ("bird.jpg," + "鸟" * 200_000, "field larger than field limit"),
        ("bird.jpg,", "empty sentence"),
        ("cow.jpg,牛", "there is no photo 'cow.jpg'"),
    ],
)
def test_a_broken_row_is_named_and_skipped_alone(tmp_path, capsys, bad, message):
    content = HEADER + f'cat.jpg,"猫\n在这里"\n{bad}\ndog.jpg,狗\n'
    with pytest.raises(ValueError, match=re.escape(f"captions.csv, row 4: {message}")) as error:
        captions(tmp_path / "strict", content)
    assert len(one_line(error)) < 500
    found = captions(tmp_path / "skip", content, skip_bad=True)
    assert {"cat", "dog"} <= found.keys()
    assert (found["cat"], found["dog"]) == (["猫\n在这里"], ["狗"])
    assert "bird" not in found
    assert "captions.csv, row 4: " in capsys.readouterr().out


def test_the_same_sentence_twice_is_told(tmp_path, capsys):
    assert captions(tmp_path, HEADER + "cat.jpg,猫\ncat.jpg,猫\n") == {"cat": ["猫", "猫"]}
    assert "1 sentences stand twice for the same photo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"file_name": "dog.jpg", "text": "狗"}', "no column caption, but file_name, text: rename text to caption"),
        ('{"file_name": "dog.jpg", "caption": NaN}', "not a text"),
        ('{"file_name": "dog.jpg", "caption": ["狗"]}', "not a text"),
        ('{"file_name": "dog.jpg", "captions": "狗"}', "instead of a list of sentences"),
        ('{"file_name": 5, "caption": "狗"}', "'file_name' is 5 instead of str"),
        ('{"file_name": "dog.jpg", "caption": "狗", "split": ["train"]}', "split ['train'] is none of"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_json_lines(tmp_path, row, message):
    folder = copy_files("image_captions", tmp_path)
    (folder / "captions.csv").unlink()
    good = '{"File_Name": "cat.jpg", " Caption": "猫"}'
    (folder / "captions.jsonl").write_text(f"{good}\n{row}\n", "utf-8")
    with pytest.raises(ValueError, match=re.escape("captions.jsonl, row 2: ") + ".*" + re.escape(message)) as error:
        build("image_captions", folder)
    assert len(one_line(error)) < 500
    dataset = build("image_captions", folder, skip_bad=True, validation_share=0)
    assert dataset["train"]["image_id"] == ["cat"]


def test_every_builder_reads_through_the_same_place(tmp_path):
    """Encodings and line ends, where all builders get their lines and their JSON."""
    path = tmp_path / "text.txt"
    path.write_bytes("一\r二\r\n三\n".encode())
    assert [text for _, text in lines(path)] == ["一", "二", "三"]
    path.write_bytes("一\n二\0\n".encode())
    with pytest.raises(ValueError, match="text.txt, row 2: a NUL byte"):
        list(lines(path))
    for read in (lines, json_lines, read_json):
        path.write_bytes('{"一": 1}'.encode("utf-16"))
        with pytest.raises(ValueError, match="text.txt: UTF-16 text"):
            list(read(path))
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(ValueError, match="text.txt: not JSON that can be read"):
        read_json(path)
