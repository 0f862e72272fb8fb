"""A checkpoint as one folder, laid out as a Hub repo: captioner, processor, generation config, region model."""

import os
import shutil
from pathlib import Path

import torch

REGION_MODEL_FOLDER = "region_model"


def save_checkpoint(folder, captioner, processor, region_model, image_processor, dtype=torch.float16, card=None):
    """Writes everything that `MengziOscarPipeline.from_pretrained` reads; replaces an older folder when it is whole.

    The weights are stored in `dtype`, the models passed in stay as they are.
    """
    folder = Path(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    captioner.config.region_model = REGION_MODEL_FOLDER
    save_in_dtype(captioner, temporary, dtype)
    save_in_dtype(region_model, temporary / REGION_MODEL_FOLDER, dtype)
    image_processor.save_pretrained(temporary / REGION_MODEL_FOLDER)
    processor.save_pretrained(temporary)
    save_vocabulary(processor.tokenizer, temporary / "vocab.txt")
    if card is not None:
        (temporary / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def save_in_dtype(model, folder, dtype):
    """`save_pretrained` of a copy of the floating-point weights in another type."""
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in model.state_dict().items()}
    before, model.config.dtype = model.config.dtype, dtype
    model.save_pretrained(folder, state_dict=state)
    model.config.dtype = before


def save_vocabulary(tokenizer, path):
    """vocab.txt, one token a line in the order of the ids, as BERT checkpoints have it."""
    vocabulary = tokenizer.get_vocab()
    path.write_text("".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")
