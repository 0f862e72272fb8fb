"""Captions of a whole split, decoded by all processes together, and what they score."""

from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from metrics.caption_zh.scores import caption_scores

from .collators import CONTEXT
from .report import write_rows, write_scores
from .trainer import in_order, share_of


@torch.inference_mode()
def write_captions(model, rows, collator, training, options):
    """One caption per photo by beam search: dicts of image_id, caption and confidence, of all processes, in order.

    Confidence is exp of the mean log-probability, as the original writes it. Photos meet in batches of like numbers of
    regions, the most first: little is padded, and what does not fit into memory shows at once.
    """
    model.eval()
    captioner = getattr(model, "captioner", model)
    share = share_of(min(len(rows), options.max_eval_rows or len(rows)))
    indices = sorted(share, key=rows.num_regions, reverse=True)
    captions = []
    loader = DataLoader(Subset(rows, indices), batch_size=training.eval_batch_size, collate_fn=collator.context)
    for batch in tqdm(loader, desc="captions", leave=False, disable=not PartialState().is_main_process):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training.bf16):
            if "pixel_values" in batch:
                regions = model.region_model(batch.pop("pixel_values"), batch["original_sizes"])
                encoded = rows.processor(tags=model.region_model.tags(regions), regions=regions)
                batch = dict(encoded.to(model.device))
            generated = captioner.generate(
                **{name: batch[name] for name in CONTEXT if name in batch},
                input_ids=rows.processor.begin(options.style, len(batch["region_features"])).to(model.device),
                num_beams=options.num_beams,
                max_length=options.max_gen_length,
                return_dict_in_generate=True,
                output_scores=True,
            )
        confidence = [None] * len(generated.sequences)
        if options.num_beams > 1:  # greedy search keeps no score of the sentence
            confidence = generated.sequences_scores.exp().tolist()
        captions += zip(rows.processor.batch_decode(generated.sequences), confidence, strict=True)
    predictions = [
        (index, {"image_id": rows.image_ids[index], "caption": caption, "conf": confidence})
        for index, (caption, confidence) in zip(indices, captions, strict=True)
    ]
    return in_order(predictions)


def score(predictions, references):
    """Character and word level scores, punctuation dropped on both sides, and how many captions differ."""
    captions = [prediction["caption"] for prediction in predictions]
    scores = {"distinct": len(set(captions))}
    for level, segment in (("char", "char"), ("word", "jieba")):
        result = caption_scores(captions, references, segment=segment, metrics=("bleu", "rouge_l", "cider_d"))
        scores |= {f"{level}_{name}": result[name] for name in ("bleu_4", "rouge_l", "cider_d")}
    return scores


def predict(model, rows, split, collator, training, options):
    """Captions of a split and what they score against its column --references, into the output folder."""
    references = split[options.references]
    predictions = write_captions(model, rows, collator, training, options)
    if PartialState().is_main_process:
        results = {"split": options.test_split, "references": options.references, "punctuation": "dropped"}
        folder = Path(training.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "captions.jsonl", predictions)
        write_scores(folder, results | score(predictions, references[: len(predictions)]))


def evaluate_captions(model, rows, collator, training, options):
    """Scores, and samples for the report: a photo, its caption, and one of its own sentences."""
    predictions = write_captions(model, rows, collator, training, options)
    samples = [
        {"image_id": row["image_id"], "image": path, "lines": [row["caption"], *references[:1]]}
        for row, path, references in zip(predictions, rows.paths, rows.references, strict=False)
    ]
    return score(predictions, rows.references[: len(predictions)]), samples
