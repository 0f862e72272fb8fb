"""The command line as a user meets it: results on standard output, one line per mistake, exit status 0 or 2."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.cli import main


@pytest.fixture
def photos(tmp_path):
    paths = []
    for index, size in enumerate([(40, 30), (1, 1), (30, 60)]):
        path = tmp_path / f"照片 {index}.png"
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths


def test_whoever_stops_reading_sees_no_traceback(tiny_checkpoint, photos):
    command = [sys.executable, "-m", "modeling_mengzi_oscar", "caption", *photos, "--model", str(tiny_checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_caption_lines_json_and_picture_tell_the_same(tiny_checkpoint, photos, tmp_path, capsys):
    picture = tmp_path / "captions.png"
    model = ["--model", str(tiny_checkpoint)]
    assert main(["caption", *photos, *model, "--picture", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["caption", *photos, *model, "--details"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.split("\t")[:2] for line in lines] == [[record["photo"], record["caption"]] for record in records]
    scores = [float(line.split("\t")[2]) for line in lines]
    assert scores == pytest.approx([record["score"] for record in records], abs=6e-4)
    assert [record["photo"] for record in records] == photos
    expected = MengziOscarPipeline.from_pretrained(tiny_checkpoint).caption(photos)
    for record, result in zip(records, expected, strict=True):
        assert record["caption"] == result["caption"]
        assert record["score"] == pytest.approx(result["score"], abs=6e-5)
    best = records[0]["captions"][0]
    assert np.array(best["region_weights"]).shape == (len(best["tokens"]), len(records[0]["regions"]))
    assert len(records[0]["captions"]) == 3
    assert Image.open(picture).width > 800


def test_score_is_the_one_of_the_search(tiny_checkpoint, photos):
    """exp of the mean log-probability, computed by reading the caption back, equals the score of beam search."""
    pipeline = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    result = pipeline.caption(photos[0], num_beams=3)
    image = pipeline.image_processor([Image.open(photos[0])], return_tensors="pt")
    regions = pipeline.region_model(**image)
    encoded = pipeline.processor(tags=pipeline.region_model.tags(regions), regions=regions)
    options = {"num_beams": 3, "num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True}
    output = pipeline.captioner.generate(**encoded, **options)
    for caption, sequence, score in zip(result["captions"], output.sequences, output.sequences_scores, strict=True):
        if 3 in sequence.tolist():  # [SEP]: not cut by the length limit
            assert caption["score"] == pytest.approx(score.exp().item(), rel=1e-4)


def test_bad_photos_are_named_and_the_others_captioned(tiny_checkpoint, photos, tmp_path, capsys):
    text = tmp_path / "text.jpg"
    text.write_text("not a photo")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    bad = [str(text), str(empty), str(tmp_path / "missing.jpg")]
    assert main(["caption", bad[0], photos[0], bad[1], bad[2], "--model", str(tiny_checkpoint)]) == 2
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1
    assert output.out.startswith(photos[0])
    errors = [line for line in output.err.splitlines() if line]
    assert [error.split(": ")[0] for error in errors] == bad


def copy_without(folder, target, name):
    shutil.copytree(folder, target)
    (target / name).unlink()
    return target


def test_bad_checkpoints_are_named_in_one_line(tiny_checkpoint, photos, tmp_path, capsys):
    no_weights = copy_without(tiny_checkpoint, tmp_path / "no-weights", "model.safetensors")
    no_config = copy_without(tiny_checkpoint, tmp_path / "no-config", "config.json")
    no_regions = copy_without(tiny_checkpoint, tmp_path / "no-regions", "region_model/model.safetensors")
    other_size = shutil.copytree(tiny_checkpoint, tmp_path / "other-size")
    weights = load_file(other_size / "model.safetensors")
    weights["bert.img_embedding.weight"] = torch.zeros(32, 50)
    save_file(weights, other_size / "model.safetensors", {"format": "pt"})
    missing_key = shutil.copytree(tiny_checkpoint, tmp_path / "missing-key")
    weights = load_file(missing_key / "model.safetensors")
    weights.pop("bert.pooler.dense.bias")
    save_file(weights, missing_key / "model.safetensors", {"format": "pt"})
    broken = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"broken")
    for folder, reason in {
        no_weights: "no file named model.safetensors",
        no_config: "config.json",
        no_regions: "no file named model.safetensors",
        other_size: "1 mismatched keys, e.g. ",
        missing_key: "1 missing keys, e.g. bert.pooler.dense.bias",
        broken: "model.safetensors: damaged",
        tmp_path / "nowhere": "nowhere",
    }.items():
        assert main(["caption", photos[0], "--model", str(folder)]) == 2
        output = capsys.readouterr()
        lines = [line for line in output.err.splitlines() if line.strip()]
        assert output.out == ""
        assert len(lines) == 1, lines
        assert str(folder) in lines[0]
        assert reason in lines[0]


def test_a_head_that_is_not_there_is_named(tiny_checkpoint, photos, capsys):
    for command in ("ask", "match"):
        assert main([command, photos[0], "有几个人？", "--model", str(tiny_checkpoint)]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert lines == [
            f"{tiny_checkpoint}: has no {command}/ head: this checkpoint was not trained to {command}; "
            f"name one that was, or put one into it: mengzi-oscar convert HEAD {tiny_checkpoint}/{command}"
        ]


@pytest.mark.parametrize("arguments", [[], ["caption", "x.jpg", "--num-beams", "0"], ["draw"]])
def test_wrong_arguments(arguments):
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    assert exit_status.value.code == 2


def test_no_photo_and_no_folder_for_the_picture(photos, capsys):
    assert main(["caption"]) == 2
    assert main(["caption", photos[0], "--picture", "no/such/folder/x.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_the_demo(tmp_path, capsys):
    """What `make demo` runs, with the bundled checkpoint: a caption for each of six photos, and their picture."""
    assert main(["caption", "--samples", "--picture", str(tmp_path / "demo.png")]) == 0
    output = capsys.readouterr()
    rows = [line.split("\t") for line in output.out.splitlines()]
    assert [row[0] for row in rows] == ["cat", "coffee", "astronaut", "rocket", "palace", "flower"]
    for _, caption, score, *mark in rows:
        assert mark in ([], ["可能不准"])
        assert re.fullmatch("[\u4e00-\u9fff，。、]{2,18}", caption), caption
        assert 0 < float(score) < 1
    assert "learnt from 10,000 photos" in output.err  # and says so
    assert Image.open(tmp_path / "demo.png").height > 1000


def test_help_is_quick_and_the_module_is_the_command():
    command = [sys.executable, "-X", "importtime", "-m", "modeling_mengzi_oscar", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "examples:" in result.stdout
    assert "torch" not in result.stderr  # nothing heavy is imported for a help text


def test_extract_writes_a_store(tiny_checkpoint, photos, tmp_path, capsys):
    from modeling_mengzi_oscar import RegionFeatureStore

    (tmp_path / "broken.jpg").write_bytes(b"x")
    store_path = tmp_path / "store"
    command = ["extract", str(tmp_path), "--output", str(store_path), "--model", str(tiny_checkpoint)]
    assert main(command) == 2
    [error] = (store_path / "errors.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(error)["image_id"] == "broken"
    store = RegionFeatureStore.open(store_path)
    assert sorted(store) == ["照片 0", "照片 1", "照片 2"]
    pipeline = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    inputs = pipeline.image_processor([Image.open(photos[0])], return_tensors="pt")
    with torch.inference_mode():
        expected = pipeline.region_model(**inputs)
    row = store["照片 0"]
    np.testing.assert_allclose(row["region_features"], expected.region_features[0].numpy(), atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(row["boxes"], expected.boxes[0].numpy())
    assert row["original_size"].tolist() == [40, 30]
    (tmp_path / "broken.jpg").unlink()
    assert main(command) == 0  # again: nothing left to do
