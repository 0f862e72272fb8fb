"""`evaluate` module over `vqa_scores`: `evaluate.load("metrics/vqa_accuracy")`, offline, from the repository root."""

import datasets
import evaluate

from .answers import vqa_scores

_DESCRIPTION = """
VQA accuracy by the official leave-one-out rule over ten answers, with the official English normalisation, a Chinese
one, or none.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: one answer per question; references: for each question the answers people gave (VQA v2: ten).
    normalization: "official" (default), "zh" or "none".
    answer_types, question_types: optional, one per question.
Returns:
    accuracy (0 to 1), by_answer_type, by_question_type, normalization, questions, answers_min, answers_max.
"""
_CITATION = """
@inproceedings{antol2015vqa,
  title = {VQA: Visual Question Answering},
  author = {Antol, Stanislaw and Agrawal, Aishwarya and Lu, Jiasen and Mitchell, Margaret and Batra, Dhruv and
            Zitnick, C. Lawrence and Parikh, Devi},
  booktitle = {ICCV}, year = {2015}}
"""


class VqaAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references, normalization="official", answer_types=None, question_types=None):
        return vqa_scores(predictions, references, normalization, answer_types, question_types)
