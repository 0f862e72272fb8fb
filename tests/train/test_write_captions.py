"""Captions of a split: batches of like numbers of regions change the padding and nothing else."""

from argparse import Namespace

import datasets
import numpy as np
import pytest
from common.collators import CaptionRows, DenseCaptionCollator
from common.write_captions import write_captions
from conftest import tiny_captioner

from modeling_mengzi_oscar import MengziOscarProcessor, RegionFeatureStore

NUMBERS = [3, 9, 1, 7, 9, 2, 8, 4, 3, 7]  # regions of each photo


@pytest.fixture
def rows(tmp_path, tokenizer):
    generator = np.random.default_rng(0)
    with RegionFeatureStore.writer(tmp_path / "store", dtype="float32", labels=["", "狗", "猫", "草地"]) as writer:
        for number, regions in enumerate(NUMBERS):
            features = generator.standard_normal((regions, 22), dtype=np.float32)
            classes = generator.integers(0, 4, regions)
            writer.add(f"photo{number}", {"region_features": features, "class_ids": classes})
    split = {"image_id": [f"photo{number}" for number in range(10)], "captions": [["一只狗"]] * 10}
    store = RegionFeatureStore.open(tmp_path / "store")
    processor = MengziOscarProcessor(tokenizer)
    return CaptionRows(datasets.Dataset.from_dict(split), processor, [store], labels=store.labels)


def watched(model):
    """The shapes of the regions of each batch that `generate` gets."""
    shapes, generate = [], model.generate

    def watch(**inputs):
        shapes.append(tuple(inputs["region_features"].shape[:2]))
        return generate(**inputs)

    model.generate = watch
    return shapes


def settings(**changes):
    return Namespace(**{"max_eval_rows": None, "num_beams": 3, "max_gen_length": 12, "style": None} | changes)


def test_batches_of_like_numbers_of_regions(rows):
    model, collator = tiny_captioner(), DenseCaptionCollator(rows.processor)
    alone = [
        model.generate(**collator.context([rows[number]]), num_beams=3, max_length=12)[0]
        for number in range(len(NUMBERS))
    ]
    shapes = watched(model)
    together = write_captions(model, rows, collator, Namespace(eval_batch_size=4, bf16=False), settings())
    assert shapes == [(4, 9), (4, 7), (2, 2)]
    assert [row["image_id"] for row in together] == [f"photo{number}" for number in range(len(NUMBERS))]
    captions = rows.processor.batch_decode(alone)
    assert [row["caption"] for row in together] == captions
    assert len(set(captions)) > 3


def test_the_first_rows_only(rows):
    model, collator = tiny_captioner(), DenseCaptionCollator(rows.processor)
    shapes, training = watched(model), Namespace(eval_batch_size=3, bf16=False)
    some = write_captions(model, rows, collator, training, settings(max_eval_rows=5))
    assert [row["image_id"] for row in some] == [f"photo{number}" for number in range(5)]
    assert shapes == [(3, 9), (2, 3)]
