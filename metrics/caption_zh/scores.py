"""BLEU, ROUGE-L, METEOR-exact, CIDEr and CIDEr-D of Chinese captions, without Java and without waiting.

The formulas are the papers', with the conventions of coco-caption (`pycocoevalcap`), whose numbers come out to 1e-6:

* BLEU (Papineni et al. 2002): corpus level, closest reference length.
* ROUGE-L (Lin 2004): best precision and best recall over the references, beta 1.2, mean over the photos.
* CIDEr-D (Vedantam et al. 2015, section 5): what coco-caption, and every table made with it, prints as "CIDEr".
* CIDEr (the same paper, equation 3): no clipping, no length penalty, therefore higher. Say which one you quote.
* METEOR-exact (Denkowski and Lavie 2014): METEOR 1.5, English parameters, exact matches only. See `meteor.py`.

What differs from coco-caption is the speed: every distinct word becomes one character, so that a caption is a `str`, an
n-gram is a slice of it, and counts are made once for BLEU and both CIDErs.
"""

import math
from collections import Counter
from collections.abc import Sequence

from .meteor import meteor_exact
from .segmentation import PUNCTUATION, SEGMENTS, aic_icc_segment, aic_icc_words, tokenizer_name, words_of

METRICS = ("bleu", "rouge_l", "meteor_exact", "cider", "cider_d")
LONGEST_NGRAM = 4


def caption_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    segment: str = "char",
    punctuation: str = "drop",
    protocol: str | None = None,
    metrics: Sequence[str] = METRICS,
) -> dict:
    """Scores one caption per photo against that photo's reference captions.

    Args:
        predictions: one caption per photo; an empty one scores 0.
        references: for each photo one or more captions; their number may differ between photos.
        segment: "char", "jieba", or "none" for captions whose words are already separated by spaces.
        punctuation: "drop" removes it on both sides before segmenting, "keep" leaves it.
        protocol: "aic-icc" repeats the official AI Challenger 2017 evaluator and ignores the two options above.
            It takes raw predictions and references that are already segmented (`segmentation.aic_icc_segment`).
        metrics: which scores to compute; "bleu" gives bleu_1 to bleu_4.

    Returns:
        The scores as they are (BLEU, ROUGE-L and METEOR in 0..1, CIDEr and CIDEr-D in 0..10; tables print them times
        100), and what they mean nothing without: segment, punctuation, protocol, tokenizer, images, references_min,
        references_max.

    Raises:
        ValueError: names the row of a caption that is no text, of a missing or empty reference, or the unknown option.
    """
    _check_options(segment, punctuation, protocol, metrics)
    _check_captions(predictions, references)
    if protocol == "aic-icc":
        segment, punctuation = "jieba", "drop 。 before jieba, ASCII marks and quotes after it"
        hypothesis_words, reference_words = _aic_icc_captions(predictions, references)
    else:
        hypothesis_words = [words_of(caption, segment, punctuation) for caption in predictions]
        reference_words = [[words_of(caption, segment, punctuation) for caption in row] for row in references]
    for row, captions in enumerate(reference_words):
        for column, words in enumerate(captions):
            if not words:
                raise ValueError(f"references[{row}][{column}] has no words: {references[row][column]!r}")

    hypotheses, reference_rows = _one_character_per_word(hypothesis_words, reference_words)
    hypothesis_counts = [_ngram_counts(hypothesis) for hypothesis in hypotheses]
    reference_counts = [[_ngram_counts(reference) for reference in row] for row in reference_rows]

    scores = {}
    if "bleu" in metrics:
        scores |= bleu(hypotheses, reference_rows, hypothesis_counts, reference_counts)
    if "rouge_l" in metrics:
        scores["rouge_l"] = rouge_l(hypotheses, reference_rows)
    if "meteor_exact" in metrics:
        scores["meteor_exact"] = meteor_exact(hypothesis_words, reference_words)
    if "cider_d" in metrics or "cider" in metrics:
        plain, with_penalty = ciders(hypotheses, reference_rows, hypothesis_counts, reference_counts)
        scores |= {name: value for name, value in {"cider": plain, "cider_d": with_penalty}.items() if name in metrics}
    return scores | {
        "segment": segment,
        "punctuation": punctuation,
        "protocol": protocol,
        "tokenizer": tokenizer_name(segment),
        "images": len(predictions),
        "references_min": min(map(len, references)),
        "references_max": max(map(len, references)),
    }


