"""Oscar's TSV files in and out, against a reader that does what Oscar's does, on its own golden files and our own."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, shared_path

from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.features import oscar_tsv
from modeling_mengzi_oscar.features.oscar_tsv import _TsvWriter, export_tsv, import_tsv
from modeling_mengzi_oscar.features.store import RegionFeatureStore

DIM = 14
WORDS = ["人", "马", "草 地", "dog"]


def read_as_oscar(tsv_path):
    """[columns] by way of the byte offsets in .lineidx, every column stripped."""
    offsets = [int(line) for line in Path(tsv_path).with_suffix(".lineidx").read_text().split()]
    with open(tsv_path, encoding="utf-8") as file:
        for offset in offsets:
            file.seek(offset)
            yield [column.strip() for column in file.readline().split("\t")]


def features_as_oscar(columns):
    if len(columns) == 2:
        record = json.loads(columns[1])
        number, encoded = record["num_boxes"], record["features"]
    else:
        number, encoded = int(columns[1]), columns[-1]
    return np.frombuffer(base64.b64decode(encoded), np.float32).reshape(number, -1)


def write_tsv(path, rows):
    with _TsvWriter(path) as writer:
        for row in rows:
            writer.write(*row)
    return path


def matrix_of(number):
    return np.random.default_rng(number).normal(size=(number % 4 + (number > 0), DIM)).astype("<f4")


def feature_row(number, layout):
    matrix = matrix_of(number)
    encoded = base64.b64encode(matrix.tobytes()).decode()
    if layout == "caption":
        return f"图{number}", json.dumps({"num_boxes": len(matrix), "features": encoded})
    return f"图{number}", len(matrix), encoded


def label_row(number, layout):
    objects = [
        {"class": WORDS[(number + i) % 4], "rect": [i, 2.5, i + 30, 40.25], "conf": 0.75 - i / 64}
        for i in range(len(matrix_of(number)))
    ]
    if layout == "retrieval":
        objects = {"objects": objects, "image_h": 480 + number, "image_w": 640}
    return f"图{number}", json.dumps(objects, ensure_ascii=False)


def write_files(folder, numbers, layout):
    """Features and objects; those of the retrieval layout stand in another order."""
    features = write_tsv(folder / "features.tsv", [feature_row(number, layout) for number in numbers])
    order = numbers if layout == "caption" else reversed(numbers)
    return features, write_tsv(folder / "labels.tsv", [label_row(number, layout) for number in order])


def set_row(path, row, columns):
    lines = path.read_bytes().split(b"\n")
    lines[row - 1] = "\t".join(map(str, columns)).encode() if not isinstance(columns, bytes) else columns
    path.write_bytes(b"\n".join(lines))


def same(store, other):
    assert set(store) == set(other)
    for image_id in store:
        for name, values in store[image_id].items():
            np.testing.assert_array_equal(values, other[image_id][name])


def test_golden_rows_and_offsets(tmp_path):
    folder = shared_path("parity/oscar/data_tsv")
    rows = [line.split("\t") for line in (folder / "a.tsv").read_text("utf-8").splitlines()]
    write_tsv(tmp_path / "a.tsv", rows)
    assert (tmp_path / "a.tsv").read_bytes() == (folder / "a.tsv").read_bytes()
    assert (tmp_path / "a.lineidx").read_bytes() == (folder / "a.lineidx").read_bytes()
    expected = json.loads((folder / "case.json").read_text("utf-8"))["calls"][0]["expect"]
    assert list(read_as_oscar(tmp_path / "a.tsv")) == expected["seek"]  # this file's reader is right, too


@pytest.mark.parametrize(
    ("case", "features", "labels", "layout"),
    [
        ("data_caption", "feature.tsv", "label.tsv", "caption"),
        ("data_retrieval", "features.tsv", "predictions.tsv", "retrieval"),
        ("data_pretrain", "feats/coco/features.tsv", "labels/coco/predictions_gt.tsv", "retrieval"),
    ],
)
def test_golden_files_go_in_and_come_out(tmp_path, case, features, labels, layout):
    """Goldens have more or fewer objects than boxes, so they are tags."""
    folder = shared_path(f"parity/oscar/{case}")
    options = {"label_tsv": folder / labels, "labels_are": "tags", "assumed_size": (600, 800), "language": "en"}
    counts = import_tsv(folder / features, tmp_path / "store", dtype="float32", **options)
    store = RegionFeatureStore.open(tmp_path / "store")
    rows = list(read_as_oscar(folder / features))
    assert counts == {"imported": len(rows), "already there": 0, "skipped": 0}
    tags = {}
    for line in (folder / labels).read_text("utf-8").splitlines():
        image_id, record = line.split("\t")
        record = json.loads(record)
        tags[image_id] = [item["class"] for item in (record["objects"] if isinstance(record, dict) else record)]
    assert list(store) == [row[0] for row in rows]
    for row in rows:
        regions = store[row[0]]
        np.testing.assert_array_equal(regions["region_features"], features_as_oscar(row))
        assert [store.labels[number] for number in regions["tag_ids"]] == tags[row[0]]
    export_tsv(store, tmp_path / features, layout, label_tsv=tmp_path / labels)
    for name in (features, Path(features).with_suffix(".lineidx")):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    if layout == "retrieval":
        written = json.loads((tmp_path / features).with_name("imageid2idx.json").read_text("utf-8"))
        assert written == json.loads((folder / features).with_name("imageid2idx.json").read_text("utf-8"))
    for row in read_as_oscar(tmp_path / labels):
        record = json.loads(row[1])
        assert [item["class"] for item in (record["objects"] if layout == "retrieval" else record)] == tags[row[0]]


@pytest.mark.parametrize(("layout", "num_proc"), [("caption", 1), ("retrieval", 2)])
def test_regions_survive_the_round_trip(tmp_path, layout, num_proc):
    features, labels = write_files(tmp_path, range(9), layout)
    options = {"images_per_shard": 2, "num_proc": num_proc, "language": "en"}  # names stay as they are
    import_tsv(features, tmp_path / "store", label_tsv=labels, **options)
    store = RegionFeatureStore.open(tmp_path / "store")
    assert store.verify() == 9
    for number in range(9):
        regions = store[f"图{number}"]
        np.testing.assert_array_equal(regions["region_features"], matrix_of(number).astype(np.float16))
        objects = json.loads(label_row(number, "caption")[1])
        assert [store.labels[i] for i in regions["class_ids"]] == [item["class"] for item in objects]
        assert regions["boxes"].tolist() == [item["rect"] for item in objects]
        if layout == "retrieval":
            assert regions["original_size"].tolist() == [480 + number, 640]
    ids = [f"图{number}" for number in reversed(range(9))]
    export_tsv(store, tmp_path / "out.tsv", layout, tmp_path / "out_labels.tsv", image_ids=ids)
    for row, label in zip(read_as_oscar(tmp_path / "out.tsv"), read_as_oscar(tmp_path / "out_labels.tsv"), strict=True):
        number = int(row[0].removeprefix("图"))
        if number:
            np.testing.assert_array_equal(features_as_oscar(row), matrix_of(number).astype(np.float16))
        assert json.loads(label[1]) == json.loads(label_row(number, layout)[1])
    assert [row[0] for row in read_as_oscar(tmp_path / "out.tsv")] == ids


@pytest.mark.parametrize("layout", ["caption", "retrieval"])
def test_byte_order_mark_and_crlf_change_nothing(tmp_path, layout):
    features, labels = write_files(tmp_path, range(5), layout)
    import_tsv(features, tmp_path / "expected", label_tsv=labels)
    for path in (features, labels):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    import_tsv(features, tmp_path / "store", label_tsv=labels)
    store, expected = (RegionFeatureStore.open(tmp_path / name) for name in ("store", "expected"))
    assert list(store) == list(expected)
    for image_id in expected:
        for field, values in expected[image_id].items():
            np.testing.assert_array_equal(store[image_id][field], values)


GOOD = feature_row(3, "caption")[1]
BAD_ROWS = {
    "base64": (("图3", GOOD.replace('"features": "', '"features": "*')), "base64|padding"),
    "cut": (("图3", GOOD[:-30]), "no string 'features'"),
    "length": (("图3", GOOD.replace("=", "").replace('"}', 'AAAA"}')), "base64|padding|bytes of features"),
    "num_boxes": (("图3", GOOD.replace('"num_boxes": 4', '"num_boxes": 3')), "224 bytes of features, 3 boxes of 14"),
    "no num_boxes": (("图3", GOOD.replace("num_boxes", "boxes")), "no number 'num_boxes'"),
    "duplicate": (feature_row(1, "caption"), "this id appears twice"),
    "no columns": (("图3",), "1 columns instead of 2"),
    "utf-8": (b"\xff\xfe\t" + GOOD.encode(), "utf-8"),
    "label of another image": (("图33", GOOD), "labels.tsv row 4 is of image '图3'"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows_are_named_or_skipped_and_counted(tmp_path, kind):
    columns, message = BAD_ROWS[kind]
    features, labels = write_files(tmp_path, range(6), "caption")
    set_row(features, 4, columns)
    with pytest.raises(ValueError, match=rf"features.tsv row 4 \(image '.*'\): .*({message})"):
        import_tsv(features, tmp_path / "store", label_tsv=labels)
    for _ in range(2):  # the second time everything else is there already
        counts = import_tsv(features, tmp_path / "store", label_tsv=labels, skip_bad=True)
        records = [json.loads(line) for line in (tmp_path / "store" / "errors.jsonl").read_text("utf-8").splitlines()]
        assert [(record["file"], record["row"]) for record in records] == [(str(features), 4)]
        assert counts["skipped"] == 1
    assert counts["already there"] == 5
    assert set(RegionFeatureStore.open(tmp_path / "store")) == {f"图{number}" for number in (0, 1, 2, 4, 5)}


def test_not_a_number_is_bad(tmp_path):
    matrix = np.zeros((2, DIM), "<f4")
    matrix[1, 3] = np.nan
    path = write_tsv(tmp_path / "f.tsv", [feature_row(1, "retrieval"), ("x", 2, base64.b64encode(matrix).decode())])
    with pytest.raises(ValueError, match=r"f.tsv row 2 \(image 'x'\): region_features .* hold NaN"):
        import_tsv(path, tmp_path / "store")


@pytest.mark.parametrize(("rows", "message"), [(5, "labels.tsv ends before row 6"), (7, "has 7 rows, the features 6")])
def test_label_file_of_another_length_is_never_skipped(tmp_path, rows, message):
    features, _ = write_files(tmp_path, range(6), "caption")
    labels = write_tsv(tmp_path / "labels.tsv", [label_row(number, "caption") for number in range(rows)])
    with pytest.raises(ValueError, match=message):
        import_tsv(features, tmp_path / "store", label_tsv=labels, skip_bad=True)


def test_objects_that_do_not_fit_the_regions(tmp_path):
    features, labels = write_files(tmp_path, range(6), "retrieval")
    objects = json.loads(label_row(3, "retrieval")[1])
    for change, message in [
        ({"objects": objects["objects"][1:]}, r"3 objects in .*labels.tsv, 4 boxes \(labels_are='tags'\?\)"),
        ({"objects": [{"class": "马"}] * 4}, "an object without the numbers it needs .*conf"),
        ({"objects": 5}, "neither a list of objects"),
    ]:
        set_row(labels, 3, ("图3", json.dumps(objects | change)))
        with pytest.raises(ValueError, match=rf"features.tsv row 4 \(image '图3'\): .*{message}"):
            import_tsv(features, tmp_path / "store", label_tsv=labels)
    set_row(labels, 3, ("图3", json.dumps(objects["objects"])))
    with pytest.raises(ValueError, match="no image_h and image_w; Oscar takes 600 x 800"):
        import_tsv(features, tmp_path / "store", label_tsv=labels)
    import_tsv(features, tmp_path / "store", label_tsv=labels, assumed_size=(600, 800))
    assert RegionFeatureStore.open(tmp_path / "store")["图3"]["original_size"].tolist() == [600, 800]
    with pytest.raises(ValueError, match=r"classes \['dog'\] are not among the labels"):
        import_tsv(features, tmp_path / "other", label_tsv=labels, assumed_size=(600, 800), labels=["", *WORDS[:3]])


ENGLISH = ["airplane", "Dog", "window,windows", "aircraft", "xyzzy", "马"]


def english_files(folder):
    found = [{"class": name, "rect": [0, 0, 9, 9], "conf": 0.5} for name in ENGLISH]
    rows = [(f"p{number}", json.dumps([one])) for number, one in enumerate(found)]
    one = base64.b64encode(np.ones((1, DIM), "<f4").tobytes()).decode()
    features = [(f"p{i}", json.dumps({"num_boxes": 1, "features": one})) for i in range(len(ENGLISH))]
    return write_tsv(folder / "english.tsv", features), write_tsv(folder / "english_labels.tsv", rows)


def words_of(store):
    return [store.labels[store[f"p{i}"]["class_ids"][0]] for i in range(len(ENGLISH))]


def test_english_names_become_chinese(tmp_path, capsys):
    """By our tables, or by the dictionary of a training, which goes first; of a store that was begun in English not."""
    features, labels = map(str, english_files(tmp_path))
    (tmp_path / "chinese_label.json").write_text('{"dog": "小狗", "xyzzy": "某物"}', "utf-8")
    ours, given = ["飞机", "狗", "窗户", "飞机", "xyzzy", "马"], ["飞机", "小狗", "窗户", "飞机", "某物", "马"]
    flags = {"ours": [], "given": ["--labels", tmp_path / "chinese_label.json"], "english": ["--language", "en"]}
    for (name, more), expected in zip(flags.items(), (ours, given, ENGLISH), strict=True):
        command = ["import-tsv", features, labels, "--output", str(tmp_path / name), *map(str, more)]
        assert main(command) == 0
        store = RegionFeatureStore.open(tmp_path / name)
        assert words_of(store) == expected
        assert len(store.labels) == len(set(store.labels))
        told = capsys.readouterr().out
        assert ("5 English class names" in told) == (name != "english")
        assert ("1 stay English, the first: xyzzy" in told) == (name == "ours")
        assert main(command) == 0  # once more: all is there
        assert "0 rows imported, 6 rows already there" in capsys.readouterr().out
    row = json.dumps([{"class": "dog", "rect": [0, 0, 9, 9], "conf": 0.5}] * 4)
    more = write_tsv(tmp_path / "g.tsv", [("r", GOOD)]), write_tsv(tmp_path / "g_labels.tsv", [("r", row)])
    import_tsv(more[0], tmp_path / "new", more[1], labels=["", "dog"])
    store = RegionFeatureStore.open(tmp_path / "new")
    assert store.labels[store["r"]["class_ids"][0]] == "dog"


def test_the_command_says_what_is_wrong_in_a_line(tmp_path, capsys):
    features, labels = write_files(tmp_path, range(4), "caption")
    (tmp_path / "list.json").write_text("[]")
    store = ["--output", str(tmp_path / "store")]
    wrong = {
        "missing.tsv: No such file or directory": ["missing.tsv", *store],
        "no table of region features": [str(labels), *store],
        "list.json must hold one JSON object": [
            str(features),
            str(labels),
            *store,
            "--labels",
            str(tmp_path / "list.json"),
        ],
        "--language en takes none": [str(features), *store, "--labels", str(features), "--language", "en"],
        "features.tsv row 2 (image '图1')": [str(features), str(labels), *store],
    }
    set_row(features, 2, ("图1", "{}"))
    for message, command in wrong.items():
        assert main(["import-tsv", *command]) == 2
        [line] = [
            line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line and "%|" not in line
        ]
        assert message in line
    assert main(["import-tsv", str(features), str(labels), *store, "--skip-bad"]) == 2  # some were bad
    assert len(RegionFeatureStore.open(tmp_path / "store")) == 3


def test_the_pages_script_runs_as_it_stands(tmp_path):
    """By standard input, without `if __name__ == "__main__"`: nothing of it runs twice, nobody looks for its file."""
    page = (REPOSITORY / "docs" / "feature_row.md").read_text("utf-8")
    [script] = [block for block in re.findall(r"```python notest\n(.*?)```", page, re.DOTALL) if "num_proc=4" in block]
    for name, path in zip(("feature", "label"), write_files(tmp_path, range(9), "caption"), strict=True):
        path.rename(tmp_path / f"train.{name}.tsv")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("rows imported") == 1
    assert sorted(path.name for path in (tmp_path / "stores" / "train").glob("*-*")) == [
        f"0000{part}-000000.safetensors" for part in range(4)
    ]
    assert len(list(read_as_oscar(tmp_path / "out" / "train.feature.tsv"))) == 9


def test_an_import_that_is_asked_to_end_keeps_its_rows(tmp_path, monkeypatch, capsys):
    features, labels = write_files(tmp_path, range(8), "caption")
    decode = oscar_tsv.decode_features

    def asked(row, width, calls=[]):  # noqa: B006
        calls.append(row)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # launchers ask twice
        return decode(row, width)

    monkeypatch.setattr(oscar_tsv, "decode_features", asked)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        import_tsv(features, tmp_path / "store", label_tsv=labels)
    assert ended.value.code == 128 + signal.SIGTERM
    assert f"stopped; {tmp_path / 'store'} keeps 3 rows: start again to resume" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert import_tsv(features, tmp_path / "store", label_tsv=labels)["already there"] == 3


def test_killed_import_goes_on_to_the_same_store(tmp_path):
    features, labels = write_files(tmp_path, range(40), "caption")
    set_row(features, 5, ("图4", "{}"))
    whole = {"label_tsv": labels, "images_per_shard": 4, "skip_bad": True}
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from modeling_mengzi_oscar.features import store_folder as region_store
from modeling_mengzi_oscar.features.oscar_tsv import import_tsv
flush = region_store.RegionFeatureWriter.flush
def until_the_third(self):
    if self._shard_number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(self)
region_store.RegionFeatureWriter.flush = until_the_third
import_tsv({str(features)!r}, {str(tmp_path / "killed")!r}, {str(labels)!r}, images_per_shard=4, skip_bad=True)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert len(RegionFeatureStore.open(tmp_path / "killed")) == 12
    counts = import_tsv(features, tmp_path / "killed", **whole)
    assert counts == {"imported": 27, "already there": 12, "skipped": 1}
    import_tsv(features, tmp_path / "whole", **whole)
    stores = [RegionFeatureStore.open(tmp_path / name) for name in ("killed", "whole")]
    assert list(stores[0]) == list(stores[1])
    same(*stores)
    assert len({(tmp_path / name / "errors.jsonl").read_text("utf-8") for name in ("killed", "whole")}) == 1


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Twelve shards' worth of rows under an address space that holds few of them."""
    matrix = np.random.default_rng(0).normal(size=(50, 2054)).astype("<f4")
    encoded = base64.b64encode(matrix).decode()
    features = write_tsv(tmp_path / "f.tsv", [(str(number), 50, encoded) for number in range(240)])
    code = f"""
import resource, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from modeling_mengzi_oscar.features.oscar_tsv import import_tsv
def private():
    return sum(int(l.split()[1]) for l in open("/proc/self/smaps_rollup") if l.startswith("Private_Dirty:")) // 1024
import modeling_mengzi_oscar.features.store as module
before, most = private(), 0
flush = module.RegionFeatureWriter.flush
def watched(self):
    global most
    flush(self)
    most = max(most, private())
module.RegionFeatureWriter.flush = watched
import_tsv({str(features)!r}, {str(tmp_path / "store")!r}, images_per_shard=20)
print(most - before)
"""
    if not os.path.exists("/proc/self/smaps_rollup"):
        pytest.skip("Linux tells how much memory a process owns")
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
    shard = 20 * matrix.nbytes // 2 / 2**20  # 4 MB, of 47 MB in all
    assert int(grown) < 6 * shard
    shutil.rmtree(tmp_path / "store")


def test_export_refuses_what_would_break_a_reader(tmp_path):
    features, labels = write_files(tmp_path, range(3), "caption")
    import_tsv(features, tmp_path / "plain")
    store = RegionFeatureStore.open(tmp_path / "plain")
    with pytest.raises(ValueError, match="keeps no texts of its class ids"):
        export_tsv(store, tmp_path / "out.tsv", label_tsv=tmp_path / "out_labels.tsv")
    with pytest.raises(KeyError, match="no image 'x'"):
        export_tsv(store, tmp_path / "out.tsv", image_ids=["x"])
    import_tsv(features, tmp_path / "tagged", label_tsv=labels, labels_are="tags")
    with pytest.raises(ValueError, match="needs boxes or original_size"):
        export_tsv(
            RegionFeatureStore(tmp_path / "tagged"), tmp_path / "out.tsv", "retrieval", label_tsv=tmp_path / "l.tsv"
        )
    with RegionFeatureStore.writer(tmp_path / "ids") as writer:
        writer.add("a\tb", {"region_features": matrix_of(1)})
    with pytest.raises(ValueError, match="would break a row"):
        export_tsv(RegionFeatureStore(tmp_path / "ids"), tmp_path / "out.tsv")
    assert not list(tmp_path.glob("out*"))
