"""METEOR-exact: METEOR 1.5 (Denkowski and Lavie 2014) with exact matches only, in Python.

coco-caption and the AI Challenger evaluator run the jar with `-l en -norm` on Chinese, which takes Chinese words apart
into characters: their METEOR is a character-level score whatever the segmentation, and so is this one.
What the jar has and this has not: stems, synonyms and paraphrases of the Latin words that stray into a Chinese caption,
and lower weights for English function words (a single letter s is one), ASCII punctuation and quotes.
On Chinese text without them the jar gives the same number.
"""

import math
import re
from collections import Counter

ALPHA, BETA, GAMMA = 0.85, 0.2, 0.6  # METEOR 1.5, English, task "rank"; its delta weighs function words, see above
BEAM = 200  # partial alignments kept; the jar keeps 40, which is the best alignment nearly always
UNIT = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")  # a Latin word, a number, or one character


def meteor_exact(hypothesis_words, reference_words) -> float:
    """Score of the corpus: matches, lengths and chunks of each photo's best reference, summed over the photos.

    Args: for each photo the words of its caption, and the words of each of its references.
    """
    matches = hypothesis_length = reference_length = chunks = 0
    for words, row in zip(hypothesis_words, reference_words, strict=True):
        hypothesis = UNIT.findall(" ".join(words).lower())
        best = _best_alignment(hypothesis, [UNIT.findall(" ".join(ref).lower()) for ref in row])
        hypothesis_length += len(hypothesis)
        matches, reference_length, chunks = matches + best[0], reference_length + best[1], chunks + best[2]
    return _score(matches, hypothesis_length, reference_length, chunks)


def _score(matches: int, hypothesis_length: int, reference_length: int, chunks: int) -> float:
    if matches == 0:
        return 0.0
    precision, recall = matches / hypothesis_length, matches / reference_length
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    return mean * (1 - GAMMA * (chunks / matches) ** BETA)


def _best_alignment(hypothesis: list[str], references: list[list[str]]) -> tuple[int, int, int]:
    """(matches, reference length, chunks) of the reference that scores highest, the first of equals.

    The search for the fewest chunks is the slow part, so references go by what they could score with one chunk, and
    those that cannot win are not aligned. A perfect match has no fragmentation at all and counts 0 chunks.
    """
    length = len(hypothesis)
    counts = Counter(hypothesis)
    bounds = []
    for index, reference in enumerate(references):
        matches = sum((counts & Counter(reference)).values())
        perfect = hypothesis == reference
        bounds.append((_score(matches, length, len(reference), 0 if perfect else 1), -index, matches, perfect))
    best_score, best = (-1.0, 0), None
    for bound, negative_index, matches, perfect in sorted(bounds, reverse=True):
        if (bound, negative_index) < best_score:
            break
        reference = references[-negative_index]
        chunks = 0 if perfect or matches == 0 else _fewest_chunks(hypothesis, reference)
        candidate = (_score(matches, length, len(reference), chunks), negative_index)
        if candidate > best_score:
            best_score, best = candidate, (matches, len(reference), chunks)
    return best


def _fewest_chunks(first: list[str], second: list[str]) -> int:
    """Fewest runs of neighbouring words among the alignments that match as many words as can be matched.

    Left to right over the shorter caption. A state is (which places of repeated words are taken in the longer one,
    where the last match lies), its value the chunks so far; the BEAM states with the fewest go on.
    """
    shorter, longer = sorted((first, second), key=len)
    places, masks = {}, {}
    for place, word in enumerate(longer):
        places.setdefault(word, []).append(place)
        masks[word] = masks.get(word, 0) | 1 << place
    left = Counter(shorter)
    repeated = {word for word, count in left.items() if count > 1}
    states = {(0, -2): 0}  # -2: the last word was not matched, so the next match opens a chunk
    for word in shorter:
        left[word] -= 1
        following = {}
        for (taken, last), chunks in states.items():
            free = masks.get(word, 0) & ~taken
            steps = [
                ((taken | 1 << place if word in repeated else taken, place), chunks + (place != last + 1))
                for place in places.get(word, ())
                if free >> place & 1
            ]
            if left[word] >= free.bit_count():  # the places that are free can still all be matched without this word
                steps.append(((taken, -2), chunks))
            for state, value in steps:
                if value < following.get(state, math.inf):
                    following[state] = value
        if len(following) > BEAM:
            following = dict(sorted(following.items(), key=lambda item: item[1])[:BEAM])
        states = following
    return min(states.values())
