"""How sure one can be that a caption is right: the captioner's score, calibrated (Platt, 1999).

A score is the mean probability of a caption's tokens; how often captions of that score are right is another number, and
is measured on photos that the checkpoint was not trained on (train/calibrate.py). What came of it stands in
processor_config.json under `confidence`: one logistic regression for each token that captions begin with, as that tells
styles apart. It belongs to the weights that it was measured with, whose checksum it names: weights that were trained
further have none. And to the search: to the beams that it names, without sampling.
"""

import math
import warnings
import zlib
from collections.abc import Mapping

import torch

from .fields import Rule, mapping, number, whole, word

PROBABLY_WRONG = 0.5  # confidence below which a caption is marked
MARK = "可能不准"
EVIDENCE = ("log_score", "tokens")  # what is known of a caption: logarithm of its score, and how long it is
ENTRY = {
    "intercept": number(-1e6, 1e6),
    **dict.fromkeys(EVIDENCE, number(-1e6, 1e6)),
    "num_beams": whole(1, 100),
    "captions": whole(1, 10**9),  # that it was measured on
    "weights": word,
}


def _is_entry(value) -> bool:
    return isinstance(value, Mapping) and value.keys() == ENTRY.keys() and all(ENTRY[n].holds(value[n]) for n in ENTRY)


CALIBRATIONS = mapping(word, Rule(f"an object of {', '.join(ENTRY)}, as train/calibrate.py writes it", _is_entry))


def evidence(score: float, tokens: int) -> tuple[float, ...]:
    """Of a caption, in the order of `EVIDENCE`; `tokens` without start and end."""
    return math.log(max(score, 1e-9)), float(tokens)


def confidence(calibration: Mapping, score: float, tokens: int) -> float:
    """The probability, 0 to 1, that a caption of that score and length is right."""
    terms = zip(EVIDENCE, evidence(score, tokens), strict=True)
    logit = calibration["intercept"] + sum(calibration[name] * value for name, value in terms)
    return 1 / (1 + math.exp(-max(min(logit, 500), -500)))


def calibrations_of(model, processor) -> dict[str, Mapping]:
    """What a processor says of the captions of `model`, by the token that begins them; {} where it says nothing.

    Args:
        model: before it is rounded to 8 bits.

    A calibration of other weights is left out, with a warning.
    """
    said = processor.confidence if model.can_generate() and processor.confidence else {}
    found = checksum_of_weights(model) if said else None
    if any(entry["weights"] != found for entry in said.values()):
        warnings.warn(
            f"{model.config.name_or_path}: its confidence was measured with other weights and is left out; measure it "
            "again with train/calibrate.py",
            stacklevel=2,
        )
    return {token: entry for token, entry in said.items() if entry["weights"] == found}


@torch.no_grad()
def checksum_of_weights(model) -> str:
    """Of the weights in bfloat16, which float16 and float32 copies of a checkpoint have alike."""
    checksum = 0
    for name, weights in sorted(model.named_parameters()):
        content = weights.detach().to(torch.bfloat16).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(content, zlib.crc32(name.encode(), checksum))
    return f"{checksum:08x}"
