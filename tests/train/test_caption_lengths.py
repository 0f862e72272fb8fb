"""Captions are as long as the sentences they were learnt from; what is saved says so, and every door follows it."""

import json

import caption
import numpy as np
import pytest
import torch
from common.caption_lengths import length_of_most, set_lengths
from conftest import tiny_captioner
from datasets import Dataset
from engine import Engine
from PIL import Image
from transformers import GenerationConfig

from modeling_mengzi_oscar import MengziOscarPipeline, MengziOscarProcessor, RegionFeatureStore
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.pipeline_mengzi_oscar import MengziOscarPhotoPipeline

LONG = "一个男孩和一只大白狗在草地上跑，一个女孩骑着马。"  # 24 characters


@pytest.mark.parametrize(
    ("lengths", "expected"), [([], 0), ([5], 5), (range(1, 101), 99), (range(1, 1001), 990), ([9] * 99 + [40], 9)]
)
def test_ninety_nine_percent_fit(lengths, expected):
    lengths = list(lengths)
    assert length_of_most(lengths) == expected
    assert sum(length <= expected for length in lengths) >= 0.99 * len(lengths)


def chosen(tokenizer, sentences, length=12, given=(None, None), style=None, detailed=(), **settings):
    """(--max_seq_a_length, --max_gen_length), captioner and processor after a choice."""
    torch.manual_seed(0)
    captioner, processor = tiny_captioner(), MengziOscarProcessor(tokenizer, **settings)
    captioner.generation_config = GenerationConfig(max_length=length)
    options = type("Options", (), {"style": style})()
    options.max_seq_a_length, options.max_gen_length = given
    rows = [{"captions": sentences, "style": "short"}]
    rows += [{"captions": [text], "style": "detailed"} for text in detailed]
    rows = Dataset.from_list(rows)
    rows = rows if detailed else rows.remove_columns("style")
    set_lengths(options, captioner, processor, rows)
    return (options.max_seq_a_length, options.max_gen_length), captioner, processor


def test_what_is_chosen(tokenizer, capsys):
    lengths, captioner, processor = chosen(tokenizer, [LONG, "一只狗"])
    assert lengths == (26, 26)
    assert captioner.generation_config.max_length == 26
    assert (processor.tag_position_offset, processor.max_length, processor.style_lengths) == (40, 70, None)
    assert "captions have at most 26 (chosen: 99% fit; 0 of 2 training sentences are longer)" in capsys.readouterr().err
    assert chosen(tokenizer, ["一只狗"])[0] == (12, 12)  # no less than the checkpoint writes
    assert chosen(tokenizer, ["一只狗"] * 200 + [LONG])[0] == (12, 12)
    assert "at most 12 (as before: 99% fit; 1 of 201 training sentences are longer)" in capsys.readouterr().err
    assert chosen(tokenizer, [LONG], given=(40, 20))[0] == (40, 20)
    assert "at most 20 (--max_gen_length; 1 of 1 training" in capsys.readouterr().err


def test_sentences_and_tags_fit_into_the_positions(tokenizer, capsys):
    """The tags begin behind the longest sentence, in training as in decoding: 80 positions, 30 of them for tags."""
    for sentences, expected in (([LONG * 2 + "一" * 50], 50), ([LONG[:22] * 2], 46)):
        lengths, captioner, processor = chosen(tokenizer, sentences)
        assert lengths == (expected, expected)
        assert captioner.config.tag_position_offset == processor.tag_position_offset == expected
        assert (processor.max_length, processor.tag_room) == (expected + 30, 30)
        assert captioner.tag_start(expected) == expected
    assert "no more positions beside its tags; 1 of 1" in capsys.readouterr().err
    lengths, _, processor = chosen(tokenizer, [LONG * 3], max_tags=0)  # no tags: all positions are the sentence's
    assert lengths == (74, 74)
    assert len(processor(text=[LONG * 3])["input_ids"][0]) == 74


