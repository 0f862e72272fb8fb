"""train/vqa.py and train/gqa.py on tiny data: an epoch by the published recipe, resume, answers in official formats."""

import json

import gqa
import numpy as np
import pytest
import torch
import vqa
from common.arguments import parse_arguments
from common.collators import PairCollator, PairRows
from common.question_answering import QuestionArguments, targets_of
from common.write_answers import answer_questions
from conftest import REPOSITORY, shared_path
from goldens import load_case
from safetensors.torch import load_file
from transformers import BertTokenizer, TrainingArguments

from datasets_scripts.gqa import Gqa
from datasets_scripts.vqa import Vqa
from modeling_mengzi_oscar import (
    MengziOscarForVisualQuestionAnswering,
    MengziOscarPipeline,
    MengziOscarProcessor,
    RegionFeatureStore,
)
from modeling_mengzi_oscar.modeling_mengzi_oscar import classification_loss

COLOURS = ["红", "黑", "白"]
FIXTURES = REPOSITORY / "tests" / "datasets_scripts" / "fixtures"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Oscar's layout: photos of one colour, asked for it, and whether they are white."""
    folder = tmp_path_factory.mktemp("vqa")
    rows = [
        row
        for number in range(6)
        for row in (
            {"q": "马是什么颜色？", "an": [number % 3], "s": [1.0], "answer_type": "colour"},
            {"q": "马是白的吗？", "an": [3 if number % 3 == 2 else 4], "s": [0.9], "answer_type": "yes/no"},
        )
    ]
    for number, row in enumerate(rows):
        row |= {"o": "马;草地", "img_id": f"photo{number // 2}", "q_id": number}
    for file in ("train2014_qla.json", "val2014_qla.json", "test2015_qla.json"):
        (folder / file).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    vocabulary = {answer: label for label, answer in enumerate([*COLOURS, "是", "不是"])}
    (folder / "ans2label.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    return folder


def write_store(path, image_ids, shift=0.0):
    """Four regions an image; the first three numbers say its colour."""
    generator = np.random.default_rng(0)
    with RegionFeatureStore.writer(path) as store:
        for number, image_id in enumerate(image_ids):
            features = generator.normal(0, 0.1, (4, 262)).astype(np.float32) + shift
            features[:, number % 3] += 3
            store.add(image_id, {"region_features": features})
    return path


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    ids = [f"photo{number}" for number in range(6)]
    return [str(write_store(folder / "plain", ids)), str(write_store(folder / "augmented", ids, shift=0.05))]


def flags(start, output, features, **settings):
    settings = {
        "model_name_or_path": start,
        "output_dir": output,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": "true",
        "dataloader_num_workers": 0,
    } | settings
    return [f"--{name}={value}" for name, value in settings.items()] + ["--features", *features]


def vqa_flags(start, output, features, data_dir, **settings):
    recipe = ["--recipe", str(REPOSITORY / "train" / "recipes" / "vqa.yaml")]
    return [*recipe, *flags(start, output, features, data_dir=data_dir, **settings)]


@pytest.fixture(scope="module")
def trained(tiny_checkpoint, data_dir, features, tmp_path_factory):
    """Forty epochs of the VQA recipe: enough to know the colours."""
    output = tmp_path_factory.mktemp("run") / "run"
    settings = {"num_train_epochs": 40, "eval_strategy": "no", "save_strategy": "no"}
    settings |= {"learning_rate": 5e-3, "drop_out": 0.0, "logging_steps": 50}
    vqa.main(["--do_train", *vqa_flags(tiny_checkpoint, output, features, data_dir, **settings)])
    return output


def test_one_epoch_of_the_vqa_recipe(tiny_checkpoint, data_dir, features, tmp_path):
    vqa.main(["--do_train", *vqa_flags(tiny_checkpoint, tmp_path / "run", features, data_dir, num_train_epochs=1)])
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    logged = {key for entry in state["log_history"] for key in entry}
    assert {"eval_loss", "eval_accuracy", "eval_accuracy_colour", "eval_accuracy_yes_no"} <= logged
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "红", "1": "黑", "2": "白", "3": "是", "4": "不是"}
    assert (config["loss_type"], config["hidden_dropout_prob"]) == ("bce", 0.3)
    settings = json.loads((tmp_path / "run" / "best" / "processor_config.json").read_text())
    assert settings["max_tags"] == 0  # no --add_od_labels: it is asked as it learnt, without tags
    assert "马是什么颜色" in (tmp_path / "run" / "samples.md").read_text(encoding="utf-8")


