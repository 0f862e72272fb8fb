"""Decoding: the fast way (prefix encoded once, cached) against the slow one, padded against alone."""

import pytest
import torch
from conftest import tiny_captioner

from modeling_mengzi_oscar.generation_mengzi_oscar import PrefixCache

SETTINGS = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "several returned": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.6},
    "sampling": {"do_sample": True, "num_return_sequences": 3, "top_k": 8},
    "no repeats": {"num_beams": 3, "no_repeat_ngram_size": 2, "bad_words_ids": [[7]]},
    "wanted words": {"num_beams": 3, "sequence_bias": [[[9], 5.0], [[11, 12], 3.0]]},
}


def inputs(batch=3, regions=6, tags=4, width=22):
    generator = torch.Generator().manual_seed(1)
    region_mask = torch.ones(batch, regions, dtype=torch.long)
    tag_mask = torch.ones(batch, tags, dtype=torch.long)
    region_mask[1, 4:], tag_mask[1, 2:], tag_mask[2, :] = 0, 0, 0  # shorter rows, one without tags
    return {
        "region_features": torch.randn(batch, regions, width, generator=generator),
        "region_attention_mask": region_mask,
        "tag_input_ids": torch.randint(5, 30, (batch, tags), generator=generator) * tag_mask,
        "tag_attention_mask": tag_mask,
    }


def until_sep(ids):
    ids = ids.tolist()
    return ids[: ids.index(3) + 1] if 3 in ids else ids


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_cache_equals_recompute(settings):
    model = tiny_captioner()
    results = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        settings = {"max_length": 12, "pad_token_id": 0, "early_stopping": "never"} | settings
        if settings.get("num_beams", 1) == 1:
            settings.pop("early_stopping")
        output = model.generate(
            **inputs(), **settings, use_cache=use_cache, return_dict_in_generate=True, output_logits=True
        )
        results.append(output)
    assert results[0].sequences.tolist() == results[1].sequences.tolist()
    torch.testing.assert_close(torch.stack(results[0].logits), torch.stack(results[1].logits), atol=1e-4, rtol=1e-4)


def test_captions_differ_between_images():
    model = tiny_captioner()
    assert len({tuple(row) for row in model.generate(**inputs(), max_length=12, pad_token_id=0).tolist()}) == 3


@pytest.mark.parametrize("num_beams", [1, 3])
def test_padding_changes_nothing(num_beams):
    model, batch = tiny_captioner(), inputs()
    options = {"num_beams": num_beams, "max_length": 12, "pad_token_id": 0}
    together = model.generate(**batch, **options)
    for row in range(3):
        regions, tags = batch["region_attention_mask"][row].bool(), batch["tag_attention_mask"][row].bool()
        alone = {"region_features": batch["region_features"][row : row + 1, regions]}
        if tags.any():
            alone["tag_input_ids"] = batch["tag_input_ids"][row : row + 1, tags]
        assert until_sep(model.generate(**alone, **options)[0]) == until_sep(together[row])


def test_prefix_is_encoded_once_per_image():
    model, calls = tiny_captioner(), []
    model.bert.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    model.generate(**inputs(), num_beams=4, max_length=8, pad_token_id=0)
    with_regions = [call for call in calls if call.get("region_features") is not None]
    assert len(with_regions) == 1
    assert with_regions[0]["region_features"].shape[0] == 3
    assert all(call["input_ids"].shape == (12, 2) for call in calls[1:])  # the last token and the [MASK], per beam


def test_prompt_continues_the_caption():
    model = tiny_captioner()
    whole = model.generate(**inputs(batch=3), max_length=12, pad_token_id=0)
    prompt = whole[:, :4]
    assert model.generate(**inputs(), input_ids=prompt, max_length=12, pad_token_id=0).tolist() == whole.tolist()


def test_tags_start_at_the_offset_or_the_length_limit():
    model = tiny_captioner(tag_position_offset=10)
    ids = torch.zeros(1, 3, dtype=torch.long)
    positions = model._tag_positions(ids, torch.zeros(1, 1), model.generation_config, {"max_length": 20})
    assert positions.tolist() == [[20, 21, 22]]
    positions = model._tag_positions(ids, torch.zeros(1, 1), model.generation_config, {"max_new_tokens": 5})
    assert positions.tolist() == [[10, 11, 12]]
    with pytest.raises(ValueError, match="fewer tags"):
        model.generate(torch.randn(1, 2, 22), tag_input_ids=torch.zeros(1, 75, dtype=torch.long), max_length=12)


