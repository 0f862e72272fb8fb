"""A result depends on its own input: not on neighbours in a batch, on calls before, or on how a setting was said."""

import numpy as np
import pytest
import torch
import transformers
from test_look import PHOTOS, WIDTH, close, detecting, same  # noqa: F401
from transformers import GenerationConfig

from modeling_mengzi_oscar import MengziOscarPipeline


def test_photos_of_other_sizes_change_nothing_that_is_found(detecting):  # noqa: F811
    """Bit for bit: each of these has its pass of the detector to itself, whoever stands beside it in the list."""
    for photos in (PHOTOS[:2], [PHOTOS[1], PHOTOS[3]], [PHOTOS[3], PHOTOS[0]]):
        together, alone = detecting.caption(photos), [detecting.caption(photo) for photo in photos]
        assert [one["regions"] for one in together] == [one["regions"] for one in alone]
        assert [one["tags"] for one in together] == [one["tags"] for one in alone]
        close(together, alone)


def test_neighbours_of_one_size_change_no_more_than_rounding(detecting):  # noqa: F811
    alone = [detecting.caption(photo, num_beams=2) for photo in PHOTOS]
    for batch_size in (2, 3, 32):
        together = detecting.caption(PHOTOS, num_beams=2, batch_size=batch_size)
        close(together, alone)
        for one, other in zip(together, alone, strict=True):
            assert [region["label"] for region in one["regions"]] == [region["label"] for region in other["regions"]]
            weights = np.array(one["captions"][0]["region_weights"])
            assert weights.shape[1] == len(one["regions"]) <= 30  # its own regions, not its neighbour's padding
    assert len({len(one["regions"]) for one in alone}) > 1 or len(alone[0]["regions"]) == 30


def test_order_and_repetition(detecting):  # noqa: F811
    [one, other, again] = detecting.caption([PHOTOS[0], PHOTOS[1], PHOTOS[0]], num_beams=2)
    close([one, other], [again, detecting.caption(PHOTOS[1], num_beams=2)])
    close(detecting.caption([PHOTOS[1], PHOTOS[0]], num_beams=2), [other, one])
    matches = detecting.match(PHOTOS[0], ["一只狗", "两个人", "一只狗"])
    assert matches[0] == matches[2]
    assert [row["probability"] for row in detecting.match(PHOTOS[0], ["一只狗", "两个人"])] == pytest.approx(
        [row["probability"] for row in matches[:2]], abs=1e-6
    )
    asked = detecting.ask(PHOTOS, ["有几个人？", "红色？"])
    same(asked, [[detecting.ask(photo, question) for question in ("有几个人？", "红色？")] for photo in PHOTOS])


def test_no_region_at_all(detecting):  # noqa: F811
    """A photo of nothing has a caption, answers and matches, alone and beside photos of something."""
    bias = detecting.region_model.roi_heads["box"].predictor["cls_score"].bias
    something = detecting.look(PHOTOS[0])
    with torch.no_grad():
        before = bias[0].item()
        bias[0] = 1000
    try:
        nothing = detecting.look(PHOTOS[0])
        assert nothing.region_features.shape == (0, WIDTH)
        result = detecting.caption(PHOTOS[0], num_beams=2)
        assert result["regions"] == result["tags"] == []
        assert all(one["region_weights"] == [[]] * len(one["tokens"]) for one in result["captions"])
        assert 0 < result["score"] < 1
        assert 0 < detecting.match(PHOTOS[0], "一只狗")[0]["probability"] < 1
        assert len(detecting.ask(PHOTOS[0], "有几个人？")) == 5
        beside = detecting.caption([nothing, something, nothing], num_beams=2)
        close(beside, [result, detecting.caption(something, num_beams=2), result])
        assert detecting.look(detecting.look([PHOTOS[0]]))[0].region_features.shape == (0, WIDTH)
    finally:
        with torch.no_grad():
            bias[0] = before


def test_a_length_is_a_length_however_it_is_said(tiny_checkpoint):
    pipeline = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    captioner = pipeline.captioner
    captioner.config.tag_position_offset = 4  # so that the length says where tags stand
    photo = PHOTOS[0]
    for style in (None,):
        expected = pipeline.caption(photo, max_length=9, style=style)
        assert pipeline.caption(photo, max_new_tokens=8, style=style) == expected
        for config in (GenerationConfig(max_length=9), GenerationConfig(max_new_tokens=8)):
            assert pipeline.caption(photo, generation_config=config, style=style) == expected
    written, stays = captioner.generation_config, captioner.generation_config.to_dict()
    other = pipeline.caption(photo, max_length=15)
    for in_file in ({"max_new_tokens": 8}, {"max_length": 9}):
        captioner.generation_config = GenerationConfig(num_beams=3, early_stopping="never", **in_file)
        assert pipeline.caption(photo) == expected
        assert pipeline.caption(photo, max_length=15) == other  # what the call says goes before what a file says
        assert pipeline.caption(photo, max_new_tokens=14) == other
        config = GenerationConfig(max_length=15, num_beams=3, early_stopping="never")
        assert pipeline.caption(photo, generation_config=config) == other
    captioner.generation_config = written
    assert written.to_dict() == stays
    features = torch.randn(1, 3, captioner.config.img_feature_dim)
    ids = captioner.generate(features, max_length=9)
    assert torch.equal(captioner.generate(features, max_new_tokens=8), ids)
    captioner.generation_config = GenerationConfig(num_beams=3, early_stopping="never", max_new_tokens=3)
    assert torch.equal(captioner.generate(features, max_length=9), ids)
    config = GenerationConfig(max_length=9)
    assert torch.equal(captioner.generate(features, generation_config=config), ids)
    assert config.max_new_tokens is None


def test_a_call_leaves_nothing_behind(detecting):  # noqa: F811
    before = detecting.captioner.generation_config.to_dict()
    first = detecting.caption(PHOTOS[0])
    settings = GenerationConfig(num_beams=2, max_length=7)
    said = settings.to_dict()
    detecting.caption(PHOTOS[1], generation_config=settings, num_return_sequences=1)
    detecting.caption(PHOTOS[:2], num_beams=1, do_sample=True, temperature=2, num_return_sequences=2)
    assert settings.to_dict() == said
    assert detecting.captioner.generation_config.to_dict() == before
    assert detecting.caption(PHOTOS[0]) == first


def test_a_whole_number_is_a_temperature(detecting):  # noqa: F811
    """Of a slider or of JSON, for every door to the search."""
    regions = torch.randn(1, 3, WIDTH)
    for temperature in (2, np.float32(2), np.int64(2)):
        drawn = []
        for value in (temperature, 2.0):
            torch.manual_seed(3)
            sampled = {"do_sample": True, "num_beams": 1, "max_length": 9}
            drawn.append(detecting.captioner.generate(regions, temperature=value, **sampled).tolist())
            torch.manual_seed(3)
            config = GenerationConfig(temperature=value, **sampled)
            drawn.append(detecting.captioner.generate(regions, generation_config=config).tolist())
            assert config.temperature is value
        assert drawn == drawn[:1] * 4


def test_transformers_batches_are_single_photos(tiny_checkpoint):
    options = {"model": str(tiny_checkpoint), "trust_remote_code": True}
    captioning = transformers.pipeline("mengzi-oscar-captioning", **options)
    alone = [captioning(photo, num_beams=2) for photo in PHOTOS]
    for photos in (PHOTOS, tuple(PHOTOS), (photo for photo in PHOTOS), map(np.asarray, PHOTOS)):
        close(list(captioning(photos, batch_size=2, num_beams=2)), alone)
