"""Pre-training data against the original's items, draw by draw, and the script on drawn photos."""

import json
import random
from collections import Counter

import datasets
import numpy as np
import pretrain
import pytest
import torch
from common.arguments import parse_arguments
from common.pretraining_data import (
    PretrainingCollator,
    PretrainingRows,
    contrast_classes,
    hold_out,
    maskable,
    one_row_per_text,
)
from conftest import CHARACTERS, REPOSITORY, SPECIAL_TOKENS, shared_path
from pretrain import PretrainingArguments
from safetensors.torch import load_file
from transformers import BertConfig, BertForPreTraining, BertTokenizer, TrainingArguments

from datasets_scripts.pretraining_corpus import PretrainingCorpus
from modeling_mengzi_oscar import MengziOscarForPreTraining, MengziOscarProcessor, RegionFeatureStore
from modeling_mengzi_oscar.features.oscar_tsv import import_tsv
from modeling_mengzi_oscar.hub import check_repo


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """Rows and stores of the original's files, its calls and its tensors."""
    folder = shared_path("parity/oscar/data_pretrain")
    work = tmp_path_factory.mktemp("corpus")
    builder = PretrainingCorpus(data_dir=str(folder), cache_dir=str(work / "cache"))
    builder.download_and_prepare()
    stores = {}
    for name in ("coco", "flickr30k", "gqa"):
        import_tsv(folder / "feats" / name / "features.tsv", work / name, dtype="float32", assumed_size=(480, 640))
        stores[name] = RegionFeatureStore.open(work / name)
    calls = {call["name"]: call for call in json.loads((folder / "case.json").read_text("utf-8"))["calls"]}
    processor = MengziOscarProcessor(BertTokenizer.from_pretrained(folder))
    return builder.as_dataset(split="train"), stores, calls, load_file(folder / "outputs.safetensors"), processor


MODES = ["mode1_false025", "mode0_false0", "mode2_false025", "mode1_false025_nolossunmatched"]


@pytest.mark.parametrize("name", MODES)
def test_items_of_the_original_from_its_seeds(golden, name):
    rows, stores, calls, tensors, processor = golden
    settings, items = calls[name]["scalar_inputs"], calls[name]["expect"]["items"]
    sampling = {key: settings[key] for key in ("texta_false_prob", "textb_sample_mode", "use_b")}
    dataset = PretrainingRows(rows, stores, **sampling)
    assert dataset.wrong_text == settings["num_contrast_classes"] - 1
    processor.max_length, processor.max_regions = settings["seq_len"], settings["max_img_seq_length"]
    collator = PretrainingCollator(processor, bool(settings["mask_loss_for_unmatched"]))
    drawn = [dataset.item(item["item"], random.Random(item["seed"])) for item in items]
    for ours, item in zip(drawn, items, strict=True):
        assert (ours["text"], ours["tags"]) == (item["text_a"], item["text_b"])
        assert (ours["next_sentence_label"], ours["foreign"]) == (item["contrast_label"], item["image_mismatch"])
    batch = collator(drawn)
    length = batch["input_ids"].shape[1]

    def text(key):
        golden = tensors[f"{name}/{key}"]
        assert not (golden[:, length : settings["seq_len"]] > 0).any()  # only padding is cut
        return golden[:, :length]

    assert torch.equal(batch["input_ids"], text("input_ids"))
    assert torch.equal(batch["attention_mask"], text("input_mask"))
    assert torch.equal(batch["token_type_ids"], text("segment_ids"))
    assert torch.equal(batch["labels"], text("lm_label_ids").masked_fill(text("lm_label_ids") == -1, -100))
    assert torch.equal(batch["next_sentence_label"], tensors[f"{name}/is_next"])
    regions = tensors[f"{name}/input_mask"][:, settings["seq_len"] :]
    assert torch.equal(batch["region_attention_mask"], regions[:, : batch["region_features"].shape[1]])
    if f"{name}/img_feat" in tensors:
        golden_features = tensors[f"{name}/img_feat"][:, : batch["region_features"].shape[1]]
        torch.testing.assert_close(batch["region_features"][:8], golden_features, rtol=0, atol=0)


def test_classes_of_the_contrast(golden):
    for row in golden[2]["num_contrast_classes"]["expect"]["table"]:
        assert contrast_classes(row["texta_false_prob"], row["use_b"]) == row["num_contrast_classes"]


def test_a_row_draws_anew_every_epoch_and_the_same_again(rows, store):
    dataset = PretrainingRows(rows, {None: store})

    def items():
        return [(item["text"], item["tags"], item["random"].random()) for item in map(dataset.__getitem__, range(6))]

    first = items()
    assert items() == first
    dataset.set_epoch(1)
    assert items() != first
    dataset.set_epoch(0)
    assert items() == first


