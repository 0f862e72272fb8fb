"""What VQA and GQA share: a question, an image and its tags in, one of N known answers out.

Sources: oscar/run_vqa.py and oscar/run_gqa.py of Oscar and VinVL. Layout [CLS] question [SEP] tags [SEP], regions.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import PartialState
from arguments import RunArguments, load_splits, open_stores
from collators import PairCollator, PairRows
from report import write_beside
from tqdm.auto import tqdm
from trainer import OscarTrainer, in_order, share_of
from transformers import set_seed

from modeling_mengzi_oscar import MengziOscarForVisualQuestionAnswering, MengziOscarProcessor
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.pipeline_mengzi_oscar import CheckpointError, load_checked

BEST = 5  # answers in the file of confidences, as `MengziOscarPipeline.ask` gives


@dataclass
class QuestionArguments(RunArguments):
    loss_type: str = field(default="bce", metadata={"help": "several answers or one", "choices": ["bce", "kl", "xe"]})
    classifier: str = field(default="linear", metadata={"help": "head", "choices": ["linear", "mlp"]})
    cls_hidden_scale: int = field(default=3, metadata={"help": "mlp: its middle is so many times the hidden size"})
    max_seq_length: int = field(default=128, metadata={"help": "tokens of question and tags together"})
    max_tags: int | None = field(default=None, metadata={"help": "tag words of an image; 0 = questions alone"})
    train_split: str = field(default="train", metadata={"help": "split to train on; VQA also has trainval"})
    validation_config: str | None = field(
        default=None, metadata={"help": "validation questions of another configuration, as GQA's balanced ones"}
    )
    num_hidden_layers: int | None = field(default=None, metadata={"help": "keep only the first so many layers"})


def run(task, options, training, score, submission_row):
    """Trains, or with --do_predict answers the questions of --test_split.

    Args:
        task: "vqa" or "gqa".
        score: (answers given, rows, all answers) -> {metric: number}, with "accuracy" in it.
        submission_row: (question id, answer) -> a row of the file that the official server takes.
    """
    # 1. Data
    splits = load_splits(options)
    if options.validation_config is not None:
        splits["validation"] = load_splits(replace(options, dataset_config=options.validation_config))["validation"]
    store, *augmented = open_stores(options)
    labels = label_texts(store) if options.add_od_labels else None
    answers = next(iter(splits.values())).features["labels"].feature.names

    def rows_of(split, **more):
        def targets(row):
            return {"labels": targets_of(row, len(answers), options.loss_type)}

        return PairRows(splits[split], store, labels=labels, targets=targets, seed=training.seed, **more)

    # 2. Answers only
    if training.do_predict:
        model, processor = load_trained(options, training)
        rows = PairRows(splits[options.test_split], store, labels=labels)
        predictions = answer_questions(model, rows, PairCollator(processor), training, options)
        if PartialState().is_main_process:
            write_answers(Path(training.output_dir), predictions, submission_row)
            labelled = [(p["answer"], row) for p, row in zip(predictions, rows.rows, strict=False) if row["labels"]]
            if labelled:
                given, right = map(list, zip(*labelled, strict=True))
                results = {"split": options.test_split, "questions": len(right)} | score(given, right, answers)
                if options.train_split in splits:
                    blind = without_looking(splits[options.train_split], right, answers)
                    results |= {name: score(guesses, right, answers) for name, guesses in blind.items()}
                write_beside(Path(training.output_dir) / "scores.json", json.dumps(results, indent=2))
                print(json.dumps(results, indent=2))
        return

    # 3. Model
    model, processor = start(options, training, answers)
    collator = PairCollator(processor)
    validation = rows_of("validation")

    # 4. Evaluation: the answers to the validation questions
    def evaluate_answers(model):
        predictions = answer_questions(model, validation, collator, training, options)
        rows = validation.rows.select(range(len(predictions)))
        given = [prediction["answer"] for prediction in predictions]
        samples = [sample_of(*pair, answers) for pair in zip(predictions, rows, strict=True)]
        return score(given, list(rows), answers), samples

    # 5. Train
    OscarTrainer(
        model=model,
        args=training,
        options=options,
        task=task,
        best_metric="accuracy",
        data_collator=collator,
        train_dataset=rows_of(options.train_split, augmented=augmented),
        eval_dataset=validation,
        evaluate_task=evaluate_answers,
        save=lambda folder, card: save_checkpoint(folder, model, processor, card=card, task=task),
    ).run()


def label_texts(store):
    """The words of a store's tags.

    Raises:
        SystemExit: it does not say them.
    """
    if store.labels is None:
        raise SystemExit(f"{store.path} does not name its labels: leave --add_od_labels out")
    return store.labels


def start(options, training, answers):
    """A model that begins from a checkpoint of any task, with a fresh head for these answers unless it has theirs."""
    settings = {name: getattr(options, name) for name in ("loss_type", "classifier", "cls_hidden_scale")}
    if options.drop_out is not None:
        settings["hidden_dropout_prob"] = options.drop_out
    if options.num_hidden_layers is not None:
        settings["num_hidden_layers"] = options.num_hidden_layers
    set_seed(training.seed)  # the fresh head is random
    # On CPUs the fused attention is slower to train at these sizes.
    attention = "eager" if training.device.type == "cpu" else "sdpa"
    model = MengziOscarForVisualQuestionAnswering.from_pretrained(
        options.model_name_or_path,
        dtype="float32",
        attn_implementation=attention,
        id2label=dict(enumerate(answers)),
        label2id={answer: number for number, answer in enumerate(answers)},
        ignore_mismatched_sizes=True,
        **settings,
    )
    processor = MengziOscarProcessor.from_pretrained(options.model_name_or_path)
    processor.layout, processor.max_regions = "pair", options.max_img_seq_length
    processor.max_length = options.max_seq_length
    if options.max_tags is not None:
        processor.max_tags = options.max_tags
    return model, processor


def load_trained(options, training):
    """The model to answer with, and its processor as it was trained.

    Raises:
        SystemExit: it was never trained to answer.
    """
    try:
        model = load_checked(MengziOscarForVisualQuestionAnswering, options.model_name_or_path, dtype="float32")
    except CheckpointError as error:
        raise SystemExit(f"--model_name_or_path {error}") from None
    return model.to(training.device), MengziOscarProcessor.from_pretrained(options.model_name_or_path)


def targets_of(row, num_answers, loss_type) -> torch.Tensor:
    """Soft scores (N,), of an answer given twice the later; for cross entropy the first answer, as in Oscar."""
    if loss_type == "xe":
        return torch.tensor(row["labels"][0] if row["labels"] else -100)
    target = torch.zeros(num_answers)
    for label, value in zip(row["labels"], row.get("scores") or [1.0] * len(row["labels"]), strict=True):
        target[label] = value
    return target


@torch.inference_mode()
def answer_questions(model, rows, collator, training, options) -> list[dict]:
    """[{"question_id", "image_id", "question", "answer", "probability", "answers"}], in the order of the rows.

    Every process answers its share; `answers` are the best five with their probabilities, as `ask` gives them.
    """
    model.eval()
    names, several = model.config.id2label, model.config.loss_type == "bce"
    mine = list(share_of(min(len(rows), options.max_eval_rows or len(rows))))
    predictions, size = [], training.eval_batch_size
    for first in tqdm(range(0, len(mine), size), desc="answers", leave=False, disable=training.disable_tqdm):
        numbers = mine[first : first + size]
        batch = collator([rows[number] for number in numbers])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training.bf16):
            logits = model(**batch).logits.float()
        best = (logits.sigmoid() if several else logits.softmax(dim=-1)).topk(min(BEST, logits.shape[-1]))
        for number, values, labels in zip(numbers, best.values.tolist(), best.indices.tolist(), strict=True):
            row = rows.rows[number]
            answers = [{"answer": names[i], "probability": p} for p, i in zip(values, labels, strict=True)]
            about = {name: row.get(name) for name in ("question_id", "image_id", "question")}
            predictions.append((number, about | answers[0] | {"answers": answers}))
    return in_order(predictions)


def without_looking(train, rows, answers) -> dict[str, list[str]]:
    """What a model must beat: the usual answer of the training questions, and the usual one to the same question."""
    usual, usual_to = Counter(), defaultdict(Counter)
    for row in train.select_columns(["question", "labels"]):
        usual.update(row["labels"][:1])
        usual_to[row["question"]].update(row["labels"][:1])
    best = [(usual_to.get(row["question"]) or usual).most_common(1)[0][0] for row in rows]
    return {
        "usual_answer": [answers[usual.most_common(1)[0][0]]] * len(rows),
        "usual_answer_to_the_question": [answers[label] for label in best],
    }


def write_answers(folder, predictions, submission_row):
    """submission.json for the official server, confidence.jsonl with the probabilities of the best answers."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions]
    write_beside(folder / "confidence.jsonl", "".join(lines))
    without = [number for number, row in enumerate(predictions, start=1) if row["question_id"] is None]
    if without:
        print(f"no submission.json: row {without[0]} of the questions has no question_id")
        return
    rows = [submission_row(row["question_id"], row["answer"]) for row in predictions]
    write_beside(folder / "submission.json", json.dumps(rows, ensure_ascii=False))


def sample_of(prediction, row, answers):
    """What the report shows of a validation question."""
    given = f"{row['question']} {prediction['answer']} ({prediction['probability']:.0%})"
    right = "答案：" + "、".join(answers[label] for label in row["labels"])
    return {
        "image_id": row["image_id"],
        "image": (row.get("image") or {}).get("path"),
        "lines": [given, right],
    }


def mean_by(values, kinds, prefix) -> dict:
    """{prefix_kind: mean of its values}; rows without a kind are left out."""
    groups = {}
    for value, kind in zip(values, kinds, strict=True):
        if kind is not None:
            groups.setdefault(f"{prefix}_{kind}".replace("/", "_").replace(" ", "_"), []).append(value)
    return {name: sum(group) / len(group) for name, group in sorted(groups.items())}
