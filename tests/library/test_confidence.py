"""Confidence of captions: from the score by the checkpoint's calibration, through every door, for its weights only."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
import transformers
from conftest import tiny_captioner
from PIL import Image

from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarPipeline, MengziOscarProcessor
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.confidence import checksum_of_weights
from modeling_mengzi_oscar.convert.oscar import convert
from modeling_mengzi_oscar.hub import assemble, check_repo, save_checkpoint
from modeling_mengzi_oscar.loading import load_checked, load_processor

SURE = ("confidence", "probably_wrong")


@pytest.fixture(scope="module")
def calibrated(tiny_checkpoint, photos, tmp_path_factory):
    """The tiny checkpoint, which knows that one half of its captions is probably wrong."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("calibrated") / "tiny")
    pipeline = MengziOscarPipeline.from_pretrained(folder, dtype="float32")
    logits = sorted(
        2 * math.log(one["score"]) - 0.1 * len(one["captions"][0]["tokens"]) for one in pipeline.caption(photos)
    )
    entry = {"intercept": -(logits[1] + logits[2]) / 2, "log_score": 2.0, "tokens": -0.1}
    weights = checksum_of_weights(load_checked(MengziOscarForImageCaptioning, folder))
    say(folder, {"[CLS]": entry | {"num_beams": 3, "captions": 500, "weights": weights}})
    return folder


def expected(folder, row):
    entry, tokens = load_processor(folder).confidence["[CLS]"], len(row["tokens"])
    return 1 / (1 + math.exp(-(entry["intercept"] + 2 * math.log(row["score"]) - 0.1 * tokens)))


def say(folder, confidence):
    path = folder / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"confidence": confidence}))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(3)
    for number in range(4):
        pixels = draw.integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def results(calibrated, photos):
    return MengziOscarPipeline.from_pretrained(calibrated, dtype="float32").caption(photos)


def test_confidence_is_the_logistic_function_of_score_and_length(calibrated, results):
    rows = [row for result in results for row in result["captions"]]
    assert len(rows) == 12
    for row in rows:
        assert row["confidence"] == pytest.approx(expected(calibrated, row), abs=1e-6)
        assert row["probably_wrong"] is (row["confidence"] < 0.5)
    for result in results:
        assert [result[name] for name in SURE] == [result["captions"][0][name] for name in SURE]


def test_without_calibration_nothing_is_said(tiny_checkpoint, photos, capsys):
    result = MengziOscarPipeline.from_pretrained(tiny_checkpoint).caption(photos[0])
    assert not {*SURE} & {*result, *result["captions"][0]}
    assert main(["caption", photos[0], "--model", str(tiny_checkpoint), "--json"]) == 0
    assert not {*SURE} & json.loads(capsys.readouterr().out).keys()


def test_another_search_has_none(calibrated, photos):
    """A sampled caption, or one of other beams, is right more or less often at the same score."""
    pipeline = MengziOscarPipeline.from_pretrained(calibrated)
    assert "confidence" in pipeline.caption(photos[0], num_beams=3, max_length=9)
    for settings in ({"num_beams": 2}, {"num_beams": 1}, {"num_beams": 3, "do_sample": True}):
        assert "confidence" not in pipeline.caption(photos[0], **settings), settings


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_precisions_keep_it(calibrated, photos, dtype):
    [row, *_] = MengziOscarPipeline.from_pretrained(calibrated, dtype=dtype).caption(photos[0])["captions"]
    assert row["confidence"] == pytest.approx(expected(calibrated, row), abs=1e-6)


