"""A photo is looked at once: `look` and what takes its results, `rank`, and what shares a pass of the region model."""

import gc
import io
import pickle
import time

import numpy as np
import pytest
import torch
from conftest import CHARACTERS, SPECIAL_TOKENS, tiny_captioner, tiny_config
from huggingface_hub.utils import enable_progress_bars
from PIL import Image
from test_pipeline import with_heads  # noqa: F401
from test_vinvl import random_model
from transformers import BertTokenizer

from modeling_mengzi_oscar import (
    MengziOscarForImageTextRetrieval,
    MengziOscarForVisualQuestionAnswering,
    MengziOscarPipeline,
    MengziOscarProcessor,
    RegionFeatureStore,
    VinVLImageProcessor,
    modeling_regions,
)
from modeling_mengzi_oscar.checkpoint_folder import CheckpointError
from modeling_mengzi_oscar.features.extraction import unpad_regions
from modeling_mengzi_oscar.photos import PhotoError

SIZES = [(40, 60), (60, 40), (40, 60), (48, 48), (60, 40)]  # height, width: three sizes for the detector
WIDTH = 134
ANSWERS = dict(enumerate("一二三两个只"))


def noise(seed, size):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


PHOTOS = [noise(seed, size) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def detecting(tmp_path_factory):
    """A pipeline whose region model is a detector: as many regions as a photo has."""
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(SPECIAL_TOKENS + CHARACTERS) + "\n", encoding="utf-8")
    processor = MengziOscarProcessor(BertTokenizer.from_pretrained(vocabulary.parent), max_regions=30)
    names = {index: CHARACTERS[index] for index in range(1, 31)}
    detector = random_model(id2label=names, id2attribute={index: "x" for index in range(1, 25)})
    torch.manual_seed(0)
    heads = {
        "ask": MengziOscarForVisualQuestionAnswering(tiny_config(img_feature_dim=WIDTH, id2label=ANSWERS)).eval(),
        "match": MengziOscarForImageTextRetrieval(tiny_config(img_feature_dim=WIDTH, regions_read_text=False)).eval(),
    }
    image_processor = VinVLImageProcessor(shortest_edge=96, longest_edge=160)
    captioner = tiny_captioner(img_feature_dim=WIDTH, initializer_range=0.1)
    pair = MengziOscarProcessor(processor.tokenizer, layout="pair", max_regions=30)
    return MengziOscarPipeline(captioner, processor, detector, image_processor, lambda task: (heads[task], pair))


def close(results, others):
    """The same captions, with scores that differ by rounding at most."""
    assert [[one["caption"] for one in result["captions"]] for result in results] == [
        [one["caption"] for one in result["captions"]] for result in others
    ]
    for result, other in zip(results, others, strict=True):
        assert [one["score"] for one in result["captions"]] == pytest.approx(
            [one["score"] for one in other["captions"]], abs=1e-5
        )


TEXTS = ["一只狗在草地上跑", "猫", "两个人骑马", "猫"]
QUESTIONS = ["有几个人？", "狗是红色的？", "跑"]


def numbers(results):
    """Everything that is a probability, in order."""
    if isinstance(results, dict):
        return [results["probability"]]
    return [value for one in results for value in numbers(one)]


def same(results, others):
    """The same words in the same places, probabilities within rounding."""

    def words(results):
        if isinstance(results, dict):
            return {name: value for name, value in results.items() if name != "probability"}
        return [words(one) for one in results]

    assert words(results) == words(others)
    np.testing.assert_allclose(numbers(results), numbers(others), atol=1e-5)


