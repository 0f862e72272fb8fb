"""`evaluate` module over `retrieval_recall`: `evaluate.load("metrics/retrieval_recall")`, offline."""

import datasets
import evaluate

from .recall import retrieval_recall

_DESCRIPTION = """
Image-to-text and text-to-image recall at 1, 5 and 10, mean and median rank. Ties are counted against the model.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: for each image its row of scores, one score per text, higher is a better match.
    references: for each image the columns of its own texts; every text belongs to exactly one image.
    ks: depths of recall (1, 5, 10).
Returns:
    image_to_text_r1, text_to_image_r1, ... (0 to 1), the ranks (from 1), mean_recall, images, texts.
"""


class RetrievalRecall(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.List(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references, ks=(1, 5, 10)):
        texts = len(predictions[0])
        text_to_image = [-1] * texts
        for image, (row, own) in enumerate(zip(predictions, references, strict=True)):
            if len(row) != texts:
                raise ValueError(f"predictions[{image}] has {len(row)} scores, predictions[0] has {texts}")
            for text in own:
                if not 0 <= text < texts or text_to_image[text] != -1:
                    raise ValueError(f"references[{image}]: there is no text {text}, or it has an image already")
                text_to_image[text] = image
        return retrieval_recall(predictions, text_to_image, ks)
