import numpy as np
import pytest
import torch
from conftest import tiny_captioner

from modeling_mengzi_oscar import MengziOscarProcessor, RegionModelOutput
from modeling_mengzi_oscar.processing_mengzi_oscar import pack_captions, truncate_pair


def regions(*counts, width=22):
    return [np.random.default_rng(count).normal(size=(count, width)).astype(np.float32) for count in counts]


def test_caption_layout(tokenizer):
    processor = MengziOscarProcessor(tokenizer)
    batch = processor(text=["一只狗", "两个人骑马"], tags=[["狗", "草地"], ["人"]], regions=regions(3, 2))
    ids = tokenizer.convert_tokens_to_ids
    assert batch["input_ids"][0].tolist() == [2, *ids(list("一只狗")), 3, *ids(list("狗草地")), 3]
    assert batch["token_type_ids"][0].tolist() == [0] * 5 + [1] * 4
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 40, 41, 42, 43]
    assert batch["attention_mask"].sum(dim=1).tolist() == [9, 9]
    assert batch["region_features"].shape == (2, 3, 22)
    assert batch["region_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["region_features"][1, 2].abs().sum() == 0


def test_pair_layout_and_truncation(tokenizer):
    processor = MengziOscarProcessor(tokenizer, layout="pair")
    batch = processor(text="一只狗", tags=["狗", "草地"], regions=regions(2)[0])
    assert batch["position_ids"][0].tolist() == list(range(9))
    batch = processor(text=["一只狗在草地上跑"], tags=["大 小 红 白"], max_length=9)
    assert batch["input_ids"].shape == (1, 9)
    assert batch["token_type_ids"][0].tolist() == [0] * 5 + [1] * 4
    assert truncate_pair([1, 2, 3], [4, 5, 6], 4) == ([1, 2], [4, 5])  # a tie takes from the second


def test_an_empty_caption_is_cls_sep(tokenizer):
    processor = MengziOscarProcessor(tokenizer)
    assert processor(text=["", "一只狗"])["input_ids"].tolist()[0] == [2, 3, 0, 0, 0]


def test_more_tags_than_positions_are_cut(tokenizer):
    processor = MengziOscarProcessor(tokenizer)  # 70 positions, tags from 40 on: 29 tokens and [SEP]
    batch = processor(tags=[["狗"] * 100])
    assert batch["tag_input_ids"].shape == (1, 30)
    assert processor(text=["狗"], tags=[["狗"] * 100])["position_ids"].max() == 69


def test_without_text_only_tags_are_encoded(tokenizer):
    processor = MengziOscarProcessor(tokenizer)
    words = processor(tags=[["狗", "草地"], []], regions=regions(2, 2))
    one_string = processor(tags=["狗 草地", ""], regions=regions(2, 2))
    assert "input_ids" not in words
    assert words["tag_input_ids"].tolist() == one_string["tag_input_ids"].tolist()
    assert words["tag_attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert words["tag_input_ids"][0, 3] == tokenizer.sep_token_id
    assert MengziOscarProcessor(tokenizer, max_tags=0)(tags=[["狗"]])["tag_input_ids"].shape == (1, 0)


def test_regions_in_every_form(tokenizer):
    processor = MengziOscarProcessor(tokenizer, max_regions=2)
    rows = regions(3, 1)
    output = RegionModelOutput(
        region_features=torch.tensor(np.stack([rows[0], np.pad(rows[1], ((0, 2), (0, 0)))])),
        region_attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]]),
    )
    expected = processor(regions=rows)
    for form in ([{"region_features": row} for row in rows], [torch.tensor(row) for row in rows], output):
        torch.testing.assert_close(processor(regions=form)["region_features"], expected["region_features"])
    assert expected["region_attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_numbers_that_do_not_match_are_named(tokenizer):
    processor = MengziOscarProcessor(tokenizer)
    with pytest.raises(ValueError, match=r"same number of images.*'text': 1, 'regions': 2"):
        processor(text=["狗"], regions=regions(2, 2))
    with pytest.raises(ValueError, match=r"one width, got \[5, 22\]"):
        processor(regions=[*regions(2), *regions(2, width=5)])
    with pytest.raises(ValueError, match="layout"):
        MengziOscarProcessor(tokenizer, layout="other")


def test_decode_is_chinese(tokenizer):
    processor = MengziOscarProcessor(tokenizer)
    ids = tokenizer.convert_tokens_to_ids
    rows = [
        [2, *ids(list("一只狗，在草地上。")), 3, *ids(["猫"]), 0],
        [2, *ids(["两", "只", "dog", "##s", "在", "跑"]), 3, 3, 3],
        [2, *ids(["大", "dog", "cat"])],
    ]
    assert processor.batch_decode(rows) == ["一只狗，在草地上。", "两只 dogs 在跑", "大 dog cat"]
    assert processor.batch_decode(torch.tensor(rows[:1])) == ["一只狗，在草地上。"]


def test_processor_survives_saving(tokenizer, tmp_path):
    MengziOscarProcessor(tokenizer, layout="pair", max_regions=7, max_tags=3).save_pretrained(tmp_path / "saved")
    loaded = MengziOscarProcessor.from_pretrained(tmp_path / "saved")
    assert (loaded.layout, loaded.max_regions, loaded.max_tags) == ("pair", 7, 3)
    assert loaded(text=["一只狗"])["input_ids"].tolist() == [[2, *tokenizer.convert_tokens_to_ids(list("一只狗")), 3]]


def test_packed_captions_equal_captions_one_by_one():
    """Every query of the packed sequence gets the logits that a forward of its own step gives."""
    model = tiny_captioner()
    captions = [[[2, 7, 8, 9, 3], [2, 10, 3]], [[2, 11, 12, 3]]]
    tags = [[13, 14, 3], []]
    region_mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    features = torch.randn(2, 3, 22)
    packed = pack_captions(captions, region_mask, mask_token_id=4, tags=tags)
    output = model(**packed, region_features=features)
    logits = iter(output.logits)  # of the labelled rows, image by image
    for row, image_captions in enumerate(captions):
        for ids in image_captions:
            for step in range(1, len(ids)):
                text = torch.tensor([[*ids[:step], 4, *tags[row]]])
                types = torch.tensor([[0] * (step + 1) + [1] * len(tags[row])])
                positions = torch.tensor([[*range(step + 1), *range(40, 40 + len(tags[row]))]])
                alone = model(
                    input_ids=text,
                    token_type_ids=types,
                    position_ids=positions,
                    region_features=features[row : row + 1, region_mask[row].bool()],
                )
                torch.testing.assert_close(next(logits), alone.logits[0, step], atol=1e-4, rtol=1e-4)
    assert next(logits, None) is None
    assert packed["labels"][packed["labels"] != -100].tolist() == [7, 8, 9, 3, 10, 3, 11, 12, 3]