def bleu(hypotheses, reference_rows, hypothesis_counts, reference_counts) -> dict:
    """bleu_1 to bleu_4 over the whole corpus; the closest reference length counts, the shorter one where two are."""
    found = [0] * LONGEST_NGRAM
    guessed = [0] * LONGEST_NGRAM
    hypothesis_length = reference_length = 0
    for hypothesis, row, counts, row_counts in zip(
        hypotheses, reference_rows, hypothesis_counts, reference_counts, strict=True
    ):
        length = len(hypothesis)
        hypothesis_length += length
        reference_length += min((abs(len(reference) - length), len(reference)) for reference in row)[1]
        for n in range(LONGEST_NGRAM):
            guessed[n] += max(0, length - n)
        for ngram, count in counts.items():
            most = max(reference[ngram] for reference in row_counts)
            found[len(ngram) - 1] += min(count, most)

    # The two small numbers are coco-caption's: no match at all gives a BLEU next to 0 instead of an error.
    ratio = (hypothesis_length + 1e-15) / (reference_length + 1e-9)
    brevity_penalty = math.exp(min(0.0, 1 - 1 / ratio))
    product, scores = 1.0, {}
    for n in range(LONGEST_NGRAM):
        product *= (found[n] + 1e-15) / (guessed[n] + 1e-9)
        scores[f"bleu_{n + 1}"] = product ** (1 / (n + 1)) * brevity_penalty
    return scores


