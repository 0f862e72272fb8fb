"""What VQA and GQA share: a question, an image and its tags in, one of N known answers out.

Sources: oscar/run_vqa.py and oscar/run_gqa.py of Oscar and VinVL. Layout [CLS] question [SEP] tags [SEP], regions.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState

from modeling_mengzi_oscar import MengziOscarForVisualQuestionAnswering
from modeling_mengzi_oscar.convert.oscar import OriginalFolder
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.loading import CheckpointError, load_checked
from modeling_mengzi_oscar.precision import compute_in

from .arguments import (
    PUBLISHED,
    RunArguments,
    attention_of,
    check_width,
    checkpoint_of,
    every,
    flag,
    load_splits,
    model_from,
    processor_from,
    settings_of,
    split_of,
    splits_needed,
    stores_of_datasets,
    tag_texts,
)
from .collators import PairCollator, PairRows
from .report import say, write_scores
from .trainer import OscarTrainer
from .usable_rows import usable_splits
from .write_answers import answer_questions, sample_of, without_looking, write_answers


@dataclass
class QuestionArguments(RunArguments):
    loss_type: str = flag(
        "bce: binary cross entropy with the soft scores of all right answers; kl: KL divergence from them; xe: cross "
        "entropy with the first answer.",
        default="bce",
        choices=["bce", "kl", "xe"],
    )
    classifier: str = flag(
        "Answer head. linear: one layer; mlp: with a hidden layer.", default="linear", choices=["linear", "mlp"]
    )
    cls_hidden_scale: int = flag(
        "--classifier mlp: width of its hidden layer, as a multiple of the hidden size.", default=3
    )
    max_seq_length: int | None = flag(
        f"Maximum length in tokens of question and tags together. {PUBLISHED}", default=None
    )
    max_tags: int | None = flag(
        "Maximum number of tag words per image. If not given, as the checkpoint was trained, or as many as "
        "--max_seq_length leaves room for.",
        default=None,
    )
    train_split: str = flag("Split to train on; VQA also has trainval.", default="train")
    validation_config: str | None = flag(
        "Configuration whose validation split is evaluated, oscar_balanced of GQA for instance. If not given, that of "
        "--dataset_config.",
        default=None,
    )
    num_hidden_layers: int | None = flag("Use only the first N layers of the encoder. If not given, all.", default=None)


def run(task, options, training, score, submission_row):
    """Trains, or with --do_predict answers the questions of --test_split.

    Args:
        task: "vqa" or "gqa".
        score: (answers given, rows, all answers) -> {metric: number}, with "accuracy" in it.
        submission_row: (question id, answer) -> a row of the file that the official server takes.
    """
    # 1. Data: what cannot be used is said, or left out
    splits = load_splits(options)
    if options.validation_config is not None:
        other_splits = load_splits(replace(options, dataset_config=options.validation_config), "validation")
        splits["validation"] = other_splits["validation"]
    needed = splits_needed(options, training, options.train_split)
    for name in needed:
        split_of(splits, name)
    stores = stores_of_datasets(options)
    columns = ("image_id", "question", "labels")
    splits = usable_splits(splits, needed, options, training, columns=columns, stores=stores, texts="question")
    answers = answers_of(splits[needed[0]], options)

    def labelled_rows(split, training_rows=False):
        def targets(row):
            return {"labels": targets_of(row, len(answers), options.loss_type)}

        settings = {"labels": labels, "targets": targets, "training": training_rows, "seed": training.seed}
        return PairRows(splits[split], stores, **settings)

    # 2. Model
    start = checkpoint_of(options)
    model = load_trained(start, answers) if training.do_predict else begin(start, options, training, answers)
    check_width(start, model.config, opened := every(stores))
    processor = processor_from(task, start, options, model.config)
    labels = tag_texts(options, training, processor, opened[0])
    if labels is not None and options.max_tags is not None:
        processor.max_tags = options.max_tags
    collator = PairCollator(processor)

    # 3. Answers only
    if training.do_predict:
        model = compute_in(options.dtype, model, training.device)
        questions = PairRows(splits[options.test_split], stores, labels=labels)
        predictions = answer_questions(model, questions, collator, training, options)
        if PartialState().is_main_process:
            folder = Path(training.output_dir)
            write_answers(folder, predictions, submission_row)
            (folder / "scores.json").unlink(missing_ok=True)  # of other answers
            pairs = zip(predictions, questions.rows, strict=False)  # --max_eval_rows may end the predictions early
            labelled = [(prediction["answer"], row) for prediction, row in pairs if row["labels"]]
            if not labelled:
                say(f"no scores: no question of {options.test_split} has an answer")
            else:
                given, rows = map(list, zip(*labelled, strict=True))
                results = {"split": options.test_split, "questions": len(rows)} | score(given, rows, answers)
                if options.train_split in splits:
                    guesses = without_looking(splits[options.train_split], rows, answers)
                    results |= {name: score(guessed, rows, answers) for name, guessed in guesses.items()}
                write_scores(folder, results)
        return

    # 4. Evaluation: the answers to the validation questions
    validation = labelled_rows("validation")

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
        score_names=("accuracy", "official_accuracy"),
        data_collator=collator,
        train_dataset=labelled_rows(options.train_split, training_rows=True),
        eval_dataset=validation,
        evaluate_task=evaluate_answers,
        save=lambda folder, card: save_checkpoint(folder, model, processor, card=card, task=task, start=start),
    ).run()


def answers_of(rows, options) -> list[str]:
    """The answers that a data set's `labels` are numbers of.

    Raises:
        SystemExit: it does not say them.
    """
    names = getattr(getattr(rows.features["labels"], "feature", None), "names", None)
    if not names:
        raise SystemExit(f"--dataset {options.dataset}: its column labels does not say which answers the numbers mean")
    return names


def begin(start, options, training, answers):
    """A model that begins from a checkpoint of any task, with a fresh head for these answers unless it has theirs."""
    return model_from(
        MengziOscarForVisualQuestionAnswering,
        start,
        dtype="float32",
        attn_implementation=attention_of(training),
        new=("classifier.",),
        **names_of(answers),
        **settings_of(options, "loss_type", "classifier", "cls_hidden_scale", "num_hidden_layers"),
    )


def load_trained(start, answers):
    """The model to answer with. An original checkpoint numbers its answers as the data do.

    Raises:
        SystemExit: it was never trained to answer, or an original one knows other answers.
    """
    names = names_of(answers) if isinstance(start, OriginalFolder) else {}
    try:
        return load_checked(MengziOscarForVisualQuestionAnswering, start, dtype="float32", **names)
    except CheckpointError as error:
        raise SystemExit(f"--model_name_or_path {error}") from None


def names_of(answers) -> dict:
    """What a config says of the answers."""
    return {"id2label": dict(enumerate(answers)), "label2id": {answer: i for i, answer in enumerate(answers)}}


def targets_of(row, num_answers, loss_type) -> torch.Tensor:
    """Soft scores (N,), of an answer given twice the later; for cross entropy the first answer, as in Oscar."""
    if loss_type == "xe":
        return torch.tensor(row["labels"][0] if row["labels"] else -100)
    target = torch.zeros(num_answers)
    for label, value in zip(row["labels"], row.get("scores") or [1.0] * len(row["labels"]), strict=True):
        target[label] = value
    return target
