"""The documented sequence of commands on six drawn photos: start, extract, train, go on, tune on pixels, caption."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import add_objects
import caption as caption_script
import datasets
import extract_features
import pytest
import start_captioner
import torch
from builders import build
from caption import CaptionArguments
from common.arguments import load_splits, open_stores, parse_arguments, tag_words_of
from common.collators import CaptionRows, DenseCaptionCollator
from common.from_pixels import CaptionerFromPixels, can_learn
from common.tag_sentences import TagSentenceArguments
from common.weight_averaging import WeightAverage
from conftest import COLOURS, REPOSITORY, newest_checkpoint, tiny_captioner
from hub_server import HubServer
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainingArguments

from modeling_mengzi_oscar import (
    MengziOscarPipeline,
    MengziOscarProcessor,
    NanoDetConfig,
    NanoDetForObjectDetection,
    ObjectRegionConfig,
    ObjectRegionImageProcessor,
    ObjectRegionModel,
    RegionFeatureStore,
)
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.labels.coco import object_words
from modeling_mengzi_oscar.loading import load_region_model


@pytest.fixture(scope="module")
def start(data_dir, tmp_path_factory):
    """The start folder and its features, plain and mirrored."""
    work = tmp_path_factory.mktemp("work")
    size = ["--hidden_size", "64", "--num_layers", "2", "--num_tags", "2"]
    backbone = ["--backbone", "test_efficientnet", "--random_backbone"]
    data = ["--dataset", "flickr8k_cn", "--data_dir", str(data_dir)]
    start_captioner.main([*data, "--output", str(work / "start"), *size, *backbone])
    for store, flags in {"plain": [], "flipped": ["--flip"]}.items():
        photos = str(data_dir / "images")
        command = [photos, "--model", str(work / "start"), "--output", str(work / store), "--use_cpu", *flags]
        extract_features.main(command)
    return work


def flags(data_dir, work, output, **settings):
    settings = {
        "model_name_or_path": work / "start",
        "dataset": "flickr8k_cn",
        "data_dir": data_dir,
        "output_dir": output,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "num_beams": 2,
        "report_to": "none",
        "use_cpu": "true",
    } | settings
    return [f"--{name}={value}" for name, value in settings.items()]


def test_three_steps_from_the_launcher_then_a_caption(data_dir, start, tmp_path):
    """`accelerate launch` with the recipe, TensorBoard on; what it leaves captions a photo and is on the Hub."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "train/caption.py", "--do_train"]
    recipe = ["--recipe", "train/recipes/own_photos.yaml", "--features", str(start / "plain"), str(start / "flipped")]
    settings = {"max_steps": 3, "eval_steps": 3, "save_steps": 3, "report_to": "tensorboard", "logging_steps": 1}
    command += [*recipe, *flags(data_dir, start, tmp_path / "run", **settings)]
    command += ["--push_to_hub", "--hub_model_id", "user/captions"]
    with HubServer() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | online)
    assert result.returncode == 0, result.stderr[-3000:]
    assert list(tmp_path.rglob("events.out.tfevents*"))
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    logged = {key for entry in state["log_history"] for key in entry}
    assert {"loss", "eval_loss", "eval_char_cider_d", "eval_word_bleu_4", "eval_distinct"} <= logged
    best = tmp_path / "run" / "best"
    [*_, (_, pushed)] = hub.repos["user/captions"]["commits"]
    assert pushed["README.md"] == (best / "README.md").read_bytes()
    assert pushed["model.safetensors"] == (best / "model.safetensors").read_bytes()
    weights = load_file(best / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float16}
    result = MengziOscarPipeline.from_pretrained(best).caption(str(data_dir / "images" / "photo0.jpg"))
    assert isinstance(result["caption"], str)
    assert 0 < result["score"] <= 1


