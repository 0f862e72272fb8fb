"""Tags from the backbone's own classes, in Chinese; captions that are begun in a style; the data that teaches both."""

import shutil

import numpy as np
import pytest
import timm
import torch
from common.tag_sentences import PhotosAndTagSentences, find_tag_words, read_sentences
from conftest import REPOSITORY, tiny_config
from fluent_sentences import CharacterModel, is_fluent
from PIL import Image
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from transformers import BertTokenizer

from modeling_mengzi_oscar import (
    GridRegionConfig,
    GridRegionImageProcessor,
    GridRegionModel,
    MengziOscarForImageCaptioning,
    MengziOscarPipeline,
    MengziOscarProcessor,
)
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.demo.samples import sample_photos
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.labels.imagenet import GROUP_OF_WORD, class_words
from modeling_mengzi_oscar.labels.people import names_people
from modeling_mengzi_oscar.labels.tables import read_table
from modeling_mengzi_oscar.loading import load_region_model

MINI = REPOSITORY / "checkpoints" / "mengzi-oscar-mini"
STAGE = 3  # of the five of test_efficientnet


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))


# The table


def test_every_class_has_one_word():
    numbers = []
    for row in read_table("imagenet_zh.tsv"):
        for span in row["classes"].split():
            first, _, last = span.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    assert sorted(numbers) == list(range(1000))
    words = class_words()
    assert set(words) == set(GROUP_OF_WORD)
    assert all("\u4e00" <= character <= "\u9fff" for word in words for character in word)


def test_words_fit_the_names_of_the_classes():
    names, words = ImageNetInfo(), class_words()
    expected = {
        "espresso": "咖啡",
        "palace": "宫殿",
        "tabby": "猫",
        "daisy": "花",
        "goldfish": "鱼",
        "Siberian husky": "狗",
        "missile": "火箭",
        "sorrel": "马",
        "banana": "香蕉",
        "airliner": "飞机",
        "toilet tissue": "卫生纸",
    }
    found = {names.index_to_description(i).split(",")[0]: word for i, word in enumerate(words)}
    assert {name: found[name] for name in expected} == expected
    assert {word for i, word in enumerate(words) if "terrier" in names.index_to_description(i)} == {"狗"}


# The branch


@pytest.fixture(scope="module")
def class_model():
    """An original network, and a region model whose own last stages were tuned away from it."""
    torch.manual_seed(0)
    original = timm.create_model("test_efficientnet", num_classes=6).eval()
    config = GridRegionConfig(
        backbone="test_efficientnet",
        num_features=256,
        grid_size=3,
        tag_labels=["狗", "猫"],
        tag_classes=[1, 2, 2, 1, 1, 2],
        tag_stage=STAGE,
        tag_threshold=0.0,
    )
    model = GridRegionModel(config).eval()
    model.backbone.load_state_dict({k: v for k, v in original.state_dict().items() if not k.startswith("classifier")})
    branch = model.tag_branch
    branch.blocks.load_state_dict(original.blocks[STAGE:].state_dict())
    branch.conv_head.load_state_dict(original.conv_head.state_dict())
    branch.bn2.load_state_dict(original.bn2.state_dict())
    branch.set_classifier(original.classifier.weight.detach(), original.classifier.bias.detach())
    with torch.no_grad():
        model.backbone.conv_head.weight.mul_(1.5)
        model.backbone.blocks[STAGE][0].conv_pw.weight.mul_(0.5)
    return original, model


def test_the_branch_says_what_the_original_network_says(class_model):
    original, model = class_model
    pixels, sizes = torch.randn(3, 3, 96, 96), torch.tensor([[9, 9]] * 3)
    with torch.inference_mode():
        probabilities = original(pixels).softmax(dim=-1)
        output = model(pixels, sizes)
        plain = GridRegionModel(GridRegionConfig(backbone="test_efficientnet", num_features=256, grid_size=3)).eval()
        plain.backbone.load_state_dict(model.backbone.state_dict())
        assert torch.equal(plain(pixels, sizes).region_features, output.region_features)
    for row, ids, scores in zip(
        probabilities.tolist(), output.tag_ids.tolist(), output.tag_scores.tolist(), strict=True
    ):
        sums = {1: row[0] + row[3] + row[4], 2: row[1] + row[2] + row[5]}
        assert dict(zip(ids, scores, strict=True)) == pytest.approx(sums, abs=5e-3)  # 8-bit weights
        assert scores == sorted(scores, reverse=True)


