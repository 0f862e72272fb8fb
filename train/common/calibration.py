"""How often captions are right at which score: measured, fitted, told in a table, written into a checkpoint."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modeling_mengzi_oscar.checkpoint_folder import read_json
from modeling_mengzi_oscar.confidence import EVIDENCE, PROBABLY_WRONG, checksum_of_weights, evidence
from modeling_mengzi_oscar.files import write_whole

FOLDS = 10
RIDGE = 1e-2  # a pull towards 0, of standardised coefficients: captions that are all right have no finite fit
BANDS = (0, 0.2, 0.4, 0.5, 0.6, 0.8, 1)  # of confidence


class Judged(NamedTuple):
    """A caption of which is known whether it is right."""

    source: str  # data set or file
    token: str  # that begins it: its style
    score: float
    tokens: int
    right: bool


def fit(captions: list[Judged]) -> tuple[float, np.ndarray]:
    """Logistic regression of `right` on the evidence: intercept and coefficients, by Newton's method.

    Raises:
        ValueError: all are right, or all wrong: nothing to learn from.
    """
    known, right = as_arrays(captions)
    if right.min() == right.max():
        raise ValueError(f"all {len(right):,} captions are {'right' if right[0] else 'wrong'}: judge more photos")
    mean, spread = known.mean(axis=0), known.std(axis=0) + 1e-9
    inputs = np.column_stack([np.ones(len(known)), (known - mean) / spread])
    pull = RIDGE * np.diag([0.0] + [1.0] * known.shape[1])
    weights = np.zeros(inputs.shape[1])
    for _ in range(30):
        found = sigmoid(inputs @ weights)
        slope = inputs.T @ (right - found) - pull @ weights
        curvature = (inputs * (found * (1 - found))[:, None]).T @ inputs + pull
        weights = weights + np.linalg.solve(curvature + 1e-9 * np.eye(len(weights)), slope)
    coefficients = weights[1:] / spread
    return float(weights[0] - coefficients @ mean), coefficients


def held_out_confidences(captions: list[Judged]) -> np.ndarray:
    """Of each caption (n,), by a fit to nine tenths of the others: what the fit to all of them is worth elsewhere."""
    order, found = np.random.default_rng(0).permutation(len(captions)), np.zeros(len(captions))
    for fold in range(min(FOLDS, len(captions))):
        held_out = set(order[fold::FOLDS].tolist())
        intercept, coefficients = fit([one for number, one in enumerate(captions) if number not in held_out])
        for number in held_out:
            known = evidence(captions[number].score, captions[number].tokens)
            found[number] = sigmoid(intercept + coefficients @ np.array(known))
    return found


def as_arrays(captions) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (n, 2) and whether each is right (n,)."""
    known = np.array([evidence(one.score, one.tokens) for one in captions])
    return known, np.array([float(one.right) for one in captions])


def sigmoid(values):
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))


def table(captions: list[Judged], confidences: np.ndarray) -> str:
    """Markdown: how many captions of a confidence are right, by source; then how well both agree."""
    sources = list(dict.fromkeys(one.source for one in captions))
    right, of = np.array([one.right for one in captions]), np.array([one.source for one in captions])
    columns = [("all", np.ones(len(captions), bool))] + [(name, of == name) for name in sources] * (len(sources) > 1)
    lines = ["| confidence | " + " | ".join(f"{name}: captions | right" for name, _ in columns) + " |"]
    lines.append("|---" + "|--:" * (2 * len(columns)) + "|")
    for low, high in zip(BANDS, BANDS[1:], strict=False):
        cells = []
        for _, chosen in columns:
            there = chosen & (confidences >= low) & ((confidences < high) | (high == 1))
            cells += [f"{there.sum():,}", f"{right[there].mean():.0%}" if there.any() else ""]
        lines.append(f"| {low:.1f} to {high:.1f} | " + " | ".join(cells) + " |")
    marked = confidences < PROBABLY_WRONG
    lines += ["", *(summary(name, confidences[chosen], right[chosen], marked[chosen]) for name, chosen in columns)]
    return "\n".join(lines)


def summary(name, confidences, right, marked) -> str:
    wrong_of_marked = f", {(~right[marked]).mean():.0%} of them wrong" if marked.any() else ""
    right_of_others = f"; of the others {right[~marked].mean():.0%} are right" if not marked.all() else ""
    return (
        f"{name}: {len(right):,} captions, {right.mean():.1%} right, mean confidence {confidences.mean():.1%}; marked "
        f"{marked.mean():.0%}{wrong_of_marked}{right_of_others}; expected calibration error "
        f"{calibration_error(confidences, right):.3f}, area under the ROC curve {roc_area(confidences, right):.3f}"
    )


def calibration_error(confidences, right, bins=10) -> float:
    """Mean distance between confidence and share of right ones, over tenths of the captions by confidence."""
    groups = np.array_split(np.argsort(confidences, kind="stable"), bins)
    return sum(
        len(group) * abs(confidences[group].mean() - right[group].mean()) for group in groups if len(group)
    ) / len(right)


def roc_area(confidences, right) -> float:
    """How probable it is that a right caption is surer than a wrong one; nan without both."""
    if right.all() or not right.any():
        return float("nan")
    above = confidences[right][:, None] - confidences[~right][None]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def write_calibrations(folder, fitted: dict[str, tuple], num_beams: int, counts: dict[str, int], model) -> None:
    """Into processor_config.json of a checkpoint, in the place of what it said.

    Args:
        fitted: {token that begins captions: what `fit` found}. counts: captions of each. model: with its weights as
            they are stored.
    """
    path, weights = Path(folder) / "processor_config.json", checksum_of_weights(model)
    entries = {
        token: {"intercept": intercept, **dict(zip(EVIDENCE, coefficients.tolist(), strict=True))}
        | {"num_beams": num_beams, "captions": counts[token], "weights": weights}
        for token, (intercept, coefficients) in fitted.items()
    }
    said = read_json(path) | {"confidence": entries}
    write_whole(path, (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode())
