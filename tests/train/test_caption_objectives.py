"""What the objectives of train/caption.py learn from: masks, packed sentences, rewards; against the original's."""

import json
from collections import Counter

import pytest
import torch
from common.collators import CaptionRows, DenseCaptionCollator, MaskedCaptionCollator, MaskedCaptionRows
from common.self_critical import SelfCriticalCollator, advantages
from conftest import shared_path, tiny_captioner
from datasets import Dataset
from goldens import load_case
from transformers import BertTokenizer

from metrics.caption_zh.scores import CiderDReward, caption_scores
from modeling_mengzi_oscar import MengziOscarProcessor, RegionFeatureStore

ROWS = {
    "image_id": ["a", "b"],
    "captions": [["两个人在草地上骑马。", "一只狗"], ["一个女孩坐着，红色的马在跑。一只白猫在草地上"]],
}


@pytest.fixture
def store(tmp_path):
    generator = torch.Generator().manual_seed(0)
    with RegionFeatureStore.writer(tmp_path / "store", labels=["", "马", "草地"]) as writer:
        for image_id, classes in {"a": [1, 2, 1], "b": [2, 0]}.items():
            features = torch.randn(len(classes), 22, generator=generator).numpy()
            writer.add(image_id, {"region_features": features, "class_ids": torch.tensor(classes).numpy()})
    return RegionFeatureStore.open(tmp_path / "store")


def masked_rows(processor, store, **settings):
    rows = Dataset.from_dict(ROWS)
    return MaskedCaptionRows(rows, processor, [store], store.labels, training=True, max_length=40, **settings)


def test_masks_are_drawn_as_the_original_draws_them(tokenizer, store):
    """Number, places (the [SEP] too, [CLS] never) and kinds; 4,000 draws of a sentence of 12 tokens."""
    rows = masked_rows(MengziOscarProcessor(tokenizer), store)
    ids = rows.captions[0][0]
    places, kinds = Counter(), Counter()
    for seed in range(4000):
        masked, labels = rows.mask(ids, rows.draws(seed))
        asked = [position for position, label in enumerate(labels) if label != -100]
        assert len(asked) == 2  # round(0.15 x 12)
        assert all(labels[position] == ids[position] for position in asked)
        assert all(masked[position] == ids[position] for position in range(len(ids)) if position not in asked)
        places.update(asked)
        for position in asked:
            is_mask, kept = masked[position] == tokenizer.mask_token_id, masked[position] == ids[position]
            kinds["mask" if is_mask else "kept" if kept else "random"] += 1
    assert set(places) == set(range(1, 12))
    assert all(abs(count / 8000 - 1 / 11) < 0.02 for count in places.values())
    # A random token can be the old one or [MASK] by chance: 1 in 38.
    assert kinds["mask"] / 8000 == pytest.approx(0.8, abs=0.02)
    assert kinds["kept"] / 8000 == pytest.approx(0.1, abs=0.02)
    lengths = {len(rows.captions[row][number]): position for position, (row, number) in enumerate(rows.sentences)}
    for length, position in lengths.items():
        asked = sum(label != -100 for label in rows[position]["labels"])
        assert asked == min(max(round(0.15 * length), 1), 3)


def drawn(collator) -> list[list[str]]:
    """The lines of the picture in a docstring, as words."""
    return [line.split() for line in collator.__doc__.splitlines() if line.startswith(" " * 8)]


def test_the_picture_of_packed_captions_is_the_mask(tokenizer):
    """One sentence of one character, one tag token, one region."""
    cat, dog = tokenizer.convert_tokens_to_ids(["猫", "狗"])
    ids = [tokenizer.cls_token_id, cat, tokenizer.sep_token_id]
    item = {"captions": [ids], "inputs": [ids], "tags": [dog], "region_features": torch.zeros(1, 22).numpy()}
    batch = DenseCaptionCollator(MengziOscarProcessor(tokenizer))([item])
    picture = [[word == "x" for word in line if word in ("x", ".")] for line in drawn(DenseCaptionCollator)[1:]]
    assert picture == batch["attention_mask"][0].tolist()
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == ["[CLS]", "猫", "[MASK]", "[MASK]", "狗"]
    assert batch["labels"][0].tolist() == [-100, -100, cat, tokenizer.sep_token_id, -100]