def rouge_l(hypotheses, reference_rows, beta: float = 1.2) -> float:
    """Mean F of the longest common subsequence; precision and recall may come from two references."""
    total = 0.0
    for hypothesis, row in zip(hypotheses, reference_rows, strict=True):
        common = [_longest_common_subsequence(hypothesis, reference) for reference in row]
        if max(common) > 0:
            precision = max(common) / len(hypothesis)
            recall = max(length / len(reference) for length, reference in zip(common, row, strict=True))
            total += (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return total / len(hypotheses)


def ciders(hypotheses, reference_rows, hypothesis_counts, reference_counts, sigma: float = 6.0) -> tuple[float, float]:
    """(CIDEr, CIDEr-D), both times 10 as the paper's authors print them.

    TF-IDF vectors of the 1- to 4-grams, the documents being the photos' reference sets; cosine with each reference,
    mean over references, orders and photos. CIDEr-D counts an n-gram at most as often as the reference has it, and
    multiplies by exp(-difference in length² / 2 sigma²), where coco-caption's length is the number of bigrams.
    One photo alone scores 0: every n-gram is in every document.
    """
    vectors = TfIdf.of(reference_counts)
    plain = with_penalty = 0.0
    for hypothesis, row, counts, row_counts in zip(
        hypotheses, reference_rows, hypothesis_counts, reference_counts, strict=True
    ):
        found = vectors.similarities(hypothesis, counts, row, row_counts, sigma)
        plain, with_penalty = plain + found[0], with_penalty + found[1]
    return plain / len(hypotheses), with_penalty / len(hypotheses)


class TfIdf:
    """Vectors of 1- to 4-grams weighted by how few documents hold them, a document being a photo's references.

    Args:
        document_frequency: n-gram -> number of documents with it. documents: their number.
    """

    def __init__(self, document_frequency, documents):
        self.of_unseen = math.log(documents)
        self.weight = {ngram: self.of_unseen - math.log(count) for ngram, count in document_frequency.items()}

    @classmethod
    def of(cls, reference_counts):
        return cls(Counter(ngram for row in reference_counts for ngram in set().union(*row)), len(reference_counts))

    def similarities(self, hypothesis, counts, references, reference_counts, sigma=6.0) -> tuple[float, float]:
        """(CIDEr, CIDEr-D) of one photo, times 10; captions as sequences of words with their n-gram counts."""
        vector, norms = self._vector_and_norms(counts)
        plain = with_penalty = 0.0
        for reference, one_reference_counts in zip(references, reference_counts, strict=True):
            reference_vector, reference_norms = self._vector_and_norms(one_reference_counts)
            products = [norm * other or 1.0 for norm, other in zip(norms, reference_norms, strict=True)]
            cosine = clipped = 0.0
            for ngram in vector.keys() & reference_vector.keys():
                value, other = vector[ngram], reference_vector[ngram]
                product = products[len(ngram) - 1]
                cosine += value * other / product
                clipped += min(value, other) * other / product
            bigrams_more = max(0, len(hypothesis) - 1) - max(0, len(reference) - 1)
            plain += cosine
            with_penalty += clipped * math.exp(-(bigrams_more**2) / (2 * sigma**2))
        scale = 10 / LONGEST_NGRAM / len(references)
        return plain * scale, with_penalty * scale

    def _vector_and_norms(self, counts):
        vector = {ngram: count * self.weight.get(ngram, self.of_unseen) for ngram, count in counts.items()}
        squares = [0.0] * LONGEST_NGRAM
        for ngram, value in vector.items():
            squares[len(ngram) - 1] += value * value
        return vector, [math.sqrt(square) for square in squares]


class CiderDReward:
    """CIDEr-D of single captions against one photo's references, document frequencies fixed beforehand (SCST).

    Args:
        references: per photo its captions, each a list of words.
        document_frequency, documents: of another corpus; by default of `references`.
    """

    def __init__(self, references, document_frequency=None, documents=None):
        self.references = [[tuple(caption) for caption in row] for row in references]
        self.counts = [[_ngram_counts(caption) for caption in row] for row in self.references]
        self.vectors = TfIdf(document_frequency, documents) if documents else TfIdf.of(self.counts)

    def __call__(self, words, photo: int) -> float:
        if not self.references[photo]:  # nobody said anything of this photo
            return 0.0
        words = tuple(words)
        counts = _ngram_counts(words)
        return self.vectors.similarities(words, counts, self.references[photo], self.counts[photo])[1]


def _longest_common_subsequence(first: str, second: str) -> int:
    """Its length, a whole row of the table at a time in the bits of one integer (Hyyrö 2004)."""
    positions = {}
    for index, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << index
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        matches = row & positions.get(word, 0)
        row = (row + matches | row - matches) & everything
    return len(first) - row.bit_count()


def _ngram_counts(caption: str) -> Counter:
    return Counter(
        caption[start : start + n] for n in range(1, LONGEST_NGRAM + 1) for start in range(len(caption) - n + 1)
    )


def _one_character_per_word(hypotheses, reference_rows) -> tuple[list[str], list[list[str]]]:
    alphabet = {}

    def spell(words):
        return "".join([alphabet.setdefault(word, chr(len(alphabet))) for word in words])

    return [spell(words) for words in hypotheses], [[spell(words) for words in row] for row in reference_rows]


def _aic_icc_captions(predictions, references):
    for row, caption in enumerate(predictions):
        if not caption:
            raise ValueError(f"predictions[{row}] is empty, which the AI Challenger evaluator refuses")
    if not any(" " in caption.strip() for row in references for caption in row):
        raise ValueError(
            "protocol='aic-icc' takes references whose words are separated by spaces, as in the official reference "
            "file; make them from raw captions with metrics.caption_zh.segmentation.aic_icc_segment"
        )
    hypotheses = [aic_icc_words(aic_icc_segment(caption)) for caption in predictions]
    return hypotheses, [[aic_icc_words(caption) for caption in row] for row in references]


def _check_options(segment, punctuation, protocol, metrics):
    for name, value, known in (
        ("segment", segment, SEGMENTS),
        ("punctuation", punctuation, PUNCTUATION),
        ("protocol", protocol, (None, "aic-icc")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {known}")
    if "spice" in metrics:
        raise ValueError(
            "SPICE is not defined for Chinese: it compares scene graphs from an English parser (Stanford) through "
            "English WordNet, and neither reads Chinese"
        )
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown or not metrics:
        raise ValueError(f"metrics={tuple(metrics)!r}: expected some of {METRICS}")


def _check_captions(predictions, references):
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but references for {len(references)} photos")
    if not predictions:
        raise ValueError("nothing to score: predictions is empty")
    for row, (prediction, captions) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise ValueError(f"predictions[{row}] is a {type(prediction).__name__}, not a string: {prediction!r}")
        if isinstance(captions, str) or not captions:
            raise ValueError(f"references[{row}] must be a list of at least one caption, not {captions!r}")
        for column, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise ValueError(
                    f"references[{row}][{column}] is a {type(caption).__name__}, not a string: {caption!r}"
                )