def test_the_branch_is_saved_whole(class_model, tmp_path):
    _, model = class_model
    model.save_pretrained(tmp_path)
    GridRegionImageProcessor(size={"height": 96, "width": 96}).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["tag_branch.weight"].dtype == torch.int8
    loaded, _ = load_region_model(tmp_path)
    inputs = torch.randn(2, 3, 96, 96), torch.tensor([[9, 9]] * 2)
    with torch.inference_mode():
        ours, theirs = model(*inputs), loaded(*inputs)
    assert torch.equal(ours.tag_scores, theirs.tag_scores)
    assert torch.equal(ours.tag_ids, theirs.tag_ids)


def test_the_mini_names_the_cat():
    pipeline = MengziOscarPipeline.from_pretrained(MINI)
    cat, coffee = pipeline.look([sample_photos()[name][0] for name in ("cat", "coffee")])
    assert "猫" in cat.tags
    assert "咖啡" in coffee.tags


# Styles and tags in the pipeline


@pytest.fixture(scope="module")
def two_styles(class_model, tmp_path_factory):
    """A checkpoint with random weights whose photos have tags and whose captions have two styles."""
    folder = tmp_path_factory.mktemp("styles")
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[MT]",
        *"一二三两个只人男女孩狗猫马草地在上下跑骑坐着红白黑色大小",
    ]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer.from_pretrained(folder, extra_special_tokens=["[MT]"])
    torch.manual_seed(0)
    captioner = MengziOscarForImageCaptioning(tiny_config(img_feature_dim=262, vocab_size=len(tokens)))
    processor = MengziOscarProcessor(tokenizer, max_regions=9, styles={"short": "[CLS]", "detailed": "[MT]"})
    image_processor = GridRegionImageProcessor(size={"height": 96, "width": 96})
    save_checkpoint(folder / "tiny", captioner, processor, class_model[1], image_processor, dtype=torch.float32)
    return folder / "tiny"


def test_the_start_token_decides_the_style(two_styles, photo):
    pipeline = MengziOscarPipeline.from_pretrained(two_styles)
    with torch.inference_mode():
        regions = pipeline.region_model(**pipeline.image_processor([photo], return_tensors="pt"))
    tags = pipeline.region_model.tags(regions)
    assert sorted(tags[0]) == ["狗", "猫"]
    encoded = pipeline.processor(tags=tags, regions=regions)
    captions = {}
    for style, start, length in (("short", 2, 12), ("detailed", 5, 30)):
        ids = pipeline.captioner.generate(
            **encoded, input_ids=torch.tensor([[start]]), num_beams=2, max_length=length, use_cache=False
        )
        settings = {"max_length": length} if style == "short" else {}
        captions[style] = pipeline.caption(photo, style=style, num_beams=2, **settings)["caption"]
        assert captions[style] == pipeline.processor.batch_decode(ids)[0]
    assert captions["short"] != captions["detailed"]
    assert pipeline.caption(photo, num_beams=2, max_length=12)["caption"] == captions["short"]


def test_a_checkpoint_of_one_style_says_so(tiny_checkpoint, two_styles, photo, tmp_path, capsys):
    with pytest.raises(
        ValueError, match="does not write in the style 'formal'; it has: (short, detailed|detailed, short)"
    ):
        MengziOscarPipeline.from_pretrained(two_styles).caption(photo, style="formal")
    photo.save(tmp_path / "photo.png")
    command = ["caption", str(tmp_path / "photo.png"), "--model"]
    assert main([*command, str(tiny_checkpoint), "--style", "detailed"]) == 2
    assert "one style only" in capsys.readouterr().err
    assert main([*command, str(two_styles), "--style", "detailed", "--num-beams", "2"]) == 0


def test_the_captioner_reads_the_tags(two_styles, photo, tmp_path):
    """Without them the same caption has another score: they are in what the captioner sees."""
    folder = shutil.copytree(two_styles, tmp_path / "without")
    text = (folder / "processor_config.json").read_text(encoding="utf-8")
    (folder / "processor_config.json").write_text(text.replace('"max_tags": null', '"max_tags": 0'), encoding="utf-8")
    with_tags, without = (MengziOscarPipeline.from_pretrained(path).caption(photo) for path in (two_styles, folder))
    assert with_tags["tags"] == without["tags"]
    assert with_tags["score"] != pytest.approx(without["score"], rel=1e-3)


# What teaches them


def test_tag_words_are_found_as_jieba_cuts():
    assert find_tag_words("一只小狗睡在沙发上") == ([(3, 4, "狗"), (6, 8, "沙发")], [])
    assert find_tag_words("戴着眼镜走在马路上")[0] == []  # no 马