def test_the_picture_of_masked_captions_is_their_layout(tokenizer):
    names = ("input_ids", "labels", "token_type_ids", "position_ids")
    picture = {line[0]: line[1:8] for line in drawn(MaskedCaptionCollator)}
    assert tuple(picture) == names
    ids, labels = (
        [int(word) if word == "-100" else tokenizer.convert_tokens_to_ids(word) for word in picture[name]]
        for name in names[:2]
    )
    item = {"input_ids": ids[:5], "labels": labels[:5], "tags": ids[5:], "region_features": torch.zeros(1, 22).numpy()}
    batch = MaskedCaptionCollator(MengziOscarProcessor(tokenizer))([item])
    assert [batch[name][0].tolist() for name in names] == [
        ids,
        labels,
        *(list(map(int, picture[n])) for n in names[2:]),
    ]


def test_masks_have_the_original_numbers():
    folder, calls = load_case("data_caption")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    for item in calls["train"]["expect"]["items"]:
        rows = MaskedCaptionRows(
            Dataset.from_dict({"image_id": [item["key"]], "captions": [[item["caption"]]]}),
            MengziOscarProcessor(tokenizer),
            max_length=40,
        )
        ids, labels = rows.mask(rows.captions[0][0], rows.draws(item["seed"]))
        assert tokenizer.convert_ids_to_tokens(rows.captions[0][0][1:-1]) == item["caption_tokens"]
        assert len(ids) == item["seq_a_len"]
        assert sum(label != -100 for label in labels) == item["n_masked"]


def test_draws_depend_on_seed_epoch_and_row_only(tokenizer, store):
    rows, again = (masked_rows(MengziOscarProcessor(tokenizer), store, seed=3) for _ in range(2))
    again[1]  # another order of asking
    assert rows[0]["labels"] == again[0]["labels"]
    seen = set()
    for epoch in range(20):
        rows.set_epoch(epoch)
        seen.add(tuple(rows[0]["input_ids"]))
    assert len(seen) > 10


def test_masked_batch_is_what_the_processor_makes(tokenizer, store):
    """Ids (where nothing is masked), types, positions, regions; and the loss does not depend on the padding."""
    processor = MengziOscarProcessor(tokenizer)
    rows = masked_rows(processor, store)
    items = [rows[index] for index in range(3)]
    batch = MaskedCaptionCollator(processor)(items)
    texts = [text for row in ROWS["captions"] for text in row]
    tags = [["马", "草地", "马"], ["马", "草地", "马"], ["草地"]]
    regions = [store[image_id]["region_features"] for image_id in ("a", "a", "b")]
    expected = processor(text=texts, tags=tags, regions=regions, layout="caption")
    ids = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    assert torch.equal(ids, expected["input_ids"])
    for name in ("attention_mask", "token_type_ids", "position_ids", "region_features", "region_attention_mask"):
        assert torch.equal(batch[name], expected[name]), name
    model = tiny_captioner()
    together = model(**batch).loss
    labelled = (batch["labels"] != -100).sum(dim=1)
    alone = [model(**MaskedCaptionCollator(processor)([item])).loss for item in items]
    torch.testing.assert_close(together, (torch.stack(alone) * labelled).sum() / labelled.sum(), atol=1e-5, rtol=1e-5)


