"""Fine-tunes on GQA (cross entropy, one answer is right), or answers its questions with a model that was.

    accelerate launch train/gqa.py --do_train --recipe train/recipes/gqa.yaml --model_name_or_path mengzi-oscar \\
        --data_dir datasets/gqa --features stores/gqa --output_dir outputs/gqa
    python train/gqa.py --do_predict --model_name_or_path outputs/gqa/best --data_dir datasets/gqa \\
        --dataset_config oscar_all --test_split submission --features stores/gqa --output_dir outputs/answers

--do_predict writes submission.json as the official server takes it, confidence.jsonl, and where the questions have
answers scores.json. The best validation is kept as <output_dir>/best; run again, a training resumes.
"""

from dataclasses import dataclass

from common.arguments import DATASET_HELP, flag, parse_arguments, told_in_one_line
from common.question_answering import QuestionArguments, run
from common.write_answers import mean_by
from transformers import TrainingArguments

from metrics.gqa_accuracy.answers import gqa_scores


@dataclass
class GqaArguments(QuestionArguments):
    dataset: str = flag(DATASET_HELP, default="gqa")
    test_split: str = flag("Split that --do_predict runs on.", default="testdev")
    loss_type: str = flag(
        "xe: cross entropy with the first answer; bce, kl: binary cross entropy, or KL divergence, with soft scores.",
        default="xe",
        choices=["bce", "kl", "xe"],
    )


def score(given, rows, answers):
    """Exact match with the first answer, over all and by the kind of question where the official files say it."""
    right = [answers[row["labels"][0]] for row in rows]
    hits = [answer == gold for answer, gold in zip(given, right, strict=True)]
    by_structure = mean_by(hits, [row.get("structural") for row in rows], "accuracy")
    by_meaning = mean_by(hits, [row.get("semantic") for row in rows], "accuracy")
    return {"accuracy": gqa_scores(given, right)["accuracy"]} | by_structure | by_meaning


def submission_row(question_id, answer):
    return {"questionId": question_id, "prediction": answer}


@told_in_one_line
def main(arguments=None):
    options, training = parse_arguments(GqaArguments, TrainingArguments, description=__doc__, arguments=arguments)
    run("gqa", options, training, score, submission_row)


if __name__ == "__main__":
    main()
