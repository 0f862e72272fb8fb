"""Fine-tunes on VQA v2 or questions in its layout (soft scores of several answers), or answers with a model that was.

    accelerate launch train/vqa.py --do_train --recipe train/recipes/vqa.yaml --model_name_or_path mengzi-oscar \\
        --data_dir datasets/vqa --features stores/coco --output_dir outputs/vqa
    python train/vqa.py --do_predict --model_name_or_path outputs/vqa/best --data_dir datasets/vqa \\
        --dataset_config oscar --features stores/coco --output_dir outputs/answers

--do_predict writes submission.json as the official server takes it, confidence.jsonl, and where the questions have
answers scores.json. The best validation is kept as <output_dir>/best; run again, a training resumes.
"""

from dataclasses import dataclass
from functools import partial

from common.arguments import DATASET_HELP, flag, parse_arguments, told_in_one_line
from common.question_answering import QuestionArguments, run
from common.write_answers import mean_by
from transformers import TrainingArguments

from metrics.vqa_accuracy.answers import vqa_scores


@dataclass
class VqaArguments(QuestionArguments):
    dataset: str = flag(DATASET_HELP, default="vqa")
    normalization: str = flag(
        "How answers are normalised for the official accuracy, where each question has the answers of ten people. zh: "
        "Chinese numbers and punctuation; official: the English rules of the VQA challenge; none: compared as they "
        "stand.",
        default="zh",
        choices=["zh", "official", "none"],
    )


def score(given, rows, answers, normalization):
    """Mean score of the answers given, as Oscar counts, over all and by type of answer.

    Where the ten answers of people are at hand (layout "official"), also by the official rule.
    """
    scores = []
    for answer, row in zip(given, rows, strict=True):
        right = {answers[label]: value for label, value in zip(row["labels"], row["scores"], strict=True)}
        scores.append(right.get(answer, 0.0))
    results = {"accuracy": sum(scores) / len(scores)}
    results |= mean_by(scores, [row.get("answer_type") for row in rows], "accuracy")
    if rows[0].get("answers"):
        results["official_accuracy"] = vqa_scores(given, [row["answers"] for row in rows], normalization)["accuracy"]
    return results


def submission_row(question_id, answer):
    """VQA's ids are numbers."""
    return {"question_id": int(question_id) if question_id.isdecimal() else question_id, "answer": answer}


@told_in_one_line
def main(arguments=None):
    options, training = parse_arguments(VqaArguments, TrainingArguments, description=__doc__, arguments=arguments)
    run("vqa", options, training, partial(score, normalization=options.normalization), submission_row)


if __name__ == "__main__":
    main()
