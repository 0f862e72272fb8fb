"""`evaluate` module over `gqa_scores`: `evaluate.load("metrics/gqa_accuracy")`, offline, from the repository root."""

import datasets
import evaluate

from .answers import gqa_scores

_DESCRIPTION = """
GQA accuracy; binary and open accuracy, consistency, validity and plausibility with the official files.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions, references: answers and gold answers.
    question_ids: ids of the rows in the official files, needed with the arguments below.
    questions: the official question file, loaded or its path; choices: the official choices file.
    consistency: True needs the file of all questions and their predictions.
Returns:
    accuracy, binary, open, consistency, validity, plausibility (0 to 1, those that could be computed), questions.
"""
_CITATION = """
@inproceedings{hudson2019gqa,
  title = {GQA: A New Dataset for Real-World Visual Reasoning and Compositional Question Answering},
  author = {Hudson, Drew A. and Manning, Christopher D.},
  booktitle = {CVPR}, year = {2019}}
"""


class GqaAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, question_ids=None, questions=None, choices=None, consistency=False):
        return gqa_scores(predictions, references, question_ids, questions, choices, consistency)
