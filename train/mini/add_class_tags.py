"""Gives a trained mini the tags of ImageNet and more characters: the folder that stage 4 starts from.

    python train/mini/add_class_tags.py --model outputs/stage3/best --sentences data/coco-cn_ext.icap2020.txt \\
        --output outputs/stage4-start

The region model gets a branch with its last stages as they were before tuning, from the package that start_mini.py
names; its regions stay what they are, bit for bit. The vocabulary grows at its end by the characters of the tags and
by those that the sentences use at least twice; stage 4 teaches them.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import timm
import torch
from start_mini import load_imagenet_weights
from transformers import BertTokenizer

from datasets_scripts.reading import read_sentences
from modeling_mengzi_oscar import GridRegionConfig, GridRegionModel, MengziOscarForImageCaptioning, MengziOscarProcessor
from modeling_mengzi_oscar.hub import save_checkpoint, save_vocabulary
from modeling_mengzi_oscar.labels.imagenet import DOUBT, class_words
from modeling_mengzi_oscar.loading import load_region_model

TAG_THRESHOLD = 0.2
TAG_SURE = 0.5  # 79 of 100 such tags of training photos stand in a sentence that people wrote of them, below it 29


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the trained mini")
    parser.add_argument("--sentences", help="COCO-CN's sentences: their characters join the vocabulary")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--random_backbone", action="store_true", help="random weights instead of ImageNet's (for tests)"
    )
    options = parser.parse_args(arguments)

    # 1. Region model
    tuned, image_processor = load_region_model(options.model)
    word_of_class = class_words()
    words = list(dict.fromkeys(word_of_class))
    same = {name: getattr(tuned.config, name) for name in ("backbone", "backbone_kwargs", "num_features", "grid_size")}
    tags = {
        "tag_labels": words + [word + DOUBT for word in words],
        "tag_classes": [words.index(word) + 1 for word in word_of_class],  # 0 is no tag
    }
    thresholds = {"tag_threshold": TAG_THRESHOLD, "tag_sure": TAG_SURE}
    region_model = GridRegionModel(GridRegionConfig(**same, **tags, max_tags=3, **thresholds))
    region_model.backbone.load_state_dict(tuned.backbone.state_dict())
    original = timm.create_model(same["backbone"], num_classes=len(word_of_class))
    if not options.random_backbone:
        load_imagenet_weights(original)
    branch, stage = region_model.tag_branch, region_model.config.tag_stage
    branch.blocks.load_state_dict(original.blocks[stage:].state_dict())
    branch.conv_head.load_state_dict(original.conv_head.state_dict())
    branch.bn2.load_state_dict(original.bn2.state_dict())
    branch.set_classifier(original.classifier.weight.detach(), original.classifier.bias.detach())

    # 2. Captioner
    torch.manual_seed(88)
    captioner = MengziOscarForImageCaptioning.from_pretrained(options.model, dtype="float32")
    processor = MengziOscarProcessor.from_pretrained(options.model)
    known = processor.tokenizer.get_vocab()
    sentences, _ = read_sentences(options.sentences, known=None) if options.sentences else ({}, 0)
    counts = Counter("".join(sentence for captions in sentences.values() for sentence in captions))
    counts.update(dict.fromkeys("".join(words), 2))
    new_characters = sorted(
        c for c, count in counts.items() if count >= 2 and c.isprintable() and c.lower() not in known and c > " "
    )
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, "vocab.txt")
        save_vocabulary(processor.tokenizer, vocabulary)
        with vocabulary.open("a", encoding="utf-8") as file:
            file.writelines(f"{character}\n" for character in new_characters)
        tokenizer = BertTokenizer.from_pretrained(folder, extra_special_tokens=["[MT]"])
    captioner.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    processor = MengziOscarProcessor(
        tokenizer,
        max_regions=processor.max_regions,
        max_tags=3,
        styles={"short": "[CLS]", "detailed": "[MT]"},
        style_lengths={"detailed": 30},
        learnt_length=30,
    )

    # 3. Save
    save_checkpoint(options.output, captioner, processor, region_model, image_processor, dtype=torch.float32)
    print(
        f"{options.output}: {len(new_characters)} new characters, {len(words)} words for {len(word_of_class)} classes"
    )


if __name__ == "__main__":
    main()