def test_what_was_seen_stands_for_the_photo(detecting):
    """One photo bit for bit; a mixed list as the photos; the region model is not run again."""
    photo = PHOTOS[0]
    seen = detecting.look(photo)
    assert (seen.size, seen.name) == ((60, 40), None)
    assert seen.region_features.shape == (len(seen.regions), 134)
    expected = detecting.caption(photo, num_beams=2)
    assert (expected["tags"], expected["regions"]) == (seen.tags, seen.regions[:30])
    asked, matched = detecting.ask(photo, QUESTIONS), detecting.match(photo, TEXTS)
    of_list = detecting.look(PHOTOS)
    captions, answers = detecting.caption(PHOTOS, num_beams=2), detecting.ask(PHOTOS, QUESTIONS)
    matches = detecting.match(PHOTOS, TEXTS)

    def never(**inputs):
        raise AssertionError("looked again")

    forward, detecting.region_model.forward = detecting.region_model.forward, never
    try:
        for again in (seen, pickle.loads(pickle.dumps(seen))):
            assert detecting.caption(again, num_beams=2) == expected
            assert detecting.ask(again, QUESTIONS) == asked
            assert detecting.match(again, TEXTS) == matched
            assert detecting.look(again) is again
        close(detecting.caption(of_list, num_beams=2), captions)
        same(detecting.ask(of_list, QUESTIONS), answers)
        same(detecting.match(of_list, TEXTS), matches)
    finally:
        detecting.region_model.forward = forward
    mixed = [PHOTOS[0], of_list[1], PHOTOS[2], of_list[3], of_list[4]]
    close(detecting.caption(mixed, num_beams=2), captions)
    same(detecting.match(mixed, TEXTS), matches)


def test_pairs_in_batches_are_pairs_one_by_one(detecting):
    """Photos with differing numbers of regions and tags, questions and texts of differing lengths."""
    seen = detecting.look(PHOTOS)
    seen[1].region_features, seen[1].tags = seen[1].region_features[:3], seen[1].tags[:2]
    seen[3].tags = []
    alone = [[detecting.ask(photo, question, batch_size=1) for question in QUESTIONS] for photo in seen]
    pairs = [[detecting.match(photo, text, batch_size=1)[0] for text in TEXTS] for photo in seen]
    assert np.std(numbers(pairs)) > 0.01
    for batch_size in (2, 4, 7, 100):
        same(detecting.ask(seen, QUESTIONS, batch_size=batch_size), alone)
        same(detecting.match(seen, TEXTS, batch_size=batch_size), pairs)
    same(detecting.ask(seen, QUESTIONS[0]), [rows[0] for rows in alone])


def test_another_precision_is_said(with_heads):  # noqa: F811
    seen = MengziOscarPipeline.from_pretrained(with_heads, dtype="bfloat16").look(PHOTOS[0])
    exact = MengziOscarPipeline.from_pretrained(with_heads, dtype="float32")
    with pytest.raises(PhotoError, match="a photo: was encoded in bfloat16, here the region model computes in float"):
        exact.caption(seen)


def test_errors_stay_in_their_places(detecting, tmp_path):
    bad = str(tmp_path / "missing.jpg")
    seen = detecting.look([PHOTOS[0], bad, PHOTOS[1]])
    assert list(seen[1]) == ["error"]
    for photos in (seen, [PHOTOS[0], bad, PHOTOS[1]]):
        for results in (
            detecting.caption(photos, num_beams=1),
            detecting.ask(photos, "狗？"),
            detecting.match(photos, "狗"),
        ):
            assert results[1] == seen[1]
            assert len(results) == 3
    for call in (
        lambda: detecting.look(bad),
        lambda: detecting.match(seen[1], "狗"),
        lambda: detecting.rank("狗", bad),
    ):
        with pytest.raises(PhotoError, match="missing.jpg: no such file"):
            call()


def test_another_region_model_is_refused_in_one_line(detecting, with_heads):  # noqa: F811
    other = MengziOscarPipeline.from_pretrained(with_heads)
    assert MengziOscarPipeline.from_pretrained(with_heads).finder.checksum == other.finder.checksum
    seen = other.look(PHOTOS[0])
    with pytest.raises(PhotoError, match="was encoded by another region model") as caught:
        detecting.caption(seen)
    assert "\n" not in str(caught.value)
    [fine, refused] = detecting.match([PHOTOS[0], seen], "狗")
    assert fine[0]["text"] == "狗"
    assert "another region model" in refused["error"]