class Photos:
    """As much of `CaptionRows` as the sentences use."""

    seed, references, starts, labels = 1, [["奔跑的狗。", "一个人。"], ["海边的马。"]], [2, 2], None
    tokenizer = type("T", (), {"cls_token": "[CLS]", "convert_tokens_to_ids": lambda self, token: 5})()
    processor = type("P", (), {"tag_ids": lambda self, words: words, "styles": {"detailed": "[MT]"}})()

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return f"photo {index}"

    def regions(self, index, draws):
        return {"region_features": np.full((9, 4), index)}

    def corrupt(self, ids, draws):
        return ids

    def encode(self, sentences, start):
        return [[start, *sentence] for sentence in sentences]

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_rows_of_a_word_say_the_word(tmp_path):
    path = tmp_path / "coco.txt"
    path.write_text("COCO_train2014_1#0\t沙发上有一只猫。\nCOCO_train2014_2#0\t桌子上的一杯咖啡\n", encoding="utf-8")
    assert read_sentences(path) == ["沙发上有一只猫", "桌子上的一杯咖啡"]
    rows = PhotosAndTagSentences(Photos(), read_sentences(path), rounds=2)
    words = [word for word, group in GROUP_OF_WORD.items() if group in ("animal", "place", "furniture", "food")]
    assert len(rows) == 2 + 2 * len(words)  # of the other groups no sentence speaks
    assert rows[1] == "photo 1"
    animals = [word for word, group in GROUP_OF_WORD.items() if group == "animal"]
    kinds, doubted = set(), []
    for round_number in range(2):
        for number, word in enumerate(animals):
            item = rows[2 + round_number * len(words) + number]
            [[start, *characters]] = item["captions"]
            [said] = {word, f"{word}？"} & set(item["tags"])  # half of them doubted
            doubted.append(said != word)
            kinds.add((start, "".join(characters).replace(word, "X", 1), len(item["region_features"])))
    assert kinds == {
        (start, text, size)
        for start, texts in ((2, ("奔跑的X。", "海边的X。")), (5, ("沙发上有一只X。",)))
        for text in texts
        for size in (0, 9)
    }
    assert 0.3 < np.mean(doubted) < 0.7
    captions = [rows[index]["captions"] for index in range(2, 30)]
    rows.set_epoch(1)
    assert [rows[index]["captions"] for index in range(2, 30)] != captions
    rows.set_epoch(0)
    assert [rows[index]["captions"] for index in range(2, 30)] == captions


def test_without_a_detailed_style_sentences_begin_as_captions_do():
    photos = Photos()
    photos.processor = type("P", (), {"tag_ids": lambda self, words: words, "styles": None})()
    photos.tokenizer = type(
        "T", (), {"cls_token": "[CLS]", "convert_tokens_to_ids": lambda self, token: 2 if token == "[CLS]" else None}
    )()
    rows = PhotosAndTagSentences(photos, ["沙发上有一只猫"], rounds=1)
    assert {start for index in range(2, len(rows)) for [[start, *_]] in [rows[index]["captions"]]} == {2}


def test_people_are_in_the_tags_of_what_speaks_of_them():
    """Where the region model says that nobody is there, a sentence without photo says it of itself."""
    photos = Photos()
    photos.labels = ["狗", "人", "无人"]
    rows = PhotosAndTagSentences(photos, ["沙发上有一个男人和一只猫", "人行道上的长颈鹿"], rounds=3, foreign_regions=0)
    assert "长颈鹿" in rows.words  # that COCO has and ImageNet has not
    said = set()
    for index in range(2, len(rows)):
        [[_, *characters]], tags = rows[index]["captions"], rows[index]["tags"]
        said.add("男" in characters)
        assert ("人" in tags, "无人" in tags) == ("男" in characters, "男" not in characters)
    assert said == {True, False}


@pytest.mark.parametrize(
    ("sentence", "people"),
    [
        ("一个男人在踢球", True),
        ("滑雪者从山上滑下来", True),
        ("骑马的牛仔", True),
        ("一群游客", True),
        ("人行道上的机器人", False),
        ("一把吉他和其他乐器", False),
        ("草地上的狗或者猫", False),
        ("一条牛仔裤", False),
        ("这里空无一人", False),
    ],
)
def test_who_is_a_person(sentence, people):
    assert names_people(sentence) == people


def test_what_reads_like_chinese_is_kept():
    people = ["一个男人骑着自行车在路上", "一只狗在草地上奔跑", "两个孩子在水里玩", "一个男人在路上奔跑"] * 5
    model = CharacterModel(people)
    assert sum(model.probability("一个" + c) for c in {c for s in people for c in s} | {"$"}) == pytest.approx(
        1, abs=0.01
    )
    good, broken = "一个男人在草地上奔跑", "路狗上一在跑男骑两奔"
    assert model.fluency(good)[0] > model.fluency(broken)[0]
    assert is_fluent(good, model)
    assert not is_fluent(broken, model)
    for blunder in ("一个男人在草地上运行", "一只狗在草地上，一只狗", "一个男人在路上 run", "一只狗"):
        assert not is_fluent(blunder, model)
