"""How often captions are right at which score: judged by people's sentences, fitted, and written into a checkpoint."""

import json
import math
import shutil

import calibrate
import numpy as np
import pytest
from common.calibration import Judged, calibration_error, fit, held_out_confidences, roc_area, table
from common.supported_words import is_right, unsupported_words

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.hub import check_repo

DOGS = ["草地上的两只狗。", "两只狗狗在草坪上追逐。", "一只黑狗和一只白狗。", "小狗在跑。", "奔跑的狗。"]
BOY = ["在玩滑板的小男孩。", "玩滑板的小孩。", "一个人踩着滑板腾空。", "滑板上的小孩。", "滑滑板的小孩。"]


@pytest.mark.parametrize(
    ("caption", "references", "unsupported"),
    [
        ("两只狗在草地上奔跑。", DOGS, []),
        ("两条小狗在追。", DOGS, []),  # other words for the same
        ("一个男人和一只狗。", DOGS, ["人", "男"]),
        ("一只猫在草地上。", DOGS, ["猫"]),
        ("两只狗在雪地上奔跑。", DOGS, ["雪地"]),
        ("一只狗坐在草地上。", DOGS, ["坐"]),  # they run
        ("一个男孩在玩滑板。", BOY, []),
        ("一个男人在玩滑板。", BOY, []),  # 男 of a 男孩
        ("一个女孩在玩滑板。", BOY, ["女"]),
        ("一群人在玩滑板。", BOY, ["群"]),
        ("一个男孩在玩自行车。", BOY, ["自行车"]),
        ("穿着红色衣服的小男孩在滑板上跳跃。", BOY, []),  # clothes are not looked at
        ("一个人拿着帐篷。", BOY, ["帐篷"]),  # a word that the table does not have
    ],
)
def test_what_sentences_bear_out(caption, references, unsupported):
    assert unsupported_words(caption, references) == unsupported
    assert is_right(caption, references) is (not unsupported)


def test_an_empty_caption_is_not_right():
    assert not is_right("。", DOGS)


@pytest.fixture(scope="module")
def captions():
    """3,000 whose chance to be right is a logistic function of score and length."""
    draw = np.random.default_rng(1)
    rows = []
    for number in range(3000):
        score, tokens = float(draw.uniform(0.2, 0.9)), int(draw.integers(4, 16))
        chance = 1 / (1 + math.exp(-(3 + 4 * math.log(score) - 0.1 * tokens)))
        rows.append(Judged("ab"[number % 2], "[CLS]", score, tokens, bool(draw.uniform() < chance)))
    return rows


def test_the_fit_finds_what_the_captions_were_drawn_with(captions):
    intercept, coefficients = fit(captions)
    assert (intercept, *coefficients) == pytest.approx((3, 4, -0.1), abs=0.5)
    found, right = held_out_confidences(captions), np.array([one.right for one in captions])
    assert calibration_error(found, right) < 0.03
    assert 0.7 < roc_area(found, right) < 0.9
    said = table(captions, found)
    assert "| confidence | all: captions | right | a: captions | right | b: captions | right |" in said
    counts = [int(row.split("|")[2].replace(",", "")) for row in said.splitlines()[2:8]]
    assert sum(counts) == 3000


def test_area_under_the_curve_is_the_share_of_pairs_in_order():
    found, right = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert roc_area(found, right) == (3 + 0.5) / 4
    assert math.isnan(roc_area(found, np.ones(4, bool)))


def test_captions_that_are_all_right_teach_nothing():
    with pytest.raises(ValueError, match="all 3 captions are right"):
        fit([Judged("a", "[CLS]", 0.5, 5, True)] * 3)


def test_a_checkpoint_learns_its_confidence(tiny_checkpoint, data_dir, captions, tmp_path, capsys):
    folder, judged = shutil.copytree(tiny_checkpoint, tmp_path / "tiny"), tmp_path / "judged.jsonl"
    rows = [{"caption": "狗" * one.tokens, "score": one.score, "right": one.right} for one in captions[:300]]
    judged.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model_name_or_path", str(folder), "--judged", str(judged), "--dtype", "float32"]
    with pytest.raises(SystemExit, match="knows no confidence"):
        calibrate.main([*options, "--report_only"])
    photos = ["--dataset", "flickr8k_cn", "--data_dir", str(data_dir), "--test_split", "train"]
    calibrate.main([*options, *photos, "--output", str(tmp_path / "out" / "rows.jsonl")])
    said = capsys.readouterr().out
    assert "judged: captions" in said
    assert "flickr8k_cn: captions" in said
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 304
    assert rows[-1].keys() == {"source", "style", "image_id", "caption", "score", "right"}
    assert check_repo(folder)
    pipeline = MengziOscarPipeline.from_pretrained(folder, dtype="float32")
    [entry] = pipeline.calibrations.values()
    assert (entry["num_beams"], entry["captions"]) == (3, 304)
    row = pipeline.caption(data_dir / "images" / "photo0.jpg")
    assert 0 < row["confidence"] < 1
    calibrate.main([*options, "--report_only"])
    assert "all: 300 captions" in capsys.readouterr().out


def test_what_cannot_be_measured_is_one_line(tiny_checkpoint, tmp_path, capsys):
    folder, judged = shutil.copytree(tiny_checkpoint, tmp_path / "tiny"), tmp_path / "judged.jsonl"
    before = (folder / "processor_config.json").read_bytes()
    for line, wanted in (
        ('{"caption": "狗", "score": 0.5, "right": true}', "no style has 100 captions"),
        ('{"caption": "狗", "score": 0.5, "right": 1}', "line 1: right must be true or false"),
        ('{"caption": "狗", "right": true}', "line 1 has no caption, score and right"),
        ('{"caption": "狗", "score": 0.5, "right": true, "style": "long"}', "style 'long'"),
    ):
        judged.write_text(line + "\n", encoding="utf-8")
        with pytest.raises(SystemExit) as refused:
            calibrate.main(["--model_name_or_path", str(folder), "--judged", str(judged)])
        assert refused.value.code == 2
        assert wanted in capsys.readouterr().err
    assert (folder / "processor_config.json").read_bytes() == before
