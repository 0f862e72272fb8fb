"""GQA scores (Hudson and Manning 2019, arXiv 1902.09506): exact match, and what the official files add to it.

The answer must equal the gold answer letter by letter, as in the official script. With the question file: only the
balanced questions count, "query" questions are open and all others binary; consistency is, over the questions answered
correctly, the share of their entailed questions answered correctly too. With the choices file: validity (a possible
answer to that question at all) and plausibility (one that occurs in the world). "Common" questions (what do both have
in common) are checked against color, material and shape instead, as the official script does.

What differs from it: scores are 0..1, a score of no questions is left out instead of printed as 0, grounding and the
chi-square distribution are not computed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

_COMMON_ANSWERS = ("color", "material", "shape")


def gqa_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    question_ids: Sequence[str] | None = None,
    questions: Mapping[str, dict] | str | Path | None = None,
    choices: Mapping[str, dict] | str | Path | None = None,
    consistency: bool = False,
) -> dict:
    """Scores one answer per question.

    Args:
        predictions, references: answers and gold answers, row by row.
        question_ids: their ids in the official files; needed with the arguments below.
        questions: the official question file (`val_balanced_questions.json`), loaded or its path; adds binary, open.
        choices: the official choices file (`val_choices.json`); adds validity and plausibility. Needs `questions`.
        consistency: adds consistency; needs predictions for all entailed questions, so `questions` must be the file of
            all questions (`val_all_questions.json`) and not of the balanced ones.

    Returns:
        accuracy and the scores named above (0..1), and questions: how many counted.

    Raises:
        ValueError: names the row that is no text, unknown, double or contradicts the file, or the missing prediction.
    """
    _check_answers(predictions, references, question_ids)
    if questions is None:
        if choices is not None or consistency:
            raise ValueError("validity, plausibility and consistency need the question file: pass questions=")
        correct = [prediction == gold for prediction, gold in zip(predictions, references, strict=True)]
        return {"accuracy": _mean(correct), "questions": len(correct)}
    if question_ids is None:
        raise ValueError("questions= needs question_ids= to find the rows in it")

    questions, choices = _load(questions), _load(choices)
    for row, (question_id, gold) in enumerate(zip(question_ids, references, strict=True)):
        if question_id not in questions:
            raise ValueError(f"question_ids[{row}] = {question_id!r} is not in the question file")
        if questions[question_id]["answer"] != gold:
            raise ValueError(f"references[{row}] is {gold!r}, the file says {questions[question_id]['answer']!r}")
    answers = dict(zip(question_ids, predictions, strict=True))
    balanced = [question_id for question_id, question in questions.items() if question["isBalanced"]]
    missing = [question_id for question_id in balanced if question_id not in answers]
    if missing:
        raise ValueError(f"no prediction for {len(missing)} balanced questions, the first is {missing[0]!r}")

    def is_correct(question_id):
        if question_id not in answers or question_id not in questions:
            raise ValueError(f"consistency needs the entailed question {question_id!r} in the file and predicted")
        return answers[question_id] == questions[question_id]["answer"]

    values = {name: [] for name in ("accuracy", "binary", "open", "consistency", "validity", "plausibility")}
    for question_id in balanced:
        question = questions[question_id]
        correct = is_correct(question_id)
        values["accuracy"].append(correct)
        values["open" if question["types"]["structural"] == "query" else "binary"].append(correct)
        if choices is not None:
            common = "Common" in question["types"]["detailed"]
            for name, key in (("validity", "valid"), ("plausibility", "plausible")):
                group = _COMMON_ANSWERS if common else choices[question_id][key]
                values[name].append(answers[question_id] in group)
        if consistency and correct:
            entailed = [is_correct(other) for other in question["entailed"] if other != question_id]
            if entailed:
                values["consistency"].append(_mean(entailed))
    return {name: _mean(scores) for name, scores in values.items() if scores} | {"questions": len(balanced)}


def _mean(values) -> float:
    return sum(values) / len(values)


def _load(file):
    return json.loads(Path(file).read_text(encoding="utf-8")) if isinstance(file, (str, Path)) else file


def _check_answers(predictions, references, question_ids):
    if not predictions:
        raise ValueError("nothing to score: predictions is empty")
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references")
    for row, (prediction, gold) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise ValueError(f"predictions[{row}] is a {type(prediction).__name__}, not a string: {prediction!r}")
        if not isinstance(gold, str) or not gold:
            raise ValueError(f"references[{row}] must be a gold answer, not {gold!r}")
    if question_ids is not None:
        if len(question_ids) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions but {len(question_ids)} question_ids")
        if len(set(question_ids)) != len(question_ids):
            seen = set()
            row = next(row for row, key in enumerate(question_ids) if key in seen or seen.add(key))
            raise ValueError(f"question_ids[{row}] = {question_ids[row]!r} is there twice")
