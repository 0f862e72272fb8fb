"""Decoding: the fast way (prefix encoded once, cached) against the slow one, padded against alone."""

import json
import warnings

import pytest
import torch
import transformers
from conftest import tiny_captioner, tiny_config
from transformers import GenerationConfig

from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarModel
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
        settings = {"max_length": 12, "pad_token_id": 0, "num_beams": 1} | settings
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
    model.bert.encoder.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[:2]))
    model.generate(**inputs(), num_beams=4, max_length=8, pad_token_id=0)
    assert calls[0] == (3, 4 + 6)  # tags and regions
    assert set(calls[1:]) == {(3, 4 * 2)}  # per beam the last token and the [MASK]


@pytest.mark.parametrize("use_cache", [True, False])
def test_states_and_attention_of_the_steps(use_cache):
    model, asked = tiny_captioner(), {"output_attentions": True, "output_hidden_states": True}
    options = {"max_length": 6, "min_length": 6, "return_dict_in_generate": True, "use_cache": use_cache} | asked
    output = model.generate(**inputs(), num_beams=1, **options)
    last = output.attentions[3][-1], output.hidden_states[3][-1]  # the step that writes the fifth token, last layer
    assert (len(output.attentions[3]), len(output.hidden_states[3])) == (2, 3)
    if use_cache:  # a row per image: the last token and the [MASK]; slots: 4 tags, 6 regions, 6 positions
        assert last[0].shape == (3, 4, 2, 4 + 6 + 6)
        assert last[1].shape == (3, 2, 32)
    else:  # 4 tags, 4 tokens, the [MASK], 6 regions
        assert last[0].shape == (3, 4, 15, 15)
        assert last[1].shape == (3, 15, 32)
    torch.testing.assert_close(last[0].sum(dim=-1), torch.ones(last[0].shape[:-1]))


def test_prompt_continues_the_caption():
    model = tiny_captioner()
    options = {"num_beams": 1, "max_length": 12, "pad_token_id": 0}
    whole = model.generate(**inputs(), **options)
    assert model.generate(**inputs(), **options, input_ids=whole[:, :4]).tolist() == whole.tolist()


def test_tags_start_at_the_offset_or_the_length_limit():
    model = tiny_captioner(tag_position_offset=10)
    ids = torch.zeros(1, 3, dtype=torch.long)
    assert model.caption_length(1, None, {"max_new_tokens": 5}) == 6
    assert model.caption_length(1, GenerationConfig(max_length=9), {}) == 9
    assert model.caption_length(1, None, {}) == 20
    assert model.tag_positions(ids, 20).tolist() == [[20, 21, 22]]
    assert model.tag_positions(ids, 6).tolist() == [[10, 11, 12]]
    with pytest.raises(ValueError, match="fewer tags"):
        model.generate(torch.randn(1, 2, 22), tag_input_ids=torch.zeros(1, 75, dtype=torch.long), max_length=12)


def test_score_captions_equals_the_steps_of_decoding():
    model, batch = tiny_captioner(), inputs()
    options = {"num_beams": 1, "max_length": 12, "pad_token_id": 0, "return_dict_in_generate": True}
    output = model.generate(**batch, **options, output_logits=True)
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

    def watched(cache, captions):
        step = begin_step(cache, captions)
        seen.append((cache.layers[0].keys.data_ptr(), cache.layers[0].keys.shape, step[2].shape, cache.start))
        return step

    monkeypatch.setattr(PrefixCache, "begin_step", watched)
    model.generate(**inputs(), num_beams=4, max_length=8, min_length=8, pad_token_id=0)
    addresses, keys, masks, starts = (set(column) for column in zip(*seen, strict=True))
    slots = 4 + 6 + 4 * 8  # tags, regions, a slot per beam and position
    assert keys == {(3, 4, slots, 8)}
    assert masks == {(3, 2 * 4, slots)}
    assert len(addresses) == 1
    assert starts == {10 + 4 * step for step in range(7)}