def test_command_prints_the_mark(calibrated, photos, results, tmp_path, capsys):
    marked = [result["probably_wrong"] for result in results]
    assert {*marked} == {True, False}
    options = ["--model", str(calibrated), "--dtype", "float32"]
    assert main(["caption", *photos, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("\t可能不准") for line in lines] == marked
    assert main(["caption", *photos, *options, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["probably_wrong"] for row in rows] == marked
    assert all({*SURE} <= row["captions"][2].keys() for row in rows)
    for name in ("rows.csv", "rows.jsonl"):
        assert main(["caption", *photos[:2], *options, "--output", str(tmp_path / name)]) == 0
        assert main(["caption", *photos, *options, "--output", str(tmp_path / name)]) == 0  # goes on
    table = list(csv.DictReader((tmp_path / "rows.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [row["probably_wrong"] == "可能不准" for row in table] == marked
    assert [float(row["confidence"]) for row in table] == [round(result["confidence"], 4) for result in results]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["probably_wrong"] for row in rows] == marked


def test_rows_of_another_calibration_are_not_mixed(calibrated, photos, tmp_path, capsys):
    folder, output = shutil.copytree(calibrated, tmp_path / "tiny"), str(tmp_path / "rows.jsonl")
    assert main(["caption", photos[0], "--model", str(folder), "--output", output]) == 0
    say(folder, {"[CLS]": load_processor(folder).confidence["[CLS]"] | {"intercept": 1.0}})
    assert main(["caption", *photos, "--model", str(folder), "--output", output]) == 2
    assert "name another file" in capsys.readouterr().err


def test_pictures_have_the_mark(results, photos):
    from modeling_mengzi_oscar.demo.pictures import draw_card

    result, photo = results[0], Image.open(photos[0])
    plain = draw_card(photo, result | {"probably_wrong": False}, "photo.png")
    marked = draw_card(photo, result | {"probably_wrong": True}, "photo.png")
    assert plain.size == marked.size
    assert np.abs(np.asarray(plain, int) - np.asarray(marked, int)).sum(axis=(1, 2)).nonzero()[0].min() > photo.height


def test_it_survives_saving_converting_and_assembling(calibrated, photos, results, tmp_path, recwarn):
    MengziOscarPipeline.from_pretrained(calibrated, dtype="bfloat16").save_pretrained(tmp_path / "saved")
    assemble(tmp_path / "saved")
    convert(calibrated, tmp_path / "converted", region_model=calibrated / "region_model")
    for name in ("saved", "converted"):
        assert check_repo(tmp_path / name)
        [again] = MengziOscarPipeline.from_pretrained(tmp_path / name, dtype="float32").caption(photos[:1])
        assert again["confidence"] == pytest.approx(results[0]["confidence"], abs=1e-3)
    assert not [warning for warning in recwarn if "confidence" in str(warning.message)]


def test_transformers_pipeline_tells_it(calibrated, photos, results):
    pipe = transformers.pipeline("mengzi-oscar-captioning", model=str(calibrated), trust_remote_code=True)
    assert [row["probably_wrong"] for row in pipe(photos)] == [row["probably_wrong"] for row in results]


def test_other_weights_have_none(calibrated, photos, tmp_path):
    """A fine-tuned captioner does not keep what was measured of its start, however it is saved."""
    captioner, processor = load_checked(MengziOscarForImageCaptioning, calibrated), load_processor(calibrated)
    with torch.no_grad():
        captioner.base_model.encoder.layer[0].output.dense.weight.mul_(1.1)
    save_checkpoint(tmp_path / "best", captioner, processor)
    assert processor.confidence is not None
    assert MengziOscarProcessor.from_pretrained(tmp_path / "best").confidence is None
    folder = shutil.copytree(calibrated, tmp_path / "tuned")
    captioner.save_pretrained(folder)  # as somebody else's training does it
    with pytest.warns(UserWarning, match=r"tuned: its confidence was measured with other weights"):
        pipeline = MengziOscarPipeline.from_pretrained(folder)
    assert "confidence" not in pipeline.caption(photos[0])
    pipeline = MengziOscarPipeline.from_pretrained(calibrated)
    with pytest.warns(UserWarning, match="other weights"):
        pipeline.captioner = tiny_captioner(img_feature_dim=262)
    assert pipeline.calibrations == {}


@pytest.mark.parametrize("changed", [{"intercept": "1"}, {"log_score": None}, {"weights": ""}, {"more": 1}])
def test_a_file_that_says_something_else_is_refused(calibrated, tmp_path, changed, capsys):
    folder = shutil.copytree(calibrated, tmp_path / "tiny")
    say(folder, {"[CLS]": load_processor(calibrated).confidence["[CLS]"] | changed})
    assert main(["caption", "--samples", "--model", str(folder)]) == 2
    assert "confidence is" in capsys.readouterr().err
