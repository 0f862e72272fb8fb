"""Answers to the questions of a split, given by all processes together, and the files that hold them."""

import json
from collections import Counter, defaultdict

import torch
from tqdm.auto import tqdm

from .report import write_beside, write_rows
from .trainer import in_order, share_of

BEST = 5  # answers in the file of confidences, as `MengziOscarPipeline.ask` gives


@torch.inference_mode()
def answer_questions(model, rows, collator, training, options) -> list[dict]:
    """[{"question_id", "image_id", "question", "answer", "probability", "answers"}], in the order of the rows.

    Every process answers its share; `answers` are the best five with their probabilities, as `ask` gives them.
    """
    model.eval()
    names, several_right = model.config.id2label, model.config.loss_type == "bce"
    share = list(share_of(min(len(rows), options.max_eval_rows or len(rows))))
    predictions, size = [], training.eval_batch_size
    for first in tqdm(range(0, len(share), size), desc="answers", leave=False, disable=training.disable_tqdm):
        indices = share[first : first + size]
        batch = collator([rows[index] for index in indices])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training.bf16):
            logits = model(**batch).logits.float()
        best = (logits.sigmoid() if several_right else logits.softmax(dim=-1)).topk(min(BEST, logits.shape[-1]))
        for index, probabilities, labels in zip(indices, best.values.tolist(), best.indices.tolist(), strict=True):
            row = rows.rows[index]
            question = {name: row.get(name) for name in ("question_id", "image_id", "question")}
            answers = [
                {"answer": names[label], "probability": probability}
                for probability, label in zip(probabilities, labels, strict=True)
            ]
            predictions.append((index, question | answers[0] | {"answers": answers}))
    return in_order(predictions)


def without_looking(train, rows, answers) -> dict[str, list[str]]:
    """What a model must beat: the usual answer of the training questions, and the usual one to the same question."""
    counts, counts_by_question = Counter(), defaultdict(Counter)
    for row in train.select_columns(["question", "labels"]):
        counts.update(row["labels"][:1])
        counts_by_question[row["question"]].update(row["labels"][:1])
    usual = [(counts_by_question.get(row["question"]) or counts).most_common(1)[0][0] for row in rows]
    return {
        "usual_answer": [answers[counts.most_common(1)[0][0]]] * len(rows),
        "usual_answer_to_the_question": [answers[label] for label in usual],
    }


def write_answers(folder, predictions, submission_row):
    """submission.json for the official server, confidence.jsonl with the probabilities of the best answers."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "confidence.jsonl", predictions)
    without_id = [number for number, row in enumerate(predictions, start=1) if row["question_id"] is None]
    if without_id:
        print(f"no submission.json: row {without_id[0]} of the questions has no question_id")
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