def cache_of_two_beams():
    cache = PrefixCache(1, torch.ones(1, 2), max_length=4, mask_token_id=4)
    cache.layers[0].keys = cache.layers[0].values = torch.zeros(1, 1, 2, 8)
    return cache


def test_beams_follow_their_own_history():
    cache = cache_of_two_beams()
    cache.begin_step(torch.tensor([[2], [2]]))
    cache.begin_step(torch.tensor([[2, 7], [2, 8]]))  # equal captions: each goes on with its own
    asked, positions, mask = cache.begin_step(torch.tensor([[2, 8, 9], [2, 7, 9]]))  # the beams have changed places
    assert asked.tolist() == [[9, 4], [9, 4]]
    assert positions.tolist() == [2, 3]
    prefix, first, second, third, masks = [1, 1], slice(2, 4), slice(4, 6), slice(6, 8), slice(8, 10)
    token_0, token_1, mask_0, mask_1 = mask[0].int()
    assert all(row[:2].tolist() == prefix for row in mask[0].int())
    assert [row[first].tolist() for row in (token_0, token_1)] == [[0, 1], [1, 0]]
    assert [row[second].tolist() for row in (token_0, token_1)] == [[0, 1], [1, 0]]
    assert [row[third].tolist() for row in (token_0, mask_0, token_1, mask_1)] == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert [row[masks].tolist() for row in (token_0, mask_0, token_1, mask_1)] == [[0, 0], [1, 0], [0, 0], [0, 1]]


def test_a_caption_from_nowhere_is_refused():
    cache = cache_of_two_beams()
    cache.begin_step(torch.tensor([[2, 7], [2, 8]]))
    with pytest.raises(ValueError, match="use_cache=False"):
        cache.begin_step(torch.tensor([[2, 7, 9], [2, 9, 9]]))


PUBLISHED = {"num_beams": 5, "max_length": 20, "early_stopping": "never"}
ENDS = [[[3], 4.0]]  # a bias towards [SEP], so that it matters when a search stops


def generate(model, recwarn, caplog, **options):
    """Captions, and nothing is warned of."""
    ids = model.generate(**inputs(), **options)
    assert not [str(warning.message) for warning in recwarn.list]
    assert not caplog.records
    return ids.tolist()


@pytest.fixture
def plain_folder(tmp_path):
    """A captioner whose files say nothing about the search, as the original's folders."""
    torch.manual_seed(2)
    tiny_captioner().save_pretrained(tmp_path)
    GenerationConfig(sequence_bias=ENDS).save_pretrained(tmp_path)
    return tmp_path


def test_defaults_are_the_published_inference(plain_folder, tmp_path, recwarn, caplog):
    model = MengziOscarForImageCaptioning.from_pretrained(plain_folder).eval()
    expected = generate(model, recwarn, caplog, **PUBLISHED)
    for other in (True, False):
        assert expected != generate(model, recwarn, caplog, **PUBLISHED | {"early_stopping": other})
    model.save_pretrained(tmp_path / "saved")
    saved = MengziOscarForImageCaptioning.from_pretrained(tmp_path / "saved").eval()
    for captioner in (model, saved):
        assert generate(captioner, recwarn, caplog) == expected
        assert generate(captioner, recwarn, caplog, num_beams=5, max_length=20) == expected
        for config in (GenerationConfig(num_beams=5), GenerationConfig(max_length=20), GenerationConfig()):
            assert generate(captioner, recwarn, caplog, generation_config=config) == expected


def test_the_same_without_a_generation_config(plain_folder, recwarn, caplog):
    (plain_folder / "generation_config.json").unlink()
    model = MengziOscarForImageCaptioning.from_pretrained(plain_folder).eval()
    expected = generate(model, recwarn, caplog, **PUBLISHED, sequence_bias=ENDS)
    assert generate(model, recwarn, caplog, sequence_bias=ENDS) == expected