def test_share_of_what_is_wrong_and_masked(rows, store, tokenizer):
    """50 / 25 / 25 % over 4,000 draws (3,973 / 1,987 / 2,040 of the original's 8,000); 15 % masked, 80 / 10 / 10."""
    dataset = PretrainingRows(rows, {None: store})
    collator = PretrainingCollator(MengziOscarProcessor(tokenizer))
    counts, words, kinds = Counter(), 0, Counter()
    for epoch in range(500):
        dataset.set_epoch(epoch)
        items = [dataset[index] for index in range(len(dataset))]
        counts.update(item["next_sentence_label"] for item in items)
        batch = collator(items)
        texts = {name: [item[name] for item in items] for name in ("text", "tags")}
        plain = collator.processor(**texts, layout="pair")["input_ids"]
        asked = batch["labels"] != -100
        assert torch.equal(batch["labels"][asked], plain[asked])
        assert torch.equal(batch["input_ids"][~asked], plain[~asked])
        assert not (asked & ((plain == tokenizer.cls_token_id) | (plain == tokenizer.sep_token_id))).any()
        assert not (asked & (batch["attention_mask"] == 0)).any()
        words += (plain > tokenizer.mask_token_id).sum().item()
        masked = batch["input_ids"] == tokenizer.mask_token_id
        kinds["masked"] += (asked & masked).sum().item()
        kinds["kept"] += (asked & ~masked & (batch["input_ids"] == plain)).sum().item()
        kinds["other"] += (asked & ~masked & (batch["input_ids"] != plain)).sum().item()
    total = counts.total()
    assert [counts[label] / total for label in range(3)] == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    assert kinds.total() / words == pytest.approx(0.15, abs=0.01)
    shares = [kinds[kind] / kinds.total() for kind in ("masked", "other", "kept")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_wrong_things_come_from_another_image(rows, store):
    dataset = PretrainingRows(rows, {None: store})
    texts = {row["text"]: row["image_id"] for row in rows}
    for epoch in range(30):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            item = dataset[index]
            assert item["foreign"] == (item["next_sentence_label"] > 0)
            assert (texts[item["text"]] == rows[index]["image_id"]) == (item["next_sentence_label"] != 2)
            np.testing.assert_array_equal(
                item["region_features"], store[rows[index]["image_id"]]["region_features"]
            )  # the image never changes


def test_without_tags_only_texts_are_wrong(rows, store):
    dataset = PretrainingRows(rows, {None: store}, texta_false_prob=0.0, use_b=False)
    items = [dataset.item(0, random.Random(seed)) for seed in range(200)]
    assert {item["tags"] for item in items} == {""}
    assert {item["next_sentence_label"] for item in items} == {0, 2}
    bare = rows.map(lambda row: {"tags": "" if row["image_id"] == "b" else row["tags"]})
    dataset = PretrainingRows(bare, {None: store})
    items = [dataset.item(0, random.Random(seed)) for seed in range(200)]
    assert "" not in {item["tags"] for item in items}  # a row without tags is not what wrong tags are drawn from


def test_answers_are_the_wrong_tags_of_mode_2(rows, store):
    dataset = PretrainingRows(rows, {None: store}, textb_sample_mode=2)
    wrong = [dataset.item(7, random.Random(seed)) for seed in range(200)]
    answers = {row["tags"] for row in rows if row["question_id"]}
    assert {item["tags"] for item in wrong if item["next_sentence_label"] == 1} == answers - {rows[7]["tags"]}
    captions = rows.filter(lambda row: row["question_id"] is None)
    with pytest.raises(ValueError, match="no question in this data"):
        PretrainingRows(captions, {None: store}, textb_sample_mode=2)
    with pytest.raises(ValueError, match="0, 1 or 2, not 3"):
        PretrainingRows(rows, {None: store}, textb_sample_mode=3)


def test_places_that_can_be_masked():
    assert maskable(7, [0, 0, 0, 0, 1, 1, 1, 0, 0]) == [1, 2, 4, 5]
    assert maskable(7, [0, 0, 0, 0, 1, 1, 1, 0, 0], tags=False) == [1, 2]
    assert maskable(4, [0, 0, 0, 0, 0]) == [1, 2]


def test_rows_of_any_builder():
    captions = {"image_id": ["a", "b"], "captions": [["一只狗", "狗在跑"], ["两个人"]]}
    rows = one_row_per_text(datasets.Dataset.from_dict(captions), {"a": ["狗"], "b": []}.get)
    assert set(rows.column_names) == {"dataset", "image_id", "question_id", "text", "tags"}
    assert rows["text"][:] == ["一只狗", "狗在跑", "两个人"]
    assert rows["image_id"][:] == ["a", "a", "b"]
    assert rows["tags"][:] == ["狗", "狗", ""]
    with_tags = datasets.Dataset.from_dict(captions | {"tags": [["狗", "草地"], ["人"]]})
    assert one_row_per_text(with_tags)["tags"][:] == ["狗 草地", "狗 草地", "人"]
    questions = datasets.Dataset.from_dict(
        {"image_id": ["a"], "question_id": ["7"], "question": ["几只狗？"], "labels": [[1, 0]]},
        features=datasets.Features(
            {
                "image_id": datasets.Value("string"),
                "question_id": datasets.Value("string"),
                "question": datasets.Value("string"),
                "labels": datasets.List(datasets.ClassLabel(names=["两只", "一只"])),
            }
        ),
    )
    [row] = one_row_per_text(questions)
    assert (row["question_id"], row["text"], row["tags"]) == ("7", "几只狗？", "一只 两只")
    [row] = one_row_per_text(datasets.Dataset.from_dict({"image_id": ["a"], "text": ["狗"], "tags": ["狗"]}))
    assert row == {"image_id": "a", "text": "狗", "tags": "狗", "question_id": None, "dataset": None}


def test_images_held_out_for_validation(rows):
    train, validation = hold_out(rows, 1, seed=0)
    assert len(train) + len(validation) == len(rows)
    assert len(set(validation["image_id"])) == 1
    assert not set(validation["image_id"]) & set(train["image_id"])
    train, validation = hold_out(rows, 100, seed=0)  # two images always stay: what is wrong is of another one
    assert len(set(train["image_id"])) == 2


# The script


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A text BERT as Mengzi-BERT is: two-way next-sentence head, vocab.txt beside the weights."""
    folder = tmp_path_factory.mktemp("bert")
    words = SPECIAL_TOKENS + CHARACTERS
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    BertForPreTraining(BertConfig(vocab_size=len(words), max_position_embeddings=48, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The fixture of the builders, with a store for each of its data sets."""
    folder = tmp_path_factory.mktemp("stores")
    builder = PretrainingCorpus(
        data_dir=str(REPOSITORY / "tests/datasets_scripts/fixtures/pretraining_corpus"), cache_dir=str(folder / "cache")
    )
    builder.download_and_prepare()
    noise = np.random.default_rng(0)
    images = {(row["dataset"], row["image_id"]) for row in builder.as_dataset(split="train")}
    for dataset in sorted({name for name, _ in images}):
        with RegionFeatureStore.writer(folder / dataset) as writer:
            for _, image_id in sorted(pair for pair in images if pair[0] == dataset):
                writer.add(image_id, {"region_features": noise.standard_normal((3, 22)).astype(np.float32)})
    return {dataset: folder / dataset for dataset in sorted({name for name, _ in images})}


def run(bert, stores, output, **settings):
    settings = {
        "do_train": True,
        "recipe": REPOSITORY / "train/recipes/pretrain.yaml",
        "model_name_or_path": bert,
        "data_dir": REPOSITORY / "tests/datasets_scripts/fixtures/pretraining_corpus",
        "output_dir": output,
        "validation_images": 1,
        "train_batch_size": 4,
        "max_steps": 3,
        "eval_steps": 3,
        "save_steps": 3,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "use_cpu": True,
    } | settings
    features = ["--features", *(f"{name}={path}" for name, path in stores.items())]
    pretrain.main([*(f"--{name}={value}" for name, value in settings.items()), *features])


def test_the_published_recipe_from_a_text_bert(bert, corpus, tmp_path):
    """All of it but the numbers of steps and rows: the text part comes from BERT, the rest begins at random."""
    run(bert, corpus, tmp_path / "run", learning_rate=0.0)
    assert check_repo(tmp_path / "run" / "best")
    model = MengziOscarForPreTraining.from_pretrained(tmp_path / "run" / "best", dtype="float32")
    config = model.config
    assert (config.img_feature_dim, config.num_contrast_classes, config.use_img_layernorm) == (22, 3, True)
    source = BertForPreTraining.from_pretrained(bert).state_dict()
    ours = model.state_dict()
    for name in ("bert.encoder.layer.1.output.dense.weight", "bert.pooler.dense.weight", "cls.predictions.bias"):
        torch.testing.assert_close(ours[name], source[name], atol=1e-3, rtol=1e-3)  # stored in float16
    assert ours["cls.predictions.decoder.weight"].data_ptr() == model.get_input_embeddings().weight.data_ptr()
    processor = MengziOscarProcessor.from_pretrained(tmp_path / "run" / "best")
    assert (processor.layout, processor.max_length, processor.max_regions) == ("pair", 35, 50)
    [_, entry] = [e for e in history(tmp_path / "run", 3) if "eval_loss" in e]
    assert {"eval_loss", "eval_masked_accuracy", "eval_contrast_accuracy"} <= entry.keys()
    assert (tmp_path / "run" / "samples.md").read_text(encoding="utf-8").count("* **") == 1
    # what came out is what another run starts from
    run(tmp_path / "run" / "best", corpus, tmp_path / "again", textb_sample_mode=0, max_steps=1)


def test_new_parts_follow_from_the_seed(bert, corpus, tmp_path):
    """Whatever was drawn before: every process begins with the same."""
    run(bert, corpus, tmp_path / "one", max_steps=1)
    torch.manual_seed(1)
    run(bert, corpus, tmp_path / "two", max_steps=1)
    one, two = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_learns_which_words_belong_to_a_picture(bert, corpus, tmp_path):
    run(bert, corpus, tmp_path, max_steps=100, learning_rate=5e-3, drop_out=0.0, eval_steps=100, save_steps=100)
    losses = [entry["loss"] for entry in history(tmp_path, 100) if "loss" in entry]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10]), losses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_batch_size": 5, "gradient_accumulation_steps": 2}, "5 is no multiple of 2 shares"),
        ({"dataset_file": "none.yaml"}, "no none.yaml"),
    ],
)
def test_errors(bert, corpus, tmp_path, settings, message):
    with pytest.raises((SystemExit, FileNotFoundError), match=message):
        run(bert, corpus, tmp_path, **settings)