def test_rank_is_match_sorted(detecting, tmp_path):
    PHOTOS[3].save(tmp_path / "a.png")
    photos = [*PHOTOS[:3], tmp_path / "a.png", tmp_path / "missing.jpg", detecting.look(PHOTOS[4])]
    matches = detecting.match(photos, TEXTS)
    rankings = detecting.rank(TEXTS, (photo for photo in photos))  # a stream as well
    for column, ranking in enumerate(rankings):
        pairs = [(number, rows[column]["probability"]) for number, rows in enumerate(matches) if isinstance(rows, list)]
        expected = sorted(pairs, key=lambda pair: -pair[1])
        assert [row["photo"] for row in ranking[:-1]] == [number for number, _ in expected]
        np.testing.assert_allclose([row["probability"] for row in ranking[:-1]], [p for _, p in expected], atol=1e-5)
        assert ranking[-1] == {"photo": 4} | matches[4]
        assert {row.get("name") for row in ranking[:-1]} == {None, str(tmp_path / "a.png")}
    [best, error] = detecting.rank(TEXTS[0], photos, top=1)
    same([best], rankings[0][:1])
    assert "error" in error
    assert detecting.rank(TEXTS[0], []) == []
    assert detecting.rank(TEXTS[:2], []) == [[], []]
    assert len(detecting.rank("狗", PHOTOS[0])) == 1
    with pytest.raises(ValueError, match="top"):
        detecting.rank("狗", PHOTOS, top=0)


def test_what_the_match_head_prepared_is_kept_as_long_as_the_photo(detecting):
    """Where regions do not read the text; a second text costs nothing of the regions."""
    gc.collect()
    seen, before = detecting.look(PHOTOS), len(detecting._prepared)
    first = detecting.rank("一只狗", seen)
    assert len(detecting._prepared) == before + len(PHOTOS)
    model, _ = detecting._head("match")
    embed, model.bert.embed_regions = model.bert.embed_regions, None
    try:
        same(detecting.rank("一只狗", seen), first)
    finally:
        model.bert.embed_regions = embed
    del seen
    gc.collect()
    assert len(detecting._prepared) == before


def test_passes_of_the_region_model_are_bounded_by_pixels(detecting, monkeypatch):
    """And the results are those of each photo alone."""
    alone, passes = [detecting.caption(photo, num_beams=1) for photo in PHOTOS], []
    monkeypatch.setattr(modeling_regions, "PIXELS_PER_PASS", 2 * 96 * 144)  # two photos of 40 x 60, as they are resized
    forward = detecting.region_model.forward

    def counted(pixel_values, **inputs):
        passes.append(tuple(pixel_values.shape))
        return forward(pixel_values=pixel_values, **inputs)

    monkeypatch.setattr(detecting.region_model, "forward", counted)
    close(detecting.caption(PHOTOS * 2, num_beams=1), alone * 2)
    assert sum(shape[0] for shape in passes) == 10
    assert all(shape[0] == 1 or shape[0] * shape[2] * shape[3] <= 2 * 96 * 144 for shape in passes)
    assert max(shape[0] for shape in passes) == 2


def test_photos_of_a_store_are_those_of_look(detecting, tmp_path):
    with RegionFeatureStore.writer(tmp_path / "store", dtype="float32") as writer, torch.inference_mode():
        for number, photo in enumerate(PHOTOS[:2]):
            inputs = detecting.image_processor([photo], return_tensors="pt")
            regions = unpad_regions(detecting.region_model(**inputs), 0)
            writer.add(str(number), regions | {"original_size": inputs["original_sizes"][0]})
    store = RegionFeatureStore.open(tmp_path / "store")
    seen = [detecting.seen(store[name], f"{name}.jpg") for name in ("0", "1")]
    assert [image.size for image in seen] == [photo.size for photo in PHOTOS[:2]]
    assert seen[0].name == "0.jpg"
    close(detecting.caption(seen, num_beams=2), detecting.caption(PHOTOS[:2], num_beams=2))
    with pytest.raises(ValueError, match="0.jpg: no original_size"):
        detecting.seen(
            {"region_features": np.zeros((1, 134)), "boxes": np.zeros((1, 4)), "class_ids": [1], "scores": [1]}, "0.jpg"
        )


