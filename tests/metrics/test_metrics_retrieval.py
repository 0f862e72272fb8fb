"""Retrieval recall and ranks: by hand, against a naive version, ties, bad input."""

import numpy as np
import pytest
from conftest import REPOSITORY

from metrics.retrieval_recall.recall import retrieval_recall

MODULE = REPOSITORY / "metrics" / "retrieval_recall"


def naive_recall(scores, text_to_image, ks=(1, 5, 10)):
    """Sorts every row and column; of equal scores the wrong ones come first."""
    images, texts = scores.shape
    image_ranks = []
    for image in range(images):
        order = sorted(range(texts), key=lambda text: (-scores[image, text], text_to_image[text] == image))
        others_before = 0
        for text in order:
            if text_to_image[text] == image:
                break
            others_before += 1
        image_ranks.append(others_before + 1)
    text_ranks = []
    for text in range(texts):
        order = sorted(range(images), key=lambda image: (-scores[image, text], text_to_image[text] == image))
        text_ranks.append(order.index(text_to_image[text]) + 1)
    result = {}
    for direction, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        result |= {f"{direction}_r{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in ks}
        result |= {f"{direction}_mean_rank": np.mean(ranks), f"{direction}_median_rank": np.median(ranks)}
    result["mean_recall"] = np.mean([value for name, value in result.items() if "_r" in name and "rank" not in name])
    return result | {"images": images, "texts": texts}


def test_by_hand():
    scores = [[0.9, 0.1, 0.8], [0.2, 0.3, 0.7]]  # texts 0 and 1 belong to image 0, text 2 to image 1
    result = retrieval_recall(scores, [0, 0, 1], ks=(1, 2))
    assert result == {
        "image_to_text_r1": 1.0,
        "image_to_text_r2": 1.0,
        "image_to_text_mean_rank": 1.0,
        "image_to_text_median_rank": 1.0,
        "text_to_image_r1": pytest.approx(1 / 3),  # texts 1 and 2 find the other image first
        "text_to_image_r2": 1.0,
        "text_to_image_mean_rank": pytest.approx(5 / 3),
        "text_to_image_median_rank": 2.0,
        "mean_recall": pytest.approx((1 + 1 + 1 / 3 + 1) / 4),
        "images": 2,
        "texts": 3,
    }


@pytest.mark.parametrize("levels", [3, 20, 10**9])  # few levels make many ties
def test_against_naive(levels):
    generator = np.random.default_rng(levels)
    text_to_image = generator.permutation(np.concatenate([np.arange(30), generator.integers(0, 30, 90)]))
    scores = generator.integers(0, levels, (30, 120)) / levels
    assert retrieval_recall(scores, text_to_image) == pytest.approx(naive_recall(scores, text_to_image))


def test_a_constant_matrix_finds_nothing():
    result = retrieval_recall(np.zeros((20, 100)), np.repeat(np.arange(20), 5))
    assert result["image_to_text_r10"] == result["text_to_image_r10"] == 0
    assert result["text_to_image_mean_rank"] == 20
    assert result["image_to_text_mean_rank"] == 96  # after the 95 texts of the others


def test_pairs_that_were_not_scored_come_last():
    result = retrieval_recall(np.array([[0.5, -np.inf], [-np.inf, -np.inf]], dtype=np.float32), [0, 1])
    assert result["image_to_text_r1"] == 0.5
    assert result["text_to_image_mean_rank"] == 1.5


@pytest.mark.parametrize(
    ("scores", "text_to_image", "message"),
    [
        (np.zeros((2, 3)), [0, 1], r"\(2, 3\) and \(2,\)"),
        (np.zeros((2, 3)), [0, 1, 2], r"text_to_image\[2\] is 2, but there are 2 images"),
        (np.zeros((3, 3)), [0, 0, 2], "image 1 has no text"),
        (np.array([[0, 1], [0, np.nan]]), [0, 1], r"scores\[1\]\[1\] is NaN"),
        (np.zeros((2, 2)), [0.0, 1.0], "must hold image rows"),
        (np.zeros((0, 0)), [], "got"),
    ],
)
def test_errors(scores, text_to_image, message):
    with pytest.raises(ValueError, match=message):
        retrieval_recall(scores, text_to_image)


def test_evaluate_module(tmp_path):
    evaluate = pytest.importorskip("evaluate")
    metric = evaluate.load(str(MODULE), cache_dir=str(tmp_path))
    scores = np.random.default_rng(0).standard_normal((6, 12))
    result = metric.compute(
        predictions=scores, references=[[2 * image, 2 * image + 1] for image in range(6)], ks=(1, 3)
    )
    assert result == retrieval_recall(scores, np.repeat(np.arange(6), 2), ks=(1, 3))
    with pytest.raises(ValueError, match=r"references\[1\]"):
        metric.compute(predictions=[[0.1, 0.2], [0.3, 0.4]], references=[[0], [0]])