def test_tags_that_are_nowhere_are_missed(bert, corpus, tmp_path):
    captions = [{"dataset": "coco", "image_id": name, "text": "一只狗"} for name in ("42", "9")]
    for split in ("train", "validation"):
        file = tmp_path / "rows" / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(captions).to_parquet(file)
    with pytest.raises(SystemExit, match="no row has tags"):
        run(bert, corpus, tmp_path / "run", dataset=tmp_path / "rows")


def test_features_of_another_width_are_refused(bert, corpus, tmp_path):
    run(bert, corpus, tmp_path / "run", max_steps=1)
    wide = {}
    for name, store in corpus.items():
        wide[name] = tmp_path / name
        with RegionFeatureStore.writer(wide[name]) as writer:
            for image_id in RegionFeatureStore.open(store):
                writer.add(image_id, {"region_features": np.zeros((2, 23), np.float32)})
    with pytest.raises(SystemExit, match="features 22 wide, --features has rows of 23"):
        run(tmp_path / "run" / "best", wide, tmp_path / "again")


def test_recipes_name_flags_only():
    recipe = str(REPOSITORY / "train" / "recipes" / "pretrain.yaml")
    needed = ["--model_name_or_path", "start", "--output_dir", "out", "--use_cpu"]
    options, training = parse_arguments(
        PretrainingArguments, TrainingArguments, description="", arguments=["--recipe", recipe, *needed]
    )
    assert options.train_batch_size == 1024
    assert (options.texta_false_prob, options.textb_sample_mode, options.max_seq_length) == (0.25, 1, 35)
    assert training.max_grad_norm == 10.0


def history(folder, step):
    return json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]


@pytest.fixture
def rows():
    """Six captions and two questions of four images; every text and every tag tells its image."""
    table = [
        *(("a", None, "一只狗", "狗"), ("a", None, "狗在草地上", "狗"), ("b", None, "一只猫", "猫 红色")),
        *(("b", None, "猫坐着", "猫 红色"), ("c", None, "两个人", "人"), ("d", None, "马在跑", "马 草地")),
        *(("c", "q1", "个个", "两个"), ("d", "q2", "马的", "白色")),
    ]
    names = ("image_id", "question_id", "text", "tags")
    columns = dict(zip(names, map(list, zip(*table, strict=True)), strict=True))
    return datasets.Dataset.from_dict(columns | {"dataset": [None] * len(table)})


@pytest.fixture
def store(tmp_path):
    with RegionFeatureStore.writer(tmp_path / "store") as writer:
        for number, image_id in enumerate("abcd"):
            writer.add(image_id, {"region_features": np.full((number + 1, 22), number, np.float32)})
    return RegionFeatureStore.open(tmp_path / "store")