def test_without_a_region_model(with_heads, tmp_path):  # noqa: F811
    """Heads take what lies in a store; a photo cannot be looked at, which is said."""
    without = MengziOscarPipeline.from_pretrained(with_heads, region_model=False)
    seen = MengziOscarPipeline.from_pretrained(with_heads).look(PHOTOS[0])
    expected = MengziOscarPipeline.from_pretrained(with_heads).match(seen, "狗")
    seen.region_model = None
    assert without.match(seen, "狗") == expected
    with pytest.raises(PhotoError, match="the photo: the pipeline was loaded without its region model"):
        without.match(PHOTOS[0], "狗")
    with pytest.raises(CheckpointError, match="loaded without its region model"):
        without.save_pretrained(tmp_path / "saved")


def test_a_bar_on_a_terminal_where_it_lasts(detecting, monkeypatch):
    """Nothing on a file, on a terminal nothing before `SECONDS_WITHOUT_BAR`."""
    import modeling_mengzi_oscar.progress as module

    enable_progress_bars()  # the commands switch them off

    class Screen(io.StringIO):
        terminal = True

        def isatty(self):
            return self.terminal

    for terminal, seconds, shown in ((True, 0, True), (True, 100, False), (False, 0, False)):
        screen = Screen()
        screen.terminal = terminal
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setattr(module, "SECONDS_WITHOUT_BAR", seconds)
        detecting.match((noise(seed, (40, 60)) for seed in range(3)), "狗")
        assert ("photo" in screen.getvalue()) == shown, screen.getvalue()


def test_the_bar_comes_before_the_first_photos_are_done(detecting, monkeypatch):
    """A first batch takes a detector long; what comes after the last step is wiped away, too."""

    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    enable_progress_bars()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("modeling_mengzi_oscar.progress.SECONDS_WITHOUT_BAR", 0.05)
    look, write = detecting.finder.look, detecting._caption_batch

    def slow_look(*arguments):
        time.sleep(0.3)
        assert "0/3" in screen.getvalue()
        return look(*arguments)

    monkeypatch.setattr(detecting.finder, "look", slow_look)
    monkeypatch.setattr(detecting, "_caption_batch", lambda *given: (time.sleep(0.2), write(*given))[1])
    detecting.caption(PHOTOS[:3], num_beams=1)
    assert screen.getvalue().endswith("\r")
    assert not screen.getvalue().split("\r")[-2].strip()


def test_a_picture_of_what_was_seen(detecting):
    from modeling_mengzi_oscar.demo.pictures import draw_captions

    seen = detecting.look(PHOTOS[0])
    result = detecting.caption(seen, num_beams=1)
    assert (
        draw_captions([PHOTOS[0]], [result], ["a"]).size
        == draw_captions([Image.new("RGB", seen.size)], [result], ["a"]).size
    )


def test_long_captions_are_not_cut_in_a_picture():
    from modeling_mengzi_oscar.demo.pictures import font, wrap

    caption = "舞台上有一个右手拿着话筒的女人和一个穿着黑色西装的男人，旁边站着三个穿着裙子的女孩在唱歌"
    lines = wrap(caption, 24, 300)
    assert "".join(lines) == caption
    assert len(lines) > 2
    assert all(font(24).getlength(line) <= 300 for line in lines)
    assert not [line for line in lines if line.startswith("，")]
    assert " ".join(wrap("a woman with a microphone stands on a stage", 24, 200)).split() == [
        *["a", "woman", "with", "a", "microphone", "stands", "on", "a", "stage"]
    ]
    assert wrap("唱" * 1000, 24, 300)[-1].endswith("…")