def test_dense_rows_with_tags_ask_what_decoding_asks(tokenizer, store):
    """The packed loss is the mean of step by step log-probabilities with regions and tags as `generate` sees them."""
    processor = MengziOscarProcessor(tokenizer)
    rows = CaptionRows(Dataset.from_dict(ROWS), processor, [store], store.labels, max_length=40)
    collator = DenseCaptionCollator(processor)
    model = tiny_captioner()
    losses, tokens = 0.0, 0
    for index in range(2):
        context = collator.context([rows[index]])
        for ids in rows.captions[index]:
            for step in range(1, len(ids)):
                written = torch.tensor([[*ids[:step], tokenizer.mask_token_id]])
                tags = context["tag_input_ids"]
                types = [0] * written.shape[1] + [1] * tags.shape[1]
                positions = [*range(written.shape[1]), *range(40, 40 + tags.shape[1])]
                logits = model(
                    input_ids=torch.cat([written, tags], dim=1),
                    token_type_ids=torch.tensor([types]),
                    position_ids=torch.tensor([positions]),
                    region_features=context["region_features"],
                ).logits
                losses -= logits[0, step].log_softmax(-1)[ids[step]].item()
                tokens += 1
    batch = collator([rows[0], rows[1]])
    assert model(**batch).loss.item() == pytest.approx(losses / tokens, abs=1e-4)


@pytest.mark.parametrize("name", ["baseline_greedy", "baseline_sample"])
def test_rewards_and_gradients_are_the_original_ones(name):
    _, calls = load_case("data_scst")
    call = calls[name]
    given, expect = call["scalar_inputs"], call["expect"]

    def words(caption):
        """Oscar's: one final full stop dropped, the end of the sentence as a word."""
        return f"{caption.strip().removesuffix('.')} <eos>".split()

    frequencies = json.loads(shared_path("parity/oscar/data_scst/words.json").read_text())
    frequency = {tuple(ngram.split()): count for ngram, count in frequencies["document_frequency"].items()}
    reward = CiderDReward([[words(c) for c in row] for row in given["gt"]], frequency, frequencies["ref_len"])
    samples = torch.tensor([[reward(words(c), i) for c in given["sample"][2 * i : 2 * i + 2]] for i in range(3)])
    greedy = torch.tensor([reward(words(caption), i) for i, caption in enumerate(given["greedy"])])
    found = [*samples.flatten().tolist(), *greedy.tolist()]
    assert found == pytest.approx(expect["ciderD_scores"], abs=1e-5)
    assert samples.mean().item() == pytest.approx(expect["mean_reward"], abs=1e-5)
    gain = advantages(samples, greedy if name == "baseline_greedy" else None)
    log_probs = call["inputs"]["sample_logprobs"].clone().requires_grad_()
    loss = -(log_probs * gain.flatten()).mean()
    loss.backward()
    assert loss.item() == pytest.approx(expect["loss"], abs=1e-5)
    torch.testing.assert_close(log_probs.grad, call["golden"]["grad_logprobs"], atol=1e-5, rtol=1e-5)


def test_rewards_are_the_metric():
    """The mean reward of one caption a photo is the CIDEr-D that caption_scores prints."""
    references = [["一只 狗 在 跑", "狗 在 草地"], ["两个 人", "人 在 骑马"], ["一只 猫", "白 猫"]]
    predictions = ["一只 狗 在 草地", "两个 人 骑马", "一只 白 猫"]
    reward = CiderDReward([[caption.split() for caption in row] for row in references])
    mean = sum(reward(caption.split(), photo) for photo, caption in enumerate(predictions)) / 3
    scores = caption_scores(predictions, references, segment="none", metrics=("cider_d",))
    assert mean == pytest.approx(scores["cider_d"], abs=1e-9)


def test_samples_are_read_back_over_their_own_tags(tokenizer, store):
    processor = MengziOscarProcessor(tokenizer)
    rows = CaptionRows(Dataset.from_dict(ROWS), processor, [store], store.labels, max_length=40)
    collator = SelfCriticalCollator(processor)
    batch = collator([rows[0], rows[1]])
    captions = [[rows.captions[0][1]] * 2, [rows.captions[1][0]] * 2]
    packed = collator.pack_samples(captions, batch)
    expected = collator.pack(captions, [rows[0], rows[1]], batch["region_attention_mask"])
    assert packed.keys() == expected.keys()
    assert all(torch.equal(packed[name], expected[name]) for name in packed)