def test_positions_that_no_training_reached_begin_where_it_ended(tokenizer):
    def rows(**settings):
        _, captioner, processor = chosen(tokenizer, [LONG], **settings)
        return captioner.bert.embeddings.position_embeddings.weight.data, processor.learnt_length

    same, learnt = rows()
    assert learnt == 26
    again, learnt = rows(learnt_length=26)
    assert torch.equal(same, again)
    assert learnt == 26
    new, learnt = rows(learnt_length=20)
    assert learnt == 26
    assert torch.equal(new[18:26], same[17].expand(8, -1))
    assert torch.equal(torch.cat([new[:18], new[26:]]), torch.cat([same[:18], same[26:]]))


def test_styles_have_lengths_of_their_own(tokenizer):
    styles = {"styles": {"short": "[CLS]", "detailed": "[MASK]"}, "style_lengths": {"detailed": 18}}
    assert chosen(tokenizer, ["一只狗"], **styles)[2].style_lengths == {"detailed": 18}
    _, captioner, processor = chosen(tokenizer, [LONG], **styles)
    assert (captioner.generation_config.max_length, processor.style_lengths) == (26, {"detailed": 26})
    _, captioner, processor = chosen(tokenizer, [LONG], style="detailed", **styles)
    assert (captioner.generation_config.max_length, processor.style_lengths) == (12, {"detailed": 26})


@pytest.fixture(scope="module")
def trained(tiny_checkpoint, tmp_path_factory):
    """best/ after one step on sentences of 24 characters, of a checkpoint that wrote 12 tokens."""
    folder, draws = tmp_path_factory.mktemp("long"), np.random.default_rng(0)
    (folder / "photos" / "images").mkdir(parents=True)
    with RegionFeatureStore.writer(folder / "store") as writer:
        for name in "abcd":
            pixels = draws.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / "images" / f"{name}.png")
            writer.add(name, {"region_features": draws.standard_normal((3, 262)).astype(np.float32)})
    table = "file_name,caption\n" + "".join(f"{name}.png,{LONG}\n" for name in "abcd")
    (folder / "photos" / "captions.csv").write_text(table, encoding="utf-8")
    settings = {"model_name_or_path": tiny_checkpoint, "dataset": "image_captions", "data_dir": folder / "photos"}
    settings |= {"features": folder / "store", "output_dir": folder / "run", "max_steps": 1, "learning_rate": 1e-9}
    settings |= {"label_smoothing": 0.1, "drop_worst_ratio": 0.2}
    settings |= {"report_to": "none", "use_cpu": "true", "disable_tqdm": "true"}
    caption.main(["--do_train", *(f"--{name}={value}" for name, value in settings.items())])
    return folder


def test_every_door_writes_as_long_as_the_checkpoint_says(trained, capsys):
    best, photo = trained / "run" / "best", trained / "photos" / "images" / "a.png"
    said = json.loads((best / "generation_config.json").read_text())
    assert said.pop("max_length") == 26
    assert said.keys() == {  # nothing of the training
        *("bos_token_id", "eos_token_id", "pad_token_id"),
        *("num_beams", "early_stopping", "transformers_version"),
    }
    python = MengziOscarPipeline.from_pretrained(best)
    expected = python.caption(photo, max_length=26, num_beams=3)["caption"]
    assert len(expected) > 12  # random weights know no end
    assert python.caption(photo)["caption"] == expected
    assert python.caption(photo, max_length=None, num_beams=None)["caption"] == expected
    capsys.readouterr()
    assert main(["caption", str(photo), "--model", str(best)]) == 0
    assert expected in capsys.readouterr().out
    of_transformers = MengziOscarPhotoPipeline(python.captioner, python.processor)
    assert of_transformers(str(photo))["caption"] == expected
    engine = Engine(str(best))
    assert (engine.num_beams, engine.lengths, engine.max_length) == (3, {None: 26}, 60)
    opened = Image.open(photo)
    assert engine.caption(opened)["caption"] == expected
    [[row]] = engine.batch([("a", lambda: opened)])
    assert row["caption"] == expected
    settings = {"model_name_or_path": best, "dataset": "image_captions", "data_dir": trained / "photos"}
    settings |= {"features": trained / "store", "output_dir": trained / "written", "test_split": "train"}
    settings |= {"report_to": "none", "use_cpu": "true", "disable_tqdm": "true"}
    caption.main(["--do_predict", *(f"--{name}={value}" for name, value in settings.items())])
    for line in (trained / "written" / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        assert len(json.loads(line)["caption"]) > 12
