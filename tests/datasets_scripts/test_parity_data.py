"""Data goldens of the original: files in its formats through our builders, stores and processor, tensor for tensor.

Ours has no padding slots between a caption and its tags: a token lies in the original at the position that ours gives
it, which is how the two are compared. The draws of training (masks, wrong texts) are compared in what does not depend
on the order of draws: the texts that were drawn, the tokens under the masks, how many there are. Not here: what
the collators of train/ draw (`train_masking_seeds`, `label_distribution`, negatives), `data_cbs_filter` (constrained
beam search is out of scope), the restricted attention CL, CR and LR of retrieval (nobody trained with them).
"""

import json

import numpy as np
import pytest
import torch
from conftest import shared_path
from goldens import load_case
from safetensors.torch import load_file
from transformers import BertTokenizer

from datasets_scripts.coco_caption import CocoCaption
from datasets_scripts.coco_ir import CocoIr
from datasets_scripts.gqa import Gqa
from datasets_scripts.nlvr2 import Nlvr2
from datasets_scripts.pretraining_corpus import PretrainingCorpus
from datasets_scripts.vqa import Vqa
from metrics.retrieval_recall.recall import retrieval_recall
from modeling_mengzi_oscar import MengziOscarProcessor, RegionFeatureStore, import_tsv
from modeling_mengzi_oscar.modeling_mengzi_oscar import caption_attention
from modeling_mengzi_oscar.processing_mengzi_oscar import SPACE_BETWEEN_CJK, truncate_pair


def golden(case):
    """Folder, {call: its entry of case.json} and all output tensors {"<call>/<name>"}."""
    folder = shared_path(f"parity/oscar/{case}")
    calls = {call["name"]: call for call in json.loads((folder / "case.json").read_text("utf-8"))["calls"]}
    outputs = folder / "outputs.safetensors"
    return folder, calls, load_file(outputs) if outputs.exists() else {}


def processor_of(folder, **settings):
    return MengziOscarProcessor(BertTokenizer.from_pretrained(folder), **settings)


def build(cls, folder, tmp_path, **arguments):
    builder = cls(data_dir=str(folder), cache_dir=str(tmp_path / "cache"), **arguments)
    builder.download_and_prepare()
    return builder.as_dataset()


def store_of(path, features):
    """A store of {image id: (R, D)}."""
    with RegionFeatureStore.writer(path, dtype="float32") as writer:
        for image_id, matrix in features.items():
            writer.add(image_id, {"region_features": matrix})
    return RegionFeatureStore.open(path)


def tags_of(store, image_id):
    return [store.labels[number] for number in store[image_id]["tag_ids"]]


def at_positions(encoded, row, name, length):
    """A row of ours as the original lays it out: every value at its position."""
    slots = torch.zeros(length, dtype=torch.long)
    valid = encoded["attention_mask"][row].bool()
    slots[encoded["position_ids"][row][valid]] = encoded[name][row][valid]
    return slots


def assert_pair(encoded, row, outputs, prefix, length):
    """Ids, segments, mask and regions of a row in the pair layout."""
    assert at_positions(encoded, row, "input_ids", length).tolist() == outputs[f"{prefix}_input_ids"].tolist()
    assert at_positions(encoded, row, "token_type_ids", length).tolist() == outputs[f"{prefix}_segment_ids"].tolist()
    for name in ("input_mask", "attention_mask"):
        if (mask := outputs.get(f"{prefix}_{name}")) is not None:
            assert at_positions(encoded, row, "attention_mask", length).tolist() == mask[:length].tolist()
            if "region_attention_mask" in encoded:
                assert_padded(encoded["region_attention_mask"][row], mask[length:])
    if (regions := outputs.get(f"{prefix}_img_feat")) is not None:
        assert_padded(encoded["region_features"][row], regions)


def assert_padded(found, expected):
    """Equal, and what the original has more of is zero; it stores the first regions of some cases only."""
    common = min(len(found), len(expected))
    assert torch.equal(found[:common], expected[:common].to(found.dtype))
    assert not expected[common:].any()


# tokenizer


