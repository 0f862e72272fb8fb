"""Captions of a whole split, decoded by all processes together, and what they score."""

from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from metrics.caption_zh.scores import caption_scores
from metrics.caption_zh.segmentation import aic_icc_segment
from modeling_mengzi_oscar.features.extraction import batches_of_one_size

from .collators import CONTEXT, PIXELS
from .report import left_out_if_it_fails, say, write_rows, write_scores
from .trainer import in_order, share_of
from .usable_rows import has_words

METRICS = ("cider_d", "bleu_4", "bleu_3", "bleu_2", "bleu_1", "rouge_l", "meteor_exact")
SEEN_IN_TRAINING = ("cider_d", "bleu_4", "rouge_l")  # of these; beside them what chooses the best
LEVELS = ("char", "word", "aic_icc")
SCORES = (*(f"{level}_{metric}" for level in LEVELS for metric in METRICS), "distinct")


@torch.inference_mode()
def write_captions(model, rows, collator, training, options):
    """One caption per photo by beam search: dicts of image_id, caption and confidence, of all processes, in order.

    Confidence is exp of the mean log-probability, as the original writes it. Photos meet in batches of like numbers of
    regions, the most first: little is padded, and what does not fit into memory shows at once.
    """
    model.eval()
    captioner = getattr(model, "captioner", model)
    share = share_of(min(len(rows), options.max_eval_rows or len(rows)))
    predictions = []
    for indices, items in tqdm(
        batches(rows, share, training.eval_batch_size),
        desc="captions",
        total=-(-len(share) // training.eval_batch_size),
        leave=False,
        disable=not PartialState().is_main_process,
    ):
        batch = {name: tensor.to(model.device) for name, tensor in collator.context(items).items()}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training.bf16):
            if "pixel_values" in batch:
                regions = model.region_model(**{name: batch[name] for name in PIXELS if name in batch})
                encoded = rows.processor(tags=model.region_model.tags(regions), regions=regions)
                batch = dict(encoded.to(model.device))
            style = options.style or rows.styles[indices[0]]
            generated = captioner.generate(
                **{name: batch[name] for name in CONTEXT if name in batch},
                input_ids=rows.processor.begin(style, len(batch["region_features"])).to(model.device),
                num_beams=options.num_beams,
                max_length=length_of(style, rows.processor, options),
                return_dict_in_generate=True,
                output_scores=True,
            )
        confidence = [None] * len(generated.sequences)
        if options.num_beams > 1:  # greedy search keeps no score of the sentence
            confidence = generated.sequences_scores.exp().tolist()
        captions = zip(rows.processor.batch_decode(generated.sequences), confidence, strict=True)
        predictions += [
            (index, {"image_id": rows.image_ids[index], "caption": caption, "conf": conf})
            for index, (caption, conf) in zip(indices, captions, strict=True)
        ]
    return in_order(predictions)


def length_of(style, processor, options) -> int:
    """Tokens of a caption at the most. --max_gen_length is of --style; styles of rows may have their own."""
    if options.style is None:
        return (processor.style_lengths or {}).get(style, options.max_gen_length)
    return options.max_gen_length


def batches(rows, share, size):
    """(numbers, items) of photos that may be decoded together: of one style."""
    for style in dict.fromkeys(rows.styles):
        of_style = [index for index in share if rows.styles[index] == style]
        if rows.image_processor is None:
            numbers = sorted(of_style, key=rows.num_regions, reverse=True)
            for first in range(0, len(numbers), size):
                yield numbers[first : first + size], [rows[index] for index in numbers[first : first + size]]
        else:  # padded to the size of another photo a detector would find other things
            for batch in batches_of_one_size(((index, rows[index]) for index in of_style), size):
                yield tuple(zip(*batch, strict=True))


def score(predictions, references, protocol=None) -> dict:
    """Scores of characters and words, punctuation dropped on both sides, and how many captions differ; beside them what
    they mean nothing without.

    Photos without a reference that has a word are left out, which is said.

    Args:
        protocol: "aic-icc": those of the AI Challenger's evaluator, too (docs/metrics.md), under `aic_icc_...`.

    Raises:
        ValueError: the protocol refuses a caption; names its row.
    """
    references = [[text for text in row or () if text and has_words(text)] for row in references]
    pairs = [(row["caption"], texts) for row, texts in zip(predictions, references, strict=True) if texts]
    if len(pairs) < len(predictions):
        say(f"scores: {len(predictions) - len(pairs):,} of {len(predictions):,} photos have no reference with a word")
    if not pairs:
        say("no scores: there is nothing to compare the captions with")
        return {}
    captions, references = zip(*pairs, strict=True)
    scores = {"images": len(pairs), "distinct": len({row["caption"] for row in predictions})}
    for level, segment in (("char", "char"), ("word", "jieba")):
        with left_out_if_it_fails(f"scores of {level}s"):
            scores |= scores_of(level, captions, references, segment=segment)
    if protocol is not None:
        segmented = [[aic_icc_segment(text) for text in row] for row in references]
        scores |= scores_of("aic_icc", captions, segmented, protocol=protocol)
    return scores


def scores_of(level, captions, references, **how) -> dict:
    result = caption_scores(captions, references, metrics=("bleu", "rouge_l", "meteor_exact", "cider_d"), **how)
    return {f"{level}_{name}": result[name] for name in (*METRICS, "tokenizer", "punctuation")}


def best_metric(photos) -> str:
    """What chooses the best captioner. CIDEr-D of one photo alone is 0 by definition: every word is in every photo."""
    if len(photos) > 1:
        return "char_cider_d"
    say("one validation photo: its CIDEr-D is always 0, so the loss chooses the best; give it more")
    return "loss"


def predict(model, rows, split, collator, training, options):
    """Captions of a split and what they score against its column --references, into the output folder."""
    predictions = write_captions(model, rows, collator, training, options)
    if PartialState().is_main_process:
        references = split[options.references] if options.references in split.column_names else [[]] * len(rows)
        results = {"dataset": Path(options.dataset).name, "split": options.test_split, "references": options.references}
        results["protocol"] = options.protocol
        folder = Path(training.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "captions.jsonl", predictions)
        (folder / "scores.json").unlink(missing_ok=True)  # of other captions
        if scores := score(predictions, references[: len(predictions)], options.protocol):
            write_scores(folder, results | scores)


def evaluate_captions(model, rows, collator, training, options):
    """Scores, and samples for the report: a photo, its caption, and one of its own sentences."""
    predictions = write_captions(model, rows, collator, training, options)
    samples = [
        {"image_id": row["image_id"], "image": path, "lines": [row["caption"], *references[:1]]}
        for row, path, references in zip(predictions, rows.paths, rows.references, strict=False)
    ]
    scores = {}
    with left_out_if_it_fails("scores"):
        scores = score(predictions, rows.references[: len(predictions)], options.protocol)
    wanted = {f"{level}_{metric}" for level in LEVELS for metric in SEEN_IN_TRAINING}
    wanted |= {"distinct", str(training.metric_for_best_model).removeprefix("eval_")}
    return {name: value for name, value in scores.items() if name in wanted}, samples
