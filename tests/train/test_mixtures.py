"""Rows of several data sets and styles in one training: each has its stores, its beginning, and its length."""

import json
from argparse import Namespace

import caption as caption_script
import numpy as np
import pytest
from caption import CaptionArguments
from common.arguments import stores_of_datasets
from common.collators import CaptionRows, DenseCaptionCollator
from common.write_captions import write_captions
from conftest import tiny_captioner
from datasets import Dataset
from transformers import BertTokenizer

from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarProcessor, RegionFeatureStore
from modeling_mengzi_oscar.hub import save_checkpoint

SHORT, LONG = ["一只狗。", "草地上的狗。"], ["一个女孩和一只大白狗在草地上跑，一个男孩骑着马。"]
STYLES = {"short": "[CLS]", "detailed": "[MT]"}


@pytest.fixture
def folder(tmp_path):
    """Stores of two data sets, which have an image id in common, a data set of both, and a captioner of two styles."""
    generator = np.random.default_rng(0)
    for name, number in (("dogs", 4), ("people", 6)):
        for kind, photos in (("", 5), ("-flipped", 4)):  # photo4 is not trained on
            with RegionFeatureStore.writer(tmp_path / f"{name}{kind}", dtype="float32") as writer:
                for photo in range(photos):
                    regions = generator.standard_normal((number, 22), dtype=np.float32)
                    writer.add(f"photo{photo}", {"region_features": regions})
    rows = [{"image_id": f"photo{i}", "captions": SHORT, "style": "short", "dataset": "dogs"} for i in range(4)]
    rows += [{"image_id": f"photo{i}", "captions": LONG, "style": "detailed", "dataset": "people"} for i in range(4)]
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    rows = [row | {"image_id": "photo4"} for row in rows[::4]]
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "validation.parquet")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[MT]", *dict.fromkeys("".join(SHORT + LONG))]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer.from_pretrained(tmp_path, extra_special_tokens=["[MT]"])
    processor = MengziOscarProcessor(tokenizer, max_tags=0, styles=STYLES, style_lengths={"detailed": 16})
    captioner = MengziOscarForImageCaptioning(tiny_captioner(vocab_size=len(tokens)).config)
    captioner.generation_config.max_length = 12
    save_checkpoint(tmp_path / "start", captioner, processor)
    return tmp_path


def stores(folder, *kinds):
    return [f"{name}={folder / name}{kind}" for name in ("dogs", "people") for kind in kinds]


def opened(*features):
    return stores_of_datasets(CaptionArguments(model_name_or_path="x", dataset="x", features=list(features)))


def test_each_data_set_has_its_stores(folder):
    found = opened(*stores(folder, "", "-flipped"))
    assert {name: len(group) for name, group in found.items()} == {"dogs": 2, "people": 2}
    assert list(opened(str(folder / "dogs"))) == [None]
    with pytest.raises(SystemExit, match=r"name the data set of each store \(NAME=STORE\), or of none"):
        opened(f"dogs={folder / 'dogs'}", str(folder / "people"))
    with RegionFeatureStore.writer(folder / "other", labels=["", "猫"]) as writer:
        writer.add("photo0", {"region_features": np.zeros((2, 22), np.float32), "class_ids": np.array([0, 1])})
    with pytest.raises(SystemExit, match="dogs and .*other name their tags differently"):
        opened(f"dogs={folder / 'dogs'}", f"people={folder / 'other'}")


def test_rows_begin_in_their_style_and_have_the_regions_of_their_data_set(folder):
    processor = MengziOscarProcessor.from_pretrained(folder / "start")
    data = Dataset.from_parquet(str(folder / "data" / "train.parquet"))
    rows = CaptionRows(data, processor, opened(*stores(folder, "")), max_length=40)
    assert [(rows[i]["captions"][0][0], len(rows[i]["region_features"])) for i in (0, 4)] == [(2, 4), (5, 6)]
    strange = data.add_column("other", ["formal"] * 8).remove_columns("style").rename_column("other", "style")
    with pytest.raises(ValueError, match="row 1: this checkpoint does not write in the style 'formal'"):
        CaptionRows(strange, processor, opened(*stores(folder, "")))


def test_each_photo_is_captioned_in_the_style_of_its_row(folder):
    """As alone, begun as the style is and no longer than it; --style says another."""
    processor = MengziOscarProcessor.from_pretrained(folder / "start")
    captioner = MengziOscarForImageCaptioning.from_pretrained(folder / "start").eval()
    data = Dataset.from_parquet(str(folder / "data" / "train.parquet"))
    rows, collator = CaptionRows(data, processor, opened(*stores(folder, ""))), DenseCaptionCollator(processor)
    options = Namespace(max_eval_rows=None, num_beams=2, max_gen_length=12, style=None)
    written = write_captions(captioner, rows, collator, Namespace(eval_batch_size=3, bf16=False), options)
    for index, style, length in ((0, None, 12), (3, "short", 12), (5, "detailed", 16)):
        context = collator.context([rows[index]])
        ids = captioner.generate(**context, input_ids=processor.begin(style, 1), num_beams=2, max_length=length)
        assert written[index]["caption"] == processor.batch_decode(ids)[0]
    options.style = "detailed"
    written = write_captions(captioner, rows, collator, Namespace(eval_batch_size=3, bf16=False), options)
    context = collator.context([rows[0]])
    ids = captioner.generate(**context, input_ids=processor.begin("detailed", 1), num_beams=2, max_length=12)
    assert written[0]["caption"] == processor.batch_decode(ids)[0]


def test_a_mixture_is_learnt(folder, capsys):
    settings = {"model_name_or_path": folder / "start", "dataset": folder / "data", "output_dir": folder / "run"}
    settings |= {"max_steps": 2, "save_steps": 2, "report_to": "none", "use_cpu": "true", "num_beams": 2}
    command = ["--do_train", *(f"--{name}={value}" for name, value in settings.items())]
    caption_script.main([*command, "--features", *stores(folder, "", "-flipped")])
    said = capsys.readouterr().err
    assert "sentences are cut at 26 (chosen: 99% fit; 0 of 12" in said
    assert "captions have at most 12 (as before: 99% fit; 0 of 8" in said
    assert "detailed ones at most 26" in said
    config = json.loads((folder / "run" / "best" / "processor_config.json").read_text(encoding="utf-8"))
    assert (config["style_lengths"], config["learnt_length"]) == ({"detailed": 26}, 26)
    with pytest.raises(SystemExit):
        caption_script.main([*command, "--features", f"dogs={folder / 'dogs'}"])
    assert "--features names stores for dogs, and none for the images of people" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        caption_script.main([*command, "--features", *stores(folder, ""), "--objective", "scst"])
    assert "scst samples captions of one style only" in capsys.readouterr().err