@pytest.mark.parametrize(("name", "lower"), [("lower", True), ("cased", False)])
def test_tokens(name, lower):
    folder, calls, _ = golden("tokenizer")
    tokenizer = BertTokenizer.from_pretrained(folder, do_lower_case=lower)
    for item in calls["tokenize"]["expect"][name]:
        assert tokenizer.tokenize(item["text"]) == item["tokens"], item["text"]
        if "ids" in item:
            assert processor_of(folder).token_ids(item["text"]) == item["ids"]
    assert sorted(tokenizer.all_special_tokens) == calls["tokenize"]["expect"]["all_special_tokens"]


def test_decoded_texts():
    """Ours are the original's without the spaces between Chinese characters; apostrophes stand apart in ours."""
    folder, calls, _ = golden("tokenizer")
    for item in calls["decode"]["expect"]["items"]:
        decoded = processor_of(folder).decode(item["ids"]).replace(" ' ", "'")
        assert decoded == SPACE_BETWEEN_CJK.sub("", item["text"])


# data_caption


@pytest.fixture
def captioning(tmp_path):
    """Folder, calls, outputs, rows of the captions, store with tags."""
    folder, calls, outputs = golden("data_caption")
    rows = build(CocoCaption, folder, tmp_path, config_name="oscar")["train"]
    options = {"labels_are": "tags", "dtype": "float32", "language": "en"}
    import_tsv(folder / "feature.tsv", tmp_path / "store", folder / "label.tsv", **options)
    return folder, calls, outputs, rows, RegionFeatureStore.open(tmp_path / "store")


def assert_caption_mask(encoded, row, expected, length, max_regions):
    """The three-part attention, slot by slot; rows of padding are of no concern, the diagonal of ours is always 1."""
    regions = encoded["region_attention_mask"][row]
    mask = torch.cat([encoded["attention_mask"][row], regions])[None]
    types = encoded["token_type_ids"][row][None]
    ours = caption_attention(mask, types, types.shape[1])[0]
    places = torch.cat([encoded["position_ids"][row], length + torch.arange(len(regions))])
    places, ours = places[mask[0].bool()], ours[mask[0].bool()][:, mask[0].bool()]
    assert torch.equal(ours.long(), expected[places][:, places].long())
    elsewhere = np.setdiff1d(np.arange(length + max_regions), places)
    assert not expected[places][:, elsewhere].any()


def test_captions_of_training(captioning):
    """Every item of the training set, the tokens put back that were masked."""
    folder, calls, outputs, rows, store = captioning
    captions = [(row["image_id"], caption) for row in rows for caption in row["captions"]]
    items = calls["train"]["expect"]["items"]
    assert captions == [(item["key"], item["caption"]) for item in items]
    encoded = processor_of(folder)(
        text=[caption for _, caption in captions],
        tags=[tags_of(store, image_id) for image_id, _ in captions],
        regions=[store[image_id] for image_id, _ in captions],
    )
    for number, item in enumerate(items):
        ids = outputs[f"train/item{number}_input_ids"].long()
        masked = outputs[f"train/item{number}_masked_pos"].bool()
        ids[masked] = outputs[f"train/item{number}_masked_ids"][: masked.sum()].long()
        assert at_positions(encoded, number, "input_ids", 70).tolist() == ids.tolist()
        segments = outputs[f"train/item{number}_segment_ids"]
        assert at_positions(encoded, number, "token_type_ids", 70).tolist() == segments.tolist()
        assert (
            encoded["token_type_ids"][number].eq(0).logical_and(encoded["attention_mask"][number].bool()).sum()
            == (item["seq_a_len"])
        )
        if (mask := outputs.get(f"train/item{number}_attention_mask")) is not None:
            assert_caption_mask(encoded, number, mask, 70, 50)