def test_learns_and_answers_in_the_official_format(trained, data_dir, features, tmp_path, capsys):
    arguments = vqa_flags(trained / "best", tmp_path, features[:1], data_dir)
    vqa.main(["--do_predict", *arguments])
    scores = json.loads((tmp_path / "scores.json").read_text())
    # An answer counts as much as people agreed on it: 1 for the colours, 0.9 for yes and no.
    assert (scores.pop("split"), scores.pop("questions")) == ("test", 12)
    # Without looking: 不是 is the usual answer (4 of 12), and right for 4 of the 6 yes/no questions.
    usual = {"accuracy": 0.3, "accuracy_colour": 0, "accuracy_yes_no": 0.6}
    assert scores.pop("usual_answer") == pytest.approx(usual)
    usual = {"accuracy": (2 + 3.6) / 12, "accuracy_colour": 1 / 3, "accuracy_yes_no": 0.6}
    assert scores.pop("usual_answer_to_the_question") == pytest.approx(usual)
    assert scores == pytest.approx({"accuracy": 0.95, "accuracy_colour": 1.0, "accuracy_yes_no": 0.9})
    assert json.loads(capsys.readouterr().out)["accuracy"] == scores["accuracy"]
    submission = json.loads((tmp_path / "submission.json").read_text(encoding="utf-8"))
    assert submission[:2] == [{"question_id": 0, "answer": "红"}, {"question_id": 1, "answer": "不是"}]
    assert [row["question_id"] for row in submission] == list(range(12))
    confident = [json.loads(line) for line in (tmp_path / "confidence.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["answer"] for row in confident] == [row["answer"] for row in submission]
    assert all(row["answers"][0]["probability"] == row["probability"] > 0.5 for row in confident)


def test_answers_of_a_batch_are_those_of_each_row_alone(trained, data_dir, features, tmp_path):
    builder = Vqa(config_name="oscar", data_dir=str(data_dir), cache_dir=str(tmp_path))
    builder.download_and_prepare()
    rows = PairRows(builder.as_dataset(split="test"), [RegionFeatureStore.open(features[0])])
    model = MengziOscarForVisualQuestionAnswering.from_pretrained(trained / "best", dtype="float32").eval()
    processor = MengziOscarProcessor.from_pretrained(trained / "best")
    training = TrainingArguments(tmp_path, use_cpu=True, per_device_eval_batch_size=5, disable_tqdm=True)
    options = QuestionArguments("", "")
    predictions = answer_questions(model, rows, PairCollator(processor), training, options)
    for row, prediction in zip(rows.rows, predictions, strict=True):
        inputs = processor(
            text=row["question"],
            tags=row["tags"],
            regions=rows.stores.read(rows.rows["image_id"].index(row["image_id"]))["region_features"],
            layout="pair",
        )
        probabilities = model(**inputs).logits[0].sigmoid()
        assert prediction["answer"] == model.config.id2label[int(probabilities.argmax())]
        assert prediction["probability"] == pytest.approx(probabilities.max().item(), abs=1e-5)


def test_resuming_gives_the_same_weights(tiny_checkpoint, data_dir, features, tmp_path):
    """Stopped after two of four steps and started again, against four at once, with draws of stores and dropout."""
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "lr_scheduler_type": "constant"}
    for output, steps in {"whole": [4], "parts": [2, 4]}.items():
        for max_steps in steps:
            arguments = vqa_flags(
                tiny_checkpoint, tmp_path / output, features, data_dir, **settings, max_steps=max_steps
            )
            vqa.main(["--do_train", *arguments])
    whole, parts = (
        load_file(tmp_path / output / "checkpoint-4" / "model.safetensors") for output in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_head_in_a_repo_with_a_captioner(trained, tiny_checkpoint, tmp_path):
    """The best folder, as ask/ beside a captioner, answers about a photo."""
    import shutil

    from PIL import Image

    from modeling_mengzi_oscar.hub import assemble, check_repo

    repo = tmp_path / "repo"
    shutil.copytree(tiny_checkpoint, repo)
    (repo / "ask").mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copy(trained / "best" / name, repo / "ask" / name)
    shutil.copy(trained / "best" / "vocab.txt", repo / "ask" / "vocab.txt")
    assemble(repo)
    check_repo(repo)
    answers = MengziOscarPipeline.from_pretrained(repo).ask(Image.new("RGB", (40, 30), "red"), "马是什么颜色？")
    assert len(answers) == 5
    assert {answer["answer"] for answer in answers} == {"红", "黑", "白", "是", "不是"}


def test_gqa_an_epoch_then_a_submission(tiny_checkpoint, tmp_path):
    store = str(write_store(tmp_path / "store", ["2354786", "n161313", "n2"]))
    recipe = ["--recipe", str(REPOSITORY / "train" / "recipes" / "gqa.yaml")]
    common = {"data_dir": FIXTURES / "gqa", "dataset_config": "oscar_balanced", "validation_config": "oscar_all"}
    arguments = flags(tiny_checkpoint, tmp_path / "run", [store], **common, num_train_epochs=1)
    gqa.main(["--do_train", *recipe, *arguments])
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text(encoding="utf-8"))
    assert config["loss_type"] == "xe"
    settings = {"data_dir": FIXTURES / "gqa", "dataset_config": "oscar_all", "test_split": "submission"}
    gqa.main(["--do_predict", *flags(tmp_path / "run" / "best", tmp_path / "answers", [store], **settings)])
    submission = json.loads((tmp_path / "answers" / "submission.json").read_text(encoding="utf-8"))
    assert [row["questionId"] for row in submission] == ["201971873", "201971874"]
    assert {row["prediction"] for row in submission} <= set(config["id2label"].values())
    assert json.loads((tmp_path / "answers" / "confidence.jsonl").read_text().splitlines()[0])["image_id"] == "n2"


def test_rows_without_ids_are_scored_but_make_no_submission(trained, features, data_dir, tmp_path, capsys):
    rows = json.loads((data_dir / "test2015_qla.json").read_text(encoding="utf-8"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ans2label.json").write_bytes((data_dir / "ans2label.json").read_bytes())
    rows = [{name: value for name, value in row.items() if name != "q_id"} for row in rows]
    (folder / "test2015_qla.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    vqa.main(["--do_predict", *vqa_flags(trained / "best", tmp_path / "out", features[:1], folder)])
    assert "row 1 of the questions has no question_id" in capsys.readouterr().out
    assert not (tmp_path / "out" / "submission.json").exists()
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["accuracy"] == pytest.approx(0.95)


def test_a_captioner_cannot_answer(tiny_checkpoint, data_dir, features, tmp_path):
    with pytest.raises(SystemExit, match="do not fit MengziOscarForVisualQuestionAnswering"):
        vqa.main(["--do_predict", *vqa_flags(tiny_checkpoint, tmp_path, features[:1], data_dir)])


def test_a_split_that_is_not_there_is_said(tiny_checkpoint, data_dir, features, tmp_path):
    with pytest.raises(SystemExit, match="no split 'trainval'; it has train, validation, test"):
        vqa.main(["--do_train", *vqa_flags(tiny_checkpoint, tmp_path, features, data_dir, train_split="trainval")])


def test_tags_have_the_words_of_the_region_model(tiny_checkpoint, data_dir, tmp_path):
    """The store does not name them; the rows' own tags are left for them."""
    with RegionFeatureStore.writer(tmp_path / "store") as writer:
        for number in range(6):
            features = {"region_features": np.zeros((1, 262), np.float32), "class_ids": np.array([1 + number % 3])}
            writer.add(f"photo{number}", features)
    stores, settings = [str(tmp_path / "store")], {"num_train_epochs": 1, "add_od_labels": "true"}
    seen = []
    lay_out = MengziOscarProcessor.__call__

    def look(self, *args, tags=None, **kwargs):
        seen.extend(tags)
        return lay_out(self, *args, tags=tags, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MengziOscarProcessor, "__call__", look)
        vqa.main(["--do_train", *vqa_flags(tiny_checkpoint, tmp_path / "run", stores, data_dir, **settings)])
    assert {word for words in seen for word in words} == {"狗", "猫", "草地"}


def test_scores_by_type_and_by_the_official_rule():
    answers = ["两个", "红色", "没有"]
    rows = [
        {"labels": [0], "scores": [1.0], "answer_type": "number", "answers": ["2"] * 10},
        {"labels": [1, 2], "scores": [0.9, 0.3], "answer_type": "other", "answers": ["红色"] * 3 + ["没有"] * 7},
        {"labels": [2], "scores": [0.6], "answer_type": "other", "answers": ["没有"] * 2 + ["红"] * 8},
    ]
    result = vqa.score(["两个", "红色", "红色"], rows, answers, "zh")
    assert result["accuracy"] == pytest.approx(1.9 / 3)
    assert (result["accuracy_number"], result["accuracy_other"]) == (1.0, pytest.approx(0.45))
    # 两个 is 2 in Chinese normalisation: 1; three of ten said 红色: (3 x 2/3 + 7 x 1) / 10; nobody said 红色: 0.
    assert result["official_accuracy"] == pytest.approx((1 + 0.9 + 0) / 3)
    rows = [{"labels": [0, 1], "structural": "query"}, {"labels": [2], "structural": "verify"}]
    expected = {"accuracy": 0.5, "accuracy_query": 1.0, "accuracy_verify": 0.0}
    assert gqa.score(["两个", "红色"], rows, answers) == expected


@pytest.mark.parametrize(
    ("recipe", "arguments_class", "published"),
    [
        ("vqa", vqa.VqaArguments, (5e-5, 32, 25)),
        ("gqa", gqa.GqaArguments, (5e-5, 48, 5)),
        ("mini_ask", vqa.VqaArguments, None),
    ],
)
def test_recipes_name_flags_only(recipe, arguments_class, published):
    path = REPOSITORY / "train" / "recipes" / f"{recipe}.yaml"
    needed = ["--output_dir", "x", "--model_name_or_path", "y", "--use_cpu", "--recipe", str(path)]
    options, training = parse_arguments(arguments_class, TrainingArguments, description="", arguments=needed)
    rates = (training.learning_rate, training.per_device_train_batch_size, training.num_train_epochs)
    assert (rates == published and options.drop_out == 0.3 and training.weight_decay == 0.05) == (published is not None)


@pytest.mark.parametrize(
    ("case", "call", "builder"),
    [
        ("data_vqa", "val_pt", lambda folder: Vqa(config_name="oscar", data_dir=folder)),
        ("data_vqa", "val_text_a", lambda folder: Vqa(config_name="oscar", data_dir=folder)),
        ("data_gqa", "val", lambda folder: Gqa(config_name="oscar_balanced", data_dir=folder)),
    ],
)
def test_tensors_of_the_original(case, call, builder, tmp_path):
    """Token ids, segments, masks, targets and regions of every validation item, as the original made them."""
    folder, golden = (
        shared_path(f"parity/oscar/{case}"),
        load_file(shared_path(f"parity/oscar/{case}/outputs.safetensors")),
    )
    split = builder(str(folder))
    split.download_and_prepare()
    rows = split.as_dataset(split="validation")
    feats = torch.load(next(folder.glob("*val*feats.pt" if case == "data_vqa" else "*feats.pt")), weights_only=True)
    with RegionFeatureStore.writer(tmp_path / "store", dtype="float32") as store:
        for image_id, regions in feats.items():
            store.add(str(image_id), {"region_features": regions})
    store = RegionFeatureStore.open(tmp_path / "store")
    processor = MengziOscarProcessor(
        BertTokenizer.from_pretrained(folder),
        layout="pair",
        max_length=16,
        max_regions=5,
        max_tags=0 if "_a" in call else None,
    )
    loss_type = "xe" if case == "data_gqa" else "bce"
    items = PairRows(rows, [store], targets=lambda row: {"labels": targets_of(row, 7, loss_type)})
    for number in range(len(items)):
        batch = PairCollator(processor)([items[number]])
        length, regions = batch["input_ids"].shape[1], batch["region_features"].shape[1]
        item = {
            key.rpartition(f"item{number}_")[2]: value
            for key, value in golden.items()
            if f"{call}/item{number}_" in key
        }
        assert batch["input_ids"][0].tolist() == item["input_ids"][:length].tolist()
        assert not item["input_ids"][length:].any()
        assert batch["token_type_ids"][0].tolist() == item["segment_ids"][:length].tolist()
        assert item["input_mask"].sum() == length + int(batch["region_attention_mask"].sum())
        if "img_feat" in item:
            torch.testing.assert_close(batch["region_features"][0], item["img_feat"][:regions])
            assert not item["img_feat"][regions:].any()
            expected = item["label_id"][0] if loss_type == "xe" else item["target_scores"]
            torch.testing.assert_close(batch["labels"][0], expected)


def test_loss_and_metric_of_the_original():
    _, calls = load_case("data_vqa")
    call = calls["metric"]
    logits, targets = call["inputs"]["logits"], call["inputs"]["targets"]
    assert classification_loss(logits, targets, "bce").item() == pytest.approx(call["expect"]["bce_loss"], abs=2e-5)
    answers = [f"answer {number}" for number in range(7)]
    rows = [{"labels": list(range(7)), "scores": target} for target in targets.tolist()]
    given = [answers[index] for index in logits.argmax(dim=1)]
    assert vqa.score(given, rows, answers, "none")["accuracy"] == pytest.approx(call["expect"]["accuracy"])
