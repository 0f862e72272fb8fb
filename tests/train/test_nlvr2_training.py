"""train/nlvr2.py on the fixture in Oscar's layout: both photos count, an epoch, judging."""

import json

import datasets
import nlvr2
import numpy as np
import torch
from builders import build
from conftest import REPOSITORY
from nlvr2 import PhotoPairCollator, PhotoPairRows
from transformers import BertTokenizer

from modeling_mengzi_oscar import MengziOscarForVisualReasoning, MengziOscarProcessor, RegionFeatureStore


def store_of(splits, path):
    generator = np.random.default_rng(0)
    with RegionFeatureStore.writer(path) as writer:
        for image_id in sorted(
            {image_id for split in splits.values() for row in split for image_id in row["image_ids"]}
        ):
            writer.add(image_id, {"region_features": generator.normal(size=(4, 262)).astype(np.float32)})
    return RegionFeatureStore.open(path)


def test_a_batch_is_its_pairs_of_photos(data, tiny_checkpoint, tmp_path):
    """(B, 2, ...) against each photo encoded alone, its pooled states joined by hand."""
    splits = build("nlvr2", data("nlvr2"))
    rows = PhotoPairRows(splits["train"], store_of(splits, tmp_path / "store"))
    processor = MengziOscarProcessor(BertTokenizer.from_pretrained(tiny_checkpoint), layout="pair")
    model = MengziOscarForVisualReasoning.from_pretrained(tiny_checkpoint, num_choice=2, num_labels=2).eval()
    items = [rows[0], rows[1]]
    batch = PhotoPairCollator(processor)(items)
    assert batch["input_ids"].shape[:2] == (2, 2)
    assert batch["labels"].tolist() == splits["train"]["label"][:2]
    logits = model(**batch).logits
    for item, expected in zip(items, logits, strict=True):
        pooled = []
        for photo in item["photos"]:
            inputs = processor(text=[photo["text"]], tags=[photo["tags"]], regions=[photo["region_features"]])
            pooled.append(model.bert(**inputs).pooler_output[0])
        torch.testing.assert_close(model.classifier(torch.cat(pooled)), expected, atol=1e-5, rtol=1e-5)


def test_the_recipe_runs_an_epoch_and_judges(data, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = data("nlvr2")
    store = store_of(build("nlvr2", folder), tmp_path / "store")
    common = ["--data_dir", str(folder), "--features", str(store.path), "--use_cpu", "--report_to", "none"]
    recipe = ["--recipe", str(REPOSITORY / "train" / "recipes" / "nlvr2.yaml")]
    train = ["--do_train", "--model_name_or_path", str(tiny_checkpoint), "--num_train_epochs", "1"]
    nlvr2.main([*recipe, *common, *train, "--output_dir", str(tmp_path / "run")])
    best = tmp_path / "run" / "best"
    assert json.loads((best / "config.json").read_text())["classifier"] == "mlp"
    predict = ["--do_predict", "--model_name_or_path", str(best), "--test_split", "validation"]
    nlvr2.main([*common, *predict, "--output_dir", str(tmp_path / "judged")])
    scores = json.loads((tmp_path / "judged" / "scores.json").read_text())
    [row] = [json.loads(line) for line in (tmp_path / "judged" / "predictions.jsonl").read_text().splitlines()]
    assert row["sentence"] == "两张图里都有船。"
    assert 0.5 <= row["probability"] <= 1
    assert scores["accuracy"] == float(row["prediction"])