def test_captions_of_inference(captioning):
    """Tags, segments, regions; the [MASK] slots of the original arise in `generate` here, with tags at 40 on."""
    folder, calls, outputs, rows, store = captioning
    expect = calls["inference"]["expect"]
    image_ids = rows["image_id"][:]
    assert image_ids == list(store) == expect["keys"]
    assert [" ".join(tags_of(store, image_id)) for image_id in image_ids] == expect["od_labels"]
    assert [len(store[image_id]["region_features"]) for image_id in image_ids] == expect["num_boxes"]
    encoded = processor_of(folder)(
        tags=[tags_of(store, image_id) for image_id in image_ids], regions=[store[image_id] for image_id in image_ids]
    )
    for number in range(len(image_ids)):
        caption, tags = outputs[f"inference/item{number}_input_ids"].split((20, 30))
        assert caption.tolist() == [2, *[4] * 18, 3]
        assert_padded(encoded["tag_input_ids"][number], tags)
        assert_padded(encoded["tag_attention_mask"][number], outputs[f"inference/item{number}_segment_ids"][20:])
        assert_padded(encoded["region_features"][number][:6], outputs[f"inference/item{number}_img_feat"])
        seen = outputs[f"inference/item{number}_attention_mask"][19, 50:]  # by the last token of the caption
        assert_padded(encoded["region_attention_mask"][number], seen)


# data_vqa and data_gqa


@pytest.mark.parametrize("kind", ["pt", "tsv"])
def test_vqa(tmp_path, kind):
    folder, _, outputs = golden("data_vqa")
    rows = build(Vqa, folder, tmp_path, config_name="oscar")["validation"]
    if kind == "pt":
        store = store_of(tmp_path / "store", torch.load(folder / "val_img_frcnn_feats.pt", weights_only=True))
    else:
        import_tsv(folder / "val_img_frcnn_feats.tsv", tmp_path / "store", dtype="float32")
        store = RegionFeatureStore.open(tmp_path / "store")
    processor = processor_of(folder, layout="pair", max_length=16, max_regions=5)
    regions = [store[row["image_id"]] for row in rows]
    encoded = processor(text=rows["question"][:], tags=rows["tags"][:], regions=regions)
    for number in range(len(rows)):
        assert_pair(encoded, number, outputs, f"val_pt/item{number}", 16)
        assert_padded(encoded["region_features"][number], outputs[f"val_{kind}/item{number}_img_feat"])
    encoded = processor(text=rows["question"][:])
    for number in range(len(rows)):
        assert_pair(encoded, number, outputs, f"val_text_a/item{number}", 16)


def test_pairs_are_cut_as_there():
    _, calls, _ = golden("data_vqa")
    for item in calls["truncate_seq_pair"]["expect"]["items"]:
        first, second = truncate_pair([1] * item["len_a"], [2] * item["len_b"], item["max_length"])
        assert [len(first), len(second)] == item["out"]


def test_gqa(tmp_path):
    folder, _, outputs = golden("data_gqa")
    rows = build(Gqa, folder, tmp_path, config_name="oscar_balanced")["validation"]
    store = store_of(tmp_path / "store", torch.load(folder / "gqa_img_frcnn_feats.pt", weights_only=True))
    processor = processor_of(folder, layout="pair", max_length=16, max_regions=5)
    regions = [store[row["image_id"]] for row in rows]
    encoded = processor(text=rows["question"][:], tags=rows["tags"][:], regions=regions)
    for number in range(len(rows)):
        assert_pair(encoded, number, outputs, f"val/item{number}", 16)
    submission = build(Gqa, folder, tmp_path, config_name="oscar_all")["submission"]
    asked = [int(outputs[f"test/item{number}_q_id"]) for number in range(3)]
    assert [int(question_id) for question_id in submission["question_id"]] == asked


# data_nlvr2