def test_what_a_file_or_a_call_says_holds(plain_folder, recwarn, caplog):
    model = MengziOscarForImageCaptioning.from_pretrained(plain_folder).eval()
    stops_early = generate(model, recwarn, caplog, **PUBLISHED | {"early_stopping": True})
    config = GenerationConfig(num_beams=5, early_stopping=True)
    assert generate(model, recwarn, caplog, generation_config=config) == stops_early
    assert config.max_length is None  # what was passed in stays as it was
    said = {"num_beams": 2, "early_stopping": True, "max_length": 9}
    GenerationConfig(**said, sequence_bias=ENDS).save_pretrained(plain_folder)
    model = MengziOscarForImageCaptioning.from_pretrained(plain_folder).eval()
    assert not model.open_settings(None, {}).keys() & said.keys()
    assert generate(model, recwarn, caplog) == generate(model, recwarn, caplog, **said)


@pytest.mark.parametrize("folder_says", [{}, {"early_stopping": "never", "num_beams": 3}])
def test_greedy_search_warns_of_nothing(folder_says, plain_folder, recwarn, caplog):
    GenerationConfig(eos_token_id=3, **folder_says).save_pretrained(plain_folder)
    model = MengziOscarForImageCaptioning.from_pretrained(plain_folder).eval()
    greedy = generate(model, recwarn, caplog, num_beams=1, max_length=12)
    assert generate(model, recwarn, caplog, generation_config=GenerationConfig(num_beams=1, max_length=12)) == greedy
    assert generate(model, recwarn, caplog, num_beams=1, max_length=12, use_cache=False) == greedy


def test_sampling_and_streaming_need_no_word_about_beams(recwarn, caplog):
    model, told = tiny_captioner(), []
    torch.manual_seed(1)
    sampled = generate(model, recwarn, caplog, do_sample=True, max_length=12)
    torch.manual_seed(1)
    assert sampled == generate(model, recwarn, caplog, do_sample=True, max_length=12, num_beams=1)

    class Streamer:
        def put(self, ids):
            told.append(ids)

        def end(self):
            told.append("end")

    model.generate(torch.randn(1, 4, 22), streamer=Streamer(), max_length=6)
    assert told[-1] == "end"


def test_nothing_to_look_at_is_a_caption_all_the_same():
    model, nothing = tiny_captioner(), torch.zeros(2, 0, 22)
    captions = [model.generate(nothing, max_length=6, use_cache=use_cache).tolist() for use_cache in (True, False)]
    assert captions[0] == captions[1]


def test_a_stream_is_greedy_whatever_a_file_says(recwarn, caplog):
    model, told = tiny_captioner(), []
    model.generation_config.num_beams = 5

    class Streamer:
        def put(self, ids):
            told.extend(ids.flatten().tolist())

        def end(self):
            pass

    images = {"region_features": inputs()["region_features"][:1]}
    model.generate(**images, streamer=Streamer(), max_length=6)
    assert told == model.generate(**images, num_beams=1, max_length=6)[0].tolist()


def test_a_length_in_new_tokens_warns_of_nothing(plain_folder, recwarn, caplog):
    GenerationConfig(max_length=20, sequence_bias=ENDS).save_pretrained(plain_folder)
    model = MengziOscarForImageCaptioning.from_pretrained(plain_folder).eval()
    assert generate(model, recwarn, caplog, max_new_tokens=8) == generate(model, recwarn, caplog, max_length=9)


def test_traced_masks_are_not_baked_in():
    model = MengziOscarModel(tiny_config()).eval().requires_grad_(False)
    ids, mask = torch.tensor([[2, 7, 8, 9]]), torch.ones(1, 4, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda i, m: model(i, m, return_dict=False)[0], (ids, mask))
    padded = torch.tensor([[1, 1, 1, 0]])
    torch.testing.assert_close(traced(ids, padded), model(ids, padded).last_hidden_state)


def test_what_was_trained_with_is_no_generation_setting(tmp_path):
    """transformers reads a generation config out of a config that has no file of it."""
    tiny_captioner(label_smoothing=0.1, drop_worst_ratio=0.2).save_pretrained(tmp_path)
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    said = json.loads((tmp_path / "generation_config.json").read_text())
    assert said == tokens | {"transformers_version": transformers.__version__}