def test_a_mini_gets_objects_and_learns_from_their_store(data_dir, start, tmp_path):
    """add_objects.py, extraction, a step from the store and on sentences, captions."""
    labels = dict(enumerate(list(object_words())[:3]))
    sizes = {"stem_channels": 4, "neck_channels": 8, "num_blocks": [1, 1, 1, 1], "id2label": labels}
    NanoDetForObjectDetection(NanoDetConfig(**sizes)).save_pretrained(tmp_path / "detector")
    (tmp_path / "words.json").write_text(json.dumps(["犀牛", "犀", "鹮"]), encoding="utf-8")
    texts = ["--texts", str(tmp_path / "words.json")]
    folders = ["--detector", str(tmp_path / "detector"), "--output", str(tmp_path / "start")]
    add_objects.main(["--model", str(start / "start"), *folders, *texts])
    before, after = (MengziOscarPipeline.from_pretrained(folder) for folder in (start / "start", tmp_path / "start"))
    added = after.processor.tokenizer.get_vocab().keys() - before.processor.tokenizer.get_vocab().keys()
    assert {"犀", "车"} <= added  # twice in the texts; of the tags, however seldom
    assert "鹮" not in added
    cells = [pipe.look(str(data_dir / "images" / "photo0.jpg")).region_features[-49:] for pipe in (before, after)]
    torch.testing.assert_close(*cells)

    photos, store = str(data_dir / "images"), str(tmp_path / "store")
    extract_features.main([photos, "--model", str(tmp_path / "start"), "--output", store, "--use_cpu"])
    (tmp_path / "sentences.txt").write_text("a#0\t沙发上有一只猫\na#1\t一只猫和一只狗\n", encoding="utf-8")
    settings = {"model_name_or_path": tmp_path / "start", "features": store, "add_od_labels": True, "max_steps": 1}
    settings |= {"sentences": tmp_path / "sentences.txt"}
    caption_script.main([*flags(data_dir, start, tmp_path / "run", save_steps=1, **settings), "--do_train"])
    trained = {"model_name_or_path": tmp_path / "run" / "best"}
    caption_script.main([*flags(data_dir, start, tmp_path / "captions", **trained), "--do_predict"])
    [line] = (tmp_path / "captions" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["image_id"] == "photo5"


@pytest.fixture(scope="module")
def start_with_objects(start, tmp_path_factory):
    """The start folder with three classes of objects, which are often found, and with tags; in half precision."""
    work = tmp_path_factory.mktemp("objects")
    sizes = {"stem_channels": 4, "neck_channels": 8, "num_blocks": [1, 1, 1, 1]}
    config = NanoDetConfig(**sizes, id2label=dict(enumerate(list(object_words())[:3])))
    NanoDetForObjectDetection(config).save_pretrained(work / "detector")
    command = ["--model", start / "start", "--detector", work / "detector", "--output", work / "float32"]
    add_objects.main([*map(str, command)])
    pipe = MengziOscarPipeline.from_pretrained(work / "float32", dtype="float32")
    region_model, image_processor = load_region_model(work / "float32")
    region_model.config.object_threshold = 0.5
    save_checkpoint(work / "start", pipe.model, pipe.processor, region_model, image_processor)
    return work / "start"


def photos_as_rows(paths, **columns):
    columns |= {"image_id": [*map(str, range(len(paths)))], "image": [*map(str, paths)]}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))


def test_from_pixels_the_captioner_reads_what_the_pipeline_sees(data_dir, start_with_objects):
    """Regions, tags and who sees whom, by the loss: of photos as a training has them, and of what `look` found."""
    pipe = MengziOscarPipeline.from_pretrained(start_with_objects, dtype="float32")
    region_model, image_processor = load_region_model(start_with_objects)
    model = CaptionerFromPixels(pipe.model, pipe.processor, region_model, "conv_head|detector").eval()
    model.tag_labels = ()  # without the loss of the tag head
    with torch.no_grad():  # as they begin, matrices are so small that tags and regions hardly matter
        for parameter in pipe.model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    photos = [data_dir / "images" / f"photo{number}.jpg" for number in range(3)]
    rows = photos_as_rows(photos, captions=[["一面红色的墙", "墙"], ["绿"], ["蓝色的墙"]])
    rows = CaptionRows(rows, pipe.processor, image_processor=image_processor)
    items, collator = [rows[number] for number in range(3)], DenseCaptionCollator(pipe.processor)
    seen = [pipe.look(str(photo)) for photo in photos]
    assert any(photo.tags for photo in seen)
    assert any("label" in region for photo in seen for region in photo.regions)
    stored = [
        {"captions": item["captions"], "inputs": item["inputs"]}
        | {"region_features": photo.region_features.numpy(), "tags": pipe.processor.tag_ids(photo.tags)}
        for item, photo in zip(items, seen, strict=True)
    ]
    loss = model(**collator(items))["loss"]
    torch.testing.assert_close(loss, pipe.model(**collator(stored)).loss, atol=1e-4, rtol=1e-5)
    for item in items:
        item["tags_dropped"] = torch.tensor(True)
    for item in stored:
        item["tags"] = []
    without = model(**collator(items))["loss"]
    torch.testing.assert_close(without, pipe.model(**collator(stored)).loss, atol=1e-4, rtol=1e-5)
    assert abs(without - loss) > 1e-2
    model.train()
    assert not region_model.training
    model(**collator(items))["loss"].backward()
    assert region_model.grid.backbone.conv_head.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in region_model.detector.parameters())