def test_nlvr2(tmp_path):
    """Each photo with the sentence and its own tags; then both in one sequence.

    Where the left pair has to be cut, the original cuts the sentence for the right one too, by accident of a list that
    two calls share. Here each side is cut by itself.
    """
    folder, _, outputs = golden("data_nlvr2")
    rows = build(Nlvr2, folder, tmp_path)["validation"]
    store = store_of(tmp_path / "store", torch.load(folder / "nlvr2_img_frcnn_feats.pt", weights_only=True))
    processor = processor_of(folder, layout="pair", max_length=16, max_regions=5)
    for number, row in enumerate(rows):
        assert row["label"] == outputs[f"pair/item{number}_label"]
        for side, (image_id, tags) in enumerate(zip(row["image_ids"], row["tags"], strict=True)):
            text = row["sentence"]
            if (number, side) == (1, 1):
                text = text[:7]  # what was left of it
            encoded = processor(text=[text], tags=[tags], regions=[store[image_id]])
            pair = {f"pair_{name}": outputs[f"pair/item{number}_{name}"][side] for name in PAIR}
            pair["pair_img_feat"] = outputs[f"pair/item{number}_img_feats"][side]
            assert_pair(encoded, 0, pair, "pair", 16)
            encoded = processor(text=[row["sentence"]], regions=[store[image_id]])
            pair = {f"pair_{name}": outputs[f"pair_no_labels/item{number}_{name}"][side] for name in PAIR}
            assert_pair(encoded, 0, pair, "pair", 16)
        both = processor(text=[row["sentence"]], tags=[sum(row["tags"], [])])
        assert_pair(both, 0, {**outputs, f"concat/item{number}_input_mask": None}, f"concat/item{number}", 16)


PAIR = ("input_ids", "input_mask", "segment_ids")


# data_retrieval


@pytest.fixture
def retrieval(tmp_path):
    """Folder, calls, outputs, splits, store with tags."""
    folder, calls, outputs = golden("data_retrieval")
    import_tsv(
        folder / "features.tsv",
        tmp_path / "store",
        folder / "predictions.tsv",
        labels_are="tags",
        assumed_size=(600, 800),
        dtype="float32",
        language="en",
    )
    store = RegionFeatureStore.open(tmp_path / "store")
    return folder, calls, outputs, build(CocoIr, folder, tmp_path), store


def test_retrieval_pairs(retrieval):
    """All pairs of the test split, but the one where the original makes a row longer than it may be."""
    folder, calls, outputs, dataset, store = retrieval
    processor = processor_of(folder, layout="pair", max_length=24, max_regions=6)
    pairs = [(row["image_id"], caption) for row in dataset["test"] for caption in row["captions"]]
    encoded = processor(
        text=[caption for _, caption in pairs],
        tags=[tags_of(store, image_id) for image_id, _ in pairs],
        regions=[store[image_id] for image_id, _ in pairs],
    )
    plain = processor(text=[caption for _, caption in pairs])
    for number in range(len(pairs)):
        if len(outputs[f"test_CLR/item{number}_input_ids"]) == 24:
            assert_pair(encoded, number, outputs, f"test_CLR/item{number}", 24)
        if f"test_no_od/item{number}_input_ids" in outputs:
            assert_pair(
                plain,
                number,
                {**outputs, f"test_no_od/item{number}_attention_mask": None},
                f"test_no_od/item{number}",
                24,
            )
    assert max(encoded["attention_mask"].sum(dim=1)) == 24


def test_retrieval_draws_hold_the_right_caption(retrieval):
    """The positive of each draw; the negatives are the collator's."""
    folder, calls, outputs, dataset, store = retrieval
    processor = processor_of(folder, layout="pair", max_length=24)
    pairs = [(row["image_id"], caption) for row in dataset["train"] for caption in row["captions"]]
    for number, item in enumerate(calls["train"]["expect"]["items"]):
        image_id, caption = pairs[item["index"]]
        if len(outputs[f"train/draw{number}_pos_input_ids"]) == 24:
            encoded = processor(text=[caption], tags=[tags_of(store, image_id)])
            assert_pair(encoded, 0, outputs, f"train/draw{number}_pos", 24)


