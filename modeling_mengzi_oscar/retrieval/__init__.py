"""Many photos x many sentences: all scores in a file that survives kills, and which pairs are worth scoring."""

from .first_stage import encoder_scores, shortlist
from .score_file import StoredImages, score_matrix

__all__ = ["StoredImages", "encoder_scores", "score_matrix", "shortlist"]