def test_score_captions_equals_the_steps_of_decoding():
    model, batch = tiny_captioner(), inputs()
    output = model.generate(**batch, max_length=12, pad_token_id=0, return_dict_in_generate=True, output_logits=True)
    captions = [[until_sep(ids)] for ids in output.sequences]
    tags = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["tag_input_ids"], batch["tag_attention_mask"], strict=True)
    ]
    log_probs, _ = model.score_captions(captions, batch["region_features"], batch["region_attention_mask"], tags)
    for row, [ids] in enumerate(captions):
        steps = [output.logits[step][row].log_softmax(-1)[token].item() for step, token in enumerate(ids[1:])]
        assert log_probs[row].tolist() == pytest.approx(steps, abs=1e-4)


def test_region_weights_are_the_attention_of_the_mask_queries():
    model, batch = tiny_captioner(), inputs()
    caption = [2, 7, 8, 3]
    _, weights = model.score_captions([[caption]] * 3, batch["region_features"], batch["region_attention_mask"])
    model.set_attn_implementation("eager")
    for step in range(1, len(caption)):
        text = torch.tensor([[*caption[:step], 4]] * 3)
        arguments = {name: batch[name] for name in ("region_features", "region_attention_mask")}
        attention = model(input_ids=text, **arguments, output_attentions=True).attentions[-1]  # (B, heads, S, S)
        expected = attention.mean(dim=1)[:, step, step + 1 :]  # of the [MASK] to the regions
        for row in range(3):
            torch.testing.assert_close(weights[row][step - 1], expected[row], atol=1e-5, rtol=1e-4)


def test_wrong_regions_are_named():
    model = tiny_captioner()
    with pytest.raises(ValueError, match="needs region_features"):
        model.generate(tag_input_ids=torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="23 wide, this model was trained on 22"):
        model.generate(torch.randn(1, 4, 23), max_length=8)


def test_keys_and_values_stand_once_per_image_and_never_move(monkeypatch):
    model, seen = tiny_captioner(), []
    begin_step = PrefixCache.begin_step

    def watched(cache, rows, new):
        mask = begin_step(cache, rows, new)
        seen.append((cache.keys[0].data_ptr(), cache.keys[0].shape, mask.shape, cache.start))
        return mask

    monkeypatch.setattr(PrefixCache, "begin_step", watched)
    model.generate(**inputs(), num_beams=4, max_length=8, min_length=8, pad_token_id=0)
    addresses, keys, masks, starts = (set(column) for column in zip(*seen, strict=True))
    slots = 4 + 6 + 4 * 8  # tags, regions, a slot per beam and position
    assert keys == {(3, 4, slots, 8)}
    assert masks == {(3, 2 * 4, slots)}
    assert len(addresses) == 1
    assert starts == {10 + 4 * step for step in range(7)}


def test_beams_follow_their_own_history():
    cache = PrefixCache(1, torch.ones(1, 2), max_length=4)
    cache.update(torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1), 0)
    mask = cache.begin_step(rows=2, new=2)
    for _ in range(2):
        cache.reorder_cache(torch.tensor([1, 0]))
        mask = cache.begin_step(rows=2, new=2)
    # Third step; the beams have changed places before it and before the second.
    prefix, first, second, third, masks = [1, 1], slice(2, 4), slice(4, 6), slice(6, 8), slice(8, 10)
    token_0, token_1, mask_0, mask_1 = mask[0].int()
    assert all(row[:2].tolist() == prefix for row in mask[0].int())
    assert [row[first].tolist() for row in (token_0, token_1)] == [[1, 0], [0, 1]]
    assert [row[second].tolist() for row in (token_0, token_1)] == [[0, 1], [1, 0]]
    assert [row[third].tolist() for row in (token_0, mask_0, token_1, mask_1)] == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert [row[masks].tolist() for row in (token_0, mask_0, token_1, mask_1)] == [[0, 0], [1, 0], [0, 0], [0, 1]]