def test_retrieval_ranks(retrieval):
    """Recalls of the original's evaluation from its own similarities, all pairs and a short list."""
    folder, calls, _, _, _ = retrieval
    _, cases = load_case("data_retrieval")
    for name, shape in (("eval_cross", (3, 6)), ("eval_synthetic", (12, 60))):
        scores = cases[name]["inputs"]["similarities"].reshape(shape).numpy()
        found = retrieval_recall(scores, np.repeat(np.arange(shape[0]), shape[1] // shape[0]))
        for theirs, ours, ranks in (
            ("i2t_retrieval", "image_to_text", "i2t_ranks"),
            ("t2i_retrieval", "text_to_image", "t2i_ranks"),
        ):
            for k in (1, 5, 10):
                assert found[f"{ours}_r{k}"] == pytest.approx(calls[name]["expect"]["result"][theirs][f"R@{k}"])
            assert found[f"{ours}_mean_rank"] == pytest.approx(np.mean(calls[name]["expect"][ranks]) + 1)


def test_retrieval_ranks_of_a_short_list(retrieval):
    """Pairs outside the list are -inf; the position of an image's own caption is then that in the list."""
    _, calls, _, dataset, _ = retrieval
    _, cases = load_case("data_retrieval")
    similarities = cases["eval_shortlist"]["inputs"]["similarities"].reshape(-1, 3)
    rows = {row["image_id"]: number for number, row in enumerate(dataset["minival"])}
    columns = {
        (row["image_id"], c): n for n, (row, c) in enumerate((r, c) for r in dataset["minival"] for c in range(2))
    }
    scores = np.full((len(rows), len(columns)), -np.inf)
    for row, values in zip(dataset["minival"], similarities, strict=True):
        for candidate, value in zip(row["candidates"], values, strict=True):
            scores[rows[row["image_id"]], columns[candidate["image_id"], candidate["caption"]]] = value
    found = retrieval_recall(scores, [rows[image_id] for image_id, _ in columns])
    assert found["image_to_text_r1"] == calls["eval_shortlist"]["expect"]["result"]["i2t_retrieval"]["R@1"]
    assert found["image_to_text_mean_rank"] == np.mean(calls["eval_shortlist"]["expect"]["i2t_ranks"]) + 1


# data_pretrain

MODES = ("mode1_false025", "mode0_false0", "mode2_false025", "mode1_false025_nolossunmatched")


@pytest.mark.parametrize("mode", MODES)
def test_pretraining_items(tmp_path, mode):
    """The drawn texts laid out, the tokens put back that were masked; every drawn text is one of the corpus."""
    folder, calls, outputs = golden("data_pretrain")
    rows = build(PretrainingCorpus, folder, tmp_path)["train"]
    processor = processor_of(folder, layout="pair", max_length=18, max_regions=6)
    texts, tags = set(rows["text"]), set(rows["tags"])
    for number, item in enumerate(calls[mode]["expect"]["items"]):
        ids, labels = outputs[f"{mode}/input_ids"][number].long(), outputs[f"{mode}/lm_label_ids"][number][:18].long()
        ids = torch.where(labels == -1, ids, labels)
        if item["contrast_label"] == 1 and "nolossunmatched" in mode:
            continue  # tokens of the wrong text were masked without a label: nobody can put them back
        encoded = processor(text=[item["text_a"]], tags=[item["text_b"]])
        row = {
            "item_input_ids": ids,
            "item_input_mask": outputs[f"{mode}/input_mask"][number],
            "item_segment_ids": outputs[f"{mode}/segment_ids"][number],
        }
        assert_pair(encoded, 0, row, "item", 18)
        assert item["contrast_label"] == outputs[f"{mode}/is_next"][number]
        own = rows[item["item"]]
        assert (item["text_a"] == own["text"]) == (item["contrast_label"] != 2)
        assert item["text_a"] in texts
        assert item["text_b"] in tags | (texts if "mode0" in mode else set())
        assert (item["text_b"] == own["tags"]) or item["contrast_label"] == 1


def test_pretraining_regions(tmp_path):
    """Features of three data sets in one store; ids are unique across them here."""
    folder, _, outputs = golden("data_pretrain")
    rows = build(PretrainingCorpus, folder, tmp_path)["train"]
    for name in ("coco", "flickr30k", "gqa"):
        import_tsv(folder / "feats" / name / "features.tsv", tmp_path / "store", dtype="float32")
    store = RegionFeatureStore.open(tmp_path / "store")
    encoded = processor_of(folder, max_regions=6)(regions=[store[row["image_id"]] for row in rows])
    for number in range(len(rows)):
        assert_padded(encoded["region_features"][number], outputs["mode1_false025/img_feat"][number])
        assert_padded(encoded["region_attention_mask"][number], outputs["mode1_false025/input_mask"][number][18:])
