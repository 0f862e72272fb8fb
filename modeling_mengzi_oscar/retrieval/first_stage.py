"""Which pairs a cheaper model leaves worth a look, so that not all N x M are scored."""

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..photos import open_photo


def shortlist(first_stage, top: int, columns: int = 1024) -> list[np.ndarray]:
    """Pairs worth a second look: per image (row) the numbers of the texts, ascending.

    A pair is in when its text is among the `top` of its image or its image among the `top` of its text, so that both
    directions of retrieval have their candidates.

    Args:
        first_stage: (N, M) scores of a cheaper model, higher = better; may be memory-mapped.
        columns: texts read at a time.
    """
    images, texts = first_stage.shape
    per_image, per_text = min(top, texts), min(top, images)
    texts_of_image = [
        set(np.argpartition(-np.asarray(row, np.float32), per_image - 1)[:per_image]) for row in first_stage
    ]
    for start in range(0, texts, columns):
        block = np.asarray(first_stage[:, start : start + columns], np.float32)
        best = np.argpartition(-block, per_text - 1, axis=0)[:per_text]  # (top, columns)
        for offset, rows in enumerate(best.T):
            for row in rows:
                texts_of_image[row].add(start + offset)
    return [np.array(sorted(numbers), dtype=np.int64) for numbers in texts_of_image]


@torch.inference_mode()
def encoder_scores(model, processor, photos, texts, batch_size: int = 64) -> np.ndarray:
    """First stage: cosines (N, M) of a model with two towers, e.g. Chinese-CLIP, from `AutoModel` and `AutoProcessor`.

    Any model of transformers with `get_image_features` and `get_text_features` will do.

    Args:
        photos: paths, PIL images or arrays, opened batch by batch. texts: strings.
    """

    def encode(rows, make):
        parts = []
        for start in tqdm(range(0, len(rows), batch_size), desc="first stage", delay=2):
            features = make(rows[start : start + batch_size])
            features = getattr(features, "pooler_output", features)
            parts.append(nn.functional.normalize(features.float(), dim=-1).cpu())
        return torch.cat(parts)

    def image_features(batch):
        inputs = processor(images=[open_photo(photo) for photo in batch], return_tensors="pt")
        return model.get_image_features(pixel_values=inputs["pixel_values"].to(model.device, model.dtype))

    def text_features(batch):
        inputs = processor(text=list(batch), padding=True, truncation=True, return_tensors="pt").to(model.device)
        return model.get_text_features(**inputs)

    model.eval()
    return (encode(photos, image_features) @ encode(texts, text_features).T).numpy()
