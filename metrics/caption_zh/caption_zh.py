"""`evaluate` module over `caption_scores`: `evaluate.load("metrics/caption_zh")`, offline, from the repository root."""

import datasets
import evaluate

from .meteor import meteor_exact
from .scores import METRICS, caption_scores
from .segmentation import aic_icc_segment

# evaluate copies the sibling files imported above and no others (and reads a comment after an import as an address).
__all__ = ["CaptionZh", "aic_icc_segment", "caption_scores", "meteor_exact"]

_DESCRIPTION = """
BLEU-1 to 4, ROUGE-L, METEOR-exact, CIDEr and CIDEr-D of Chinese captions, on the character or the word level, or after
the official AI Challenger 2017 protocol. CIDEr-D is what coco-caption prints as CIDEr.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: one caption per photo; references: for each photo its list of captions.
    segment: "char" (default), "jieba" or "none" (words already separated by spaces).
    punctuation: "drop" (default) or "keep".
    protocol: "aic-icc" for the AI Challenger evaluator, with references that are already segmented.
    metrics: some of "bleu", "rouge_l", "meteor_exact", "cider", "cider_d".
Returns:
    The scores (0 to 1; both CIDErs 0 to 10) with segment, punctuation, protocol, tokenizer and the numbers of images
    and references.
"""
_CITATION = """
@inproceedings{vedantam2015cider,
  title = {CIDEr: Consensus-based Image Description Evaluation},
  author = {Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi},
  booktitle = {CVPR}, year = {2015}}
"""


class CaptionZh(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references, segment="char", punctuation="drop", protocol=None, metrics=METRICS):
        return caption_scores(predictions, references, segment, punctuation, protocol, metrics)