def test_objects_from_pixels_train_resume_and_caption(data_dir, start, start_with_objects, tmp_path):
    """Interrupted after two of four steps the weights are those of four at once; the best folder captions alike."""
    common = {"model_name_or_path": start_with_objects, "tune_region_model": "conv_head|tag_classifier|detector"}
    common |= {"learning_rate": 3e-3, "save_steps": 2, "lr_scheduler_type": "constant", "ema_decay": 0.5}
    common |= {"eval_on_start": "false", "tag_dropout": 0.3}
    for output, steps in {"whole": [4], "parts": [2, 4]}.items():
        for max_steps in steps:
            run = flags(data_dir, start, tmp_path / output, **common, max_steps=max_steps)
            caption_script.main([*run, "--do_train"])
    for file in ("model.safetensors", "weight_average.safetensors"):
        whole, parts = (load_file(tmp_path / output / "checkpoint-4" / file) for output in ("whole", "parts"))
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    best = tmp_path / "parts" / "best"
    before, after = (load_file(folder / "region_model" / "model.safetensors") for folder in (start_with_objects, best))
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: t.dtype for name, t in before.items()}
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    tag_classifier = {f"grid.tag_classifier.{name}" for name in ("weight", "bias")}
    assert changed == {"grid.backbone.conv_head.weight"} | tag_classifier
    predict = {"model_name_or_path": best, "dtype": "float32"}
    caption_script.main([*flags(data_dir, start, tmp_path / "captions", **predict), "--do_predict"])
    [line] = (tmp_path / "captions" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    pipe = MengziOscarPipeline.from_pretrained(best, dtype="float32")
    photo = str(data_dir / "images" / "photo5.jpg")
    assert json.loads(line)["caption"] == pipe.caption(photo, num_beams=2)["caption"]


def test_what_a_region_model_cannot_learn(data_dir, start, start_with_objects, tmp_path):
    """Not the detector, nor what names classes; a grid without tags has none to give."""
    classes = {"tag_labels": ["猫", "狗"], "tag_classes": [1, 2, 2], "tag_stage": 2}
    grid = {"backbone": "test_efficientnet", "num_features": 256} | classes
    model = ObjectRegionModel(ObjectRegionConfig(grid=grid, detector={"model_type": "nanodet"}))
    stages = {f"blocks.{number}" for number in range(2, len(model.grid.backbone.blocks))}
    parts = {name.removeprefix("grid.backbone.").partition(".")[0] for name in can_learn(model)}
    assert parts == {"blocks", "conv_head", "bn2"}
    assert {".".join(name.split(".")[2:4]) for name in can_learn(model) if ".blocks." in name} == stages

    settings = {"model_name_or_path": start_with_objects, "tune_region_model": "detector"}
    with pytest.raises(SystemExit, match="--tune_region_model detector: no parameter of that name can learn"):
        caption_script.main([*flags(data_dir, start, tmp_path, **settings), "--do_train"])


@pytest.mark.parametrize("objects", [True, False])
def test_pixels_in_training_are_of_one_photo(tiny_checkpoint, tmp_path, objects):
    """Mirrored for the detector as for the grid, and whole where there is a detector; the same draws each time."""
    photo = Image.new("RGB", (80, 60), "red")
    photo.paste("blue", (40, 0, 80, 60))
    photo.save(tmp_path / "photo.png")
    processor = MengziOscarProcessor.from_pretrained(tiny_checkpoint)
    image_processor = ObjectRegionImageProcessor(grid={"size": 32}, detector_size=32, detector_bgr=False)
    image_processor = image_processor if objects else image_processor.grid_processor()
    rows = photos_as_rows([tmp_path / "photo.png"] * 12, captions=[["墙"]] * 12)
    rows = CaptionRows(rows, processor, image_processor=image_processor, training=True)
    mirrored, sizes = [], []
    for number in range(12):
        item = rows[number]
        assert torch.equal(item["pixel_values"], rows[number]["pixel_values"])
        red = item["pixel_values"][0]
        mirrored.append((red[:, 28:].mean() > red[:, :4].mean()).item())
        sizes.append(item["original_sizes"].tolist())
        if objects:
            red = item["detector_pixel_values"][0]
            assert (red[:24, 28:].mean() > red[:24, :4].mean()).item() == mirrored[-1]
    assert {*mirrored} == {True, False}
    if objects:
        assert {*map(tuple, sizes)} == {(60, 80)}
    else:
        assert len({*map(tuple, sizes)}) > 1
        assert all(0.7 * 60 * 80 < height * width <= 60 * 80 for height, width in sizes)


def test_resuming_gives_the_same_weights(data_dir, start, tmp_path):
    """Interrupted after two of four steps and started again, against four steps at once: weights and average."""
    common = {"features": start / "plain", "corruption": 0, "save_steps": 2, "seed": 1, "lr_scheduler_type": "constant"}
    common |= {"ema_decay": 0.5}
    for output, steps in {"whole": [4], "parts": [2, 4]}.items():
        for max_steps in steps:
            settings = common | {"max_steps": max_steps}
            caption_script.main([*flags(data_dir, start, tmp_path / output, **settings), "--do_train"])
    for file in ("model.safetensors", "weight_average.safetensors"):
        whole, parts = (load_file(tmp_path / output / "checkpoint-4" / file) for output in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, atol=1e-6, rtol=1e-5)


def test_pixels_tune_the_named_part_of_the_region_model(data_dir, start, tmp_path):
    settings = {
        "tune_region_model": "conv_head|tag_classifier",
        "max_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    caption_script.main([*flags(data_dir, start, tmp_path / "run", save_steps=2, **settings), "--do_train"])
    before = load_file(start / "start" / "region_model" / "model.safetensors")
    after = load_file(tmp_path / "run" / "best" / "region_model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(after[name], before[name].to(after[name].dtype))}
    assert {name.split(".weight")[0].split(".bias")[0] for name in changed} == {"backbone.conv_head", "tag_classifier"}
    caption_script.main(  # and that folder can be scored, from pixels
        [*flags(data_dir, start, tmp_path / "scores", model_name_or_path=tmp_path / "run" / "best"), "--do_predict"]
    )
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["split"] == "test"
    [line] = (tmp_path / "scores" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["image_id"] == "photo5"


def test_learns_the_colours(data_dir, start, tmp_path):
    """A loss that falls, and different captions for different photos, after 200 steps."""
    settings = {"features": start / "plain", "max_steps": 200, "ema_decay": 0.5, "per_device_train_batch_size": 4}
    settings |= {"learning_rate": 3e-3, "lr_scheduler_type": "cosine", "warmup_steps": 20, "eval_steps": 200}
    caption_script.main([*flags(data_dir, start, tmp_path, **settings, eval_strategy="steps"), "--do_train"])
    pipeline = MengziOscarPipeline.from_pretrained(tmp_path / "best")
    photos = [str(data_dir / "images" / f"photo{number}.jpg") for number in range(3)]
    captions = [result["caption"] for result in pipeline.caption(photos)]
    assert [word in caption for word, caption in zip(COLOURS, captions, strict=True)] == [True] * 3, captions


def test_stores_hold_mirrored_photos(data_dir, start):
    plain, flipped = (RegionFeatureStore.open(start / name) for name in ("plain", "flipped"))
    assert len(plain) == len(flipped) == 6
    assert plain["photo0"]["original_size"].tolist() == [48, 64]
    assert plain.region_model == str(start / "start")


@pytest.mark.parametrize("objective", ["masked", "scst"])
def test_objectives_leave_a_best_folder_and_what_people_look_at(data_dir, start, tmp_path, objective):
    """One evaluation and three steps on the stored features, with the region model's words as tags."""
    settings = {"objective": objective, "features": start / "plain", "add_od_labels": True, "sc_train_sample_n": 2}
    settings |= {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 3, "logging_steps": 1}
    caption_script.main([*flags(data_dir, start, tmp_path, **settings), "--do_train"])
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    logged = {key for entry in state["log_history"] for key in entry}
    assert {"loss", "samples_per_second", "peak_memory_gb", "eval_loss", "eval_char_cider_d"} <= logged
    for picture in ("curves.png", "samples.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.size[0] > 400
    card = (tmp_path / "best" / "README.md").read_text(encoding="utf-8")
    for part in ("started from: start", "data: flickr8k_cn", "learning_rate 0.001", "transformers ", "char_cider_d"):
        assert part in card
    assert "photo4" in (tmp_path / "samples.md").read_text(encoding="utf-8")
    assert "| 3 |" in (tmp_path / "scores.md").read_text()
    predict = {"model_name_or_path": tmp_path / "best", "features": start / "plain", "add_od_labels": True}
    caption_script.main([*flags(data_dir, start, tmp_path / "predicted", **predict), "--do_predict"])
    [line] = (tmp_path / "predicted" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert row["image_id"] == "photo5"
    assert 0 < row["conf"] <= 1
    caption_script.main([*flags(data_dir, start, tmp_path / "int8", **predict), "--do_predict", "--dtype", "int8"])
    [line] = (tmp_path / "int8" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    assert 0 < abs(json.loads(line)["conf"] - row["conf"]) < 0.1


@pytest.mark.parametrize("recipe", ["caption_coco", "caption_aic_icc", "caption_scst"])
def test_published_recipes_run_an_epoch(recipe, data, tiny_checkpoint, tmp_path, monkeypatch):
    """On files in the original layout, with the fixtures' images as regions; then the published inference."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    name = "aic_icc" if recipe == "caption_aic_icc" else "coco_caption-oscar"
    folder = data(name)
    if name == "coco_caption-oscar":
        shutil.copy(folder / "test.yaml", folder / "val.yaml")
    splits = build(name, folder)
    with RegionFeatureStore.writer(tmp_path / "store", labels=["", "狗", "猫"]) as writer:
        for image_id in {image_id for split in splits.values() for image_id in split["image_id"]}:
            regions = {
                "region_features": torch.randn(5, 262).numpy(),
                "class_ids": torch.tensor([1, 2, 0, 1, 2]).numpy(),
            }
            writer.add(image_id, regions)
    common = {"features": tmp_path / "store", "dataset": name.partition("-")[0]}
    common |= {"per_device_train_batch_size": 4, "dataloader_num_workers": 0, "num_beams": 2, "max_gen_length": 6}
    start = {"model_name_or_path": tiny_checkpoint, "num_train_epochs": 1, "sc_train_sample_n": 2}
    steps = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    command = flags(folder, tmp_path, tmp_path / "run", **common, **start, **steps)
    caption_script.main(["--do_train", "--recipe", str(REPOSITORY / f"train/recipes/{recipe}.yaml"), *command])
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    if recipe != "caption_scst":
        assert (config["label_smoothing"], config["drop_worst_ratio"], config["drop_worst_after"]) == (0.1, 0.2, 20000)
    assert config["tie_weights"]
    assert config["freeze_embedding"]
    predict = {"model_name_or_path": tmp_path / "run" / "best", "test_split": "validation"}
    command = flags(folder, tmp_path, tmp_path / "predicted", **common, **predict)
    recipe = ["--recipe", str(REPOSITORY / "train" / "recipes" / "caption_predict.yaml")]
    config = [] if name == "coco_caption-oscar" else ["--dataset_config", "default"]
    caption_script.main([*recipe, *command, *config])
    assert (tmp_path / "predicted" / "captions.jsonl").read_text(encoding="utf-8").count("\n") == len(
        splits["validation"]
    )


def test_early_stopping(data_dir, start, tmp_path):
    """With a learning rate of 0 no evaluation is better than that before training: two more, then the end."""
    settings = {"features": start / "plain", "learning_rate": 0, "early_stopping_patience": 2, "max_steps": 20}
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": 1}
    caption_script.main([*flags(data_dir, start, tmp_path, **settings), "--do_train"])
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_an_interrupted_checkpoint_does_not_count(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (1, 9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    for file in ("9/weight_average.safetensors", "10/no_weight_average", "11/.weight_average.safetensors"):
        (tmp_path / f"checkpoint-{file}").touch()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_what_is_missing_is_said(data_dir, start, tmp_path):
    with pytest.raises(SystemExit, match="--dataset aic_icc needs --data_dir"):
        load_splits(CaptionArguments(model_name_or_path="x", dataset="aic_icc"))
    with pytest.raises(SystemExit, match="--features is missing"):
        open_stores(CaptionArguments(model_name_or_path="x", dataset="aic_icc"))
    with pytest.raises(SystemExit, match="works on stored features"):
        caption_script.main([*flags(data_dir, start, tmp_path, objective="scst"), "--do_train"])
    settings = {"objective": "scst", "features": start / "plain", "sentences": "sentences.txt"}
    with pytest.raises(SystemExit, match="--sentences go with --objective dense"):
        caption_script.main([*flags(data_dir, start, tmp_path, **settings), "--do_train"])


def test_tags_have_the_words_of_the_store_or_of_the_region_model(tiny_checkpoint, tmp_path):
    stores, classes = {}, torch.ones(1, dtype=torch.long).numpy()
    for name, labels in {"says": ["", "马"], "silent": None, "without": ["", "马"]}.items():
        with RegionFeatureStore.writer(tmp_path / name, labels=labels) as writer:
            tags = {} if name == "without" else {"class_ids": classes}
            writer.add("1", {"region_features": torch.zeros(1, 22).numpy()} | tags)
        stores[name] = RegionFeatureStore.open(tmp_path / name)
    assert tag_words_of(stores["says"], str(tiny_checkpoint)) == ["", "马"]
    assert tag_words_of(stores["silent"], str(tiny_checkpoint)) == ["", "狗", "猫", "草地"]
    tiny_captioner().save_pretrained(tmp_path / "alone")
    assert tag_words_of(stores["says"], tmp_path / "alone") == ["", "马"]
    with pytest.raises(
        ValueError, match="silent does not name its tags, nor does --model_name_or_path .*names no region model"
    ):
        tag_words_of(stores["silent"], tmp_path / "alone")
    with pytest.raises(ValueError, match="without holds no tags"):
        tag_words_of(stores["without"], tiny_checkpoint)


def test_arguments_seed():
    def drawn(seed):
        parse_arguments(
            TrainingArguments, description="", arguments=["--output_dir", "x", "--use_cpu", f"--seed={seed}"]
        )
        return torch.rand(1).item()

    assert drawn(1) == drawn(1) != drawn(2)


def test_bf16_needs_no_word_about_the_cpu():
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    [training] = parse_arguments(TrainingArguments, description="", arguments=["--output_dir", "x", "--bf16"])
    assert training.use_cpu
    assert training.device.type == "cpu"


def test_weight_average_is_the_average(tmp_path):
    model = torch.nn.Linear(2, 1)
    average = WeightAverage(decay=0.9)
    state = type("State", (), {"global_step": 0})()
    average.on_train_begin(None, state, None, model=model)
    expected = model.weight.detach().clone()
    for step in range(1, 4):
        model.weight.data += 1
        state.global_step = step
        average.on_step_end(None, state, None, model=model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    now = model.weight.detach().clone()
    with average.applied_to(model):
        torch.testing.assert_close(model.weight.detach(), expected)
    torch.testing.assert_close(model.weight.detach(), now)


@pytest.mark.parametrize(
    "recipe", sorted((REPOSITORY / "train" / "recipes").glob("*.yaml")), ids=lambda path: path.stem
)
def test_recipes_of_captioning_name_flags_only(recipe):
    if not recipe.stem.startswith(("caption", "mini_objects", "own_photos")):
        pytest.skip("a recipe of another script, tested there")
    needed = ["--output_dir", "x", "--model_name_or_path", "y", "--recipe", str(recipe), "--use_cpu"]
    flags = (CaptionArguments, TagSentenceArguments, TrainingArguments)
    options, _, training = parse_arguments(*flags, description="", arguments=needed)
    published = {"caption_coco", "caption_aic_icc"}
    assert (training.learning_rate == 3e-5 and options.drop_worst_after == 20000) == (recipe.stem in published)


def test_a_recipe_is_overridden_and_checked(tmp_path, capsys):
    recipe = REPOSITORY / "train" / "recipes" / "caption_coco.yaml"
    needed = ["--output_dir", "x", "--model_name_or_path", "y", "--recipe", str(recipe), "--use_cpu"]
    options, training = parse_arguments(
        CaptionArguments, TrainingArguments, description="", arguments=[*needed, "--learning_rate", "1"]
    )
    assert training.learning_rate == 1
    assert options.objective == "masked"
    wrong = Path(tmp_path / "wrong.yaml")
    wrong.write_text("learning_rat: 1\n")
    with pytest.raises(SystemExit):
        parse_arguments(CaptionArguments, TrainingArguments, description="", arguments=["--recipe", str(wrong)])
    assert "'learning_rat' is not a flag" in capsys.readouterr().err
