"""Recall at k and ranks of image-text retrieval, from a matrix of scores.

Ranks start at 1. An image finds its texts at the rank of its best own text; its other texts do not stand in the way.
Ties are counted against the model: of equal scores, the wrong ones come first, so that a constant matrix scores 0 and
not 100 %. Oscar sorts with numpy's unstable argsort, where ties fall as they may; without ties both agree.
"""

from collections.abc import Sequence

import numpy as np


def retrieval_recall(scores, text_to_image: Sequence[int], ks: Sequence[int] = (1, 5, 10)) -> dict:
    """Scores both directions of retrieval.

    Args:
        scores: (N images, M texts), higher is a better match; -inf for a pair that was not scored.
        text_to_image: (M,), the row of the image that each text belongs to.
        ks: the depths of recall.

    Returns:
        For image_to_text and text_to_image: `<direction>_r<k>` (0..1), `<direction>_mean_rank`,
        `<direction>_median_rank`; mean_recall (MR of the Chinese papers: the mean of all recalls), images, texts.

    Raises:
        ValueError: shapes that do not fit, a NaN, an image row out of range, an image without a text.
    """
    scores, owners = np.asarray(scores), np.asarray(text_to_image)
    if scores.ndim != 2 or owners.shape != scores.shape[1:] or not scores.size:
        raise ValueError(f"expected scores (N, M) and text_to_image (M,), got {scores.shape} and {owners.shape}")
    if not np.issubdtype(owners.dtype, np.integer):
        raise ValueError(f"text_to_image must hold image rows, not {owners.dtype}")
    outside = np.flatnonzero((owners < 0) | (owners >= len(scores)))
    if outside.size:
        text = outside[0]
        raise ValueError(f"text_to_image[{text}] is {owners[text]}, but there are {len(scores)} images")
    without_text = np.setdiff1d(np.arange(len(scores)), owners)
    if without_text.size:
        raise ValueError(f"image {without_text[0]} has no text in text_to_image ({without_text.size} such images)")

    texts_of = np.split(np.argsort(owners, kind="stable"), np.cumsum(np.bincount(owners))[:-1])
    own_scores = scores[owners, np.arange(len(owners))]  # (M,)
    image_ranks = np.empty(len(scores), dtype=np.int64)
    text_ranks = np.zeros(len(owners), dtype=np.int64)  # counts the own image too, which makes ranks start at 1
    for image, row in enumerate(scores):  # row by row: the matrix of a 5k test set is 0.5 GB, its comparisons too
        if np.isnan(row).any():
            raise ValueError(f"scores[{image}][{np.isnan(row).argmax()}] is NaN")
        own = row[texts_of[image]]
        image_ranks[image] = 1 + (row >= own.max()).sum() - (own >= own.max()).sum()
        text_ranks += row >= own_scores

    result = {}
    for direction, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        result |= {f"{direction}_r{k}": float((ranks <= k).mean()) for k in ks}
        result[f"{direction}_mean_rank"] = float(ranks.mean())
        result[f"{direction}_median_rank"] = float(np.median(ranks))
    recalls = [result[f"{direction}_r{k}"] for direction in ("image_to_text", "text_to_image") for k in ks]
    return result | {"mean_recall": sum(recalls) / len(recalls), "images": len(scores), "texts": len(owners)}
