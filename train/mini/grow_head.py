"""Adapts a head trained for an older captioner to a newer one's vocabulary and regions.

    python train/mini/grow_head.py --head checkpoints/mengzi-oscar-mini/match --captioner outputs/objects-start \\
        --output outputs/match-start

A vocabulary only ever grows at its end (add_objects.py): what the head learnt of its characters stays, the new ones are
the captioner's.
"""

import argparse

import torch

from modeling_mengzi_oscar import (
    MengziOscarForImageCaptioning,
    MengziOscarForImageTextRetrieval,
    MengziOscarForVisualQuestionAnswering,
    MengziOscarProcessor,
)
from modeling_mengzi_oscar.checkpoint_folder import CheckpointFolder
from modeling_mengzi_oscar.hub import save_checkpoint

TASKS = {"retrieval": MengziOscarForImageTextRetrieval, "vqa": MengziOscarForVisualQuestionAnswering}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", required=True, help="folder of a trained match or ask head")
    parser.add_argument("--captioner", required=True, help="folder of the captioner that it shall stand below")
    parser.add_argument("--output", required=True, help="folder to write")
    options = parser.parse_args(arguments)

    # 1. Read
    [architecture] = CheckpointFolder(options.head).json("config.json")["architectures"]
    task = next((task for task, kind in TASKS.items() if kind.__name__ == architecture), None)
    if task is None:
        parser.error(f"--head {options.head} is a {architecture}, neither a match nor an ask head")
    head = TASKS[task].from_pretrained(options.head, dtype=torch.float32)
    captioner = MengziOscarForImageCaptioning.from_pretrained(options.captioner, dtype=torch.float32)
    processor = MengziOscarProcessor.from_pretrained(options.head)
    newer = MengziOscarProcessor.from_pretrained(options.captioner)
    known, vocabulary = processor.tokenizer.get_vocab(), newer.tokenizer.get_vocab()
    if moved := [token for token, number in known.items() if vocabulary.get(token) != number]:
        parser.error(f"the vocabulary of {options.captioner} does not begin with that of {options.head}: {moved[0]}")

    # 2. Grow
    head.resize_token_embeddings(len(vocabulary), mean_resizing=False)
    with torch.no_grad():
        words = captioner.get_input_embeddings().weight
        head.get_input_embeddings().weight[len(known) :] = words[len(known) : len(vocabulary)]
    processor.tokenizer, processor.max_regions = newer.tokenizer, newer.max_regions

    # 3. Save
    save_checkpoint(options.output, head, processor, task=task, dtype=torch.float32)
    print(f"{options.output}: {len(vocabulary) - len(known)} new characters")


if __name__ == "__main__":
    main()
