"""Fine-tunes on NLVR2 (is this sentence true of these two photos?), or judges sentences with a model that was.

    accelerate launch train/nlvr2.py --do_train --recipe train/recipes/nlvr2.yaml --model_name_or_path mengzi-oscar \\
        --data_dir datasets/nlvr2 --features stores/nlvr2 --output_dir outputs/nlvr2
    python train/nlvr2.py --do_predict --model_name_or_path outputs/nlvr2/best --data_dir datasets/nlvr2 \\
        --features stores/nlvr2 --output_dir outputs/judged

The sentence stands once before the tags and regions of each photo; the two pooled states go to the classifier together
(oscar/run_nlvr.py, pair mode). --do_predict writes predictions.jsonl with probabilities, and scores.json.
"""

from dataclasses import dataclass
from pathlib import Path

import common  # noqa: F401  (before torch)
import torch
from accelerate import PartialState
from common.arguments import (
    DATASET_HELP,
    PUBLISHED,
    RunArguments,
    check_width,
    checkpoint_of,
    flag,
    load_splits,
    model_from,
    open_stores,
    parse_arguments,
    processor_from,
    settings_of,
    splits_needed,
    told_in_one_line,
)
from common.collators import PairCollator
from common.report import say, write_rows, write_scores
from common.trainer import OscarTrainer, in_order, share_of
from common.usable_rows import usable_splits
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import TrainingArguments

from modeling_mengzi_oscar import MengziOscarForVisualReasoning
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.precision import compute_in


@dataclass
class ReasoningArguments(RunArguments):
    dataset: str = flag(DATASET_HELP, default="nlvr2")
    classifier: str = flag(
        "Classification head. linear: one layer; mlp: with a hidden layer.",
        default="mlp",
        choices=["linear", "mlp"],
    )
    cls_hidden_scale: int = flag(
        "--classifier mlp: width of its hidden layer, as a multiple of the hidden size.", default=3
    )
    max_seq_length: int | None = flag(
        f"Maximum length in tokens of the sentence and the tags of one photo together. {PUBLISHED}", default=None
    )


class PhotoPairRows(Dataset):
    """One item per sentence: what `PairCollator` takes of each of its photos, and the label."""

    def __init__(self, rows, store):
        self.rows, self.store = rows, store

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        photos = [
            {"text": row["sentence"], "tags": tags, "region_features": self.store[image_id]["region_features"]}
            for image_id, tags in zip(row["image_ids"], row["tags"], strict=True)
        ]
        return {"photos": photos, "labels": -100 if row["label"] is None else row["label"]}


class PhotoPairCollator(PairCollator):
    """Items of `PhotoPairRows` -> tensors (B, 2, ...) and `labels` (B,)."""

    def __call__(self, items):
        batch = super().__call__([photo for item in items for photo in item["photos"]])
        batch = {name: tensor.unflatten(0, (len(items), -1)) for name, tensor in batch.items()}
        return batch | {"labels": torch.tensor([item["labels"] for item in items])}


@torch.inference_mode()
def judge(model, rows, collator, training, options) -> list[dict]:
    """{"sentence", "image_ids", "prediction", "probability" of it} of every row, by all processes, in order."""
    model.eval()
    share, size = list(share_of(min(len(rows), options.max_eval_rows or len(rows)))), training.eval_batch_size
    judged = []
    for first in tqdm(range(0, len(share), size), desc="sentences", leave=False, disable=training.disable_tqdm):
        indices = share[first : first + size]
        batch = collator([rows[index] for index in indices])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        del batch["labels"]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training.bf16):
            likelier = model(**batch).logits.float().softmax(dim=-1).max(dim=-1)
        for index, probability, label in zip(indices, likelier.values.tolist(), likelier.indices.tolist(), strict=True):
            row = {name: rows.rows[index][name] for name in ("sentence", "image_ids")}
            judged.append((index, row | {"prediction": bool(label), "probability": probability}))
    return in_order(judged)


def accuracy(predictions, rows) -> float:
    labels = rows.rows["label"][: len(predictions)]
    pairs = zip(predictions, labels, strict=True)
    hits = [row["prediction"] == bool(label) for row, label in pairs if label in (0, 1)]  # others have no answer
    return sum(hits) / len(hits)


@told_in_one_line
def main(arguments=None):
    options, training = parse_arguments(ReasoningArguments, TrainingArguments, description=__doc__, arguments=arguments)

    # 1. Data: what cannot be used is said, or left out
    splits = load_splits(options, *(needed := splits_needed(options, training)))
    store, columns = open_stores(options)[0], ("image_ids", "sentence", "tags", "label")
    splits = usable_splits(splits, needed, options, training, columns=columns, stores=[store], texts="sentence")

    # 2. Model
    settings = settings_of(options, *(() if training.do_predict else ("classifier", "cls_hidden_scale")))
    if not training.do_predict:
        settings |= {"num_choice": 2, "num_labels": 2, "loss_type": "xe", "ignore_mismatched_sizes": True}
    start, trained = checkpoint_of(options), training.do_predict
    model = model_from(MengziOscarForVisualReasoning, start, trained=trained, dtype="float32", **settings)
    check_width(start, model.config, [store])
    processor = processor_from("nlvr2", start, options, model.config)
    processor.max_tags = 0 if options.add_od_labels is False else None  # the rows bring them
    collator = PhotoPairCollator(processor)

    # 3. Judge only
    if training.do_predict:
        rows = PhotoPairRows(splits[options.test_split], store)
        compute_in(options.dtype, model, training.device)
        predictions = judge(model, rows, collator, training, options)
        if PartialState().is_main_process:
            folder = Path(training.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_rows(folder / "predictions.jsonl", predictions)
            (folder / "scores.json").unlink(missing_ok=True)  # of other predictions
            if labelled := sum(label in (0, 1) for label in rows.rows["label"][: len(predictions)]):
                results = {"split": options.test_split, "sentences": labelled}
                write_scores(folder, results | {"accuracy": accuracy(predictions, rows)})
            else:
                say(f"no scores: no sentence of {options.test_split} has a label")
        return

    # 4. Train
    validation = PhotoPairRows(splits["validation"], store)

    def evaluate_sentences(model):
        predictions = judge(model, validation, collator, training, options)
        samples = [
            {"image_id": " ".join(row["image_ids"]), "lines": [f"{row['prediction']}: {row['sentence']}"]}
            for row in predictions
        ]
        return {"accuracy": accuracy(predictions, validation)}, samples

    OscarTrainer(
        model=model,
        args=training,
        options=options,
        task="nlvr2",
        best_metric="accuracy",
        data_collator=collator,
        train_dataset=PhotoPairRows(splits["train"], store),
        eval_dataset=validation,
        evaluate_task=evaluate_sentences,
        save=lambda folder, card: save_checkpoint(folder, model, processor, card=card, task="nlvr2", start=start),
    ).run()


if __name__ == "__main__":
    main()
