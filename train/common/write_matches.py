"""Images and sentences of a split, scored against one another: recall, the best matches, files for evaluators."""

import json
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import AutoModel, AutoProcessor

from metrics.retrieval_recall.recall import retrieval_recall
from modeling_mengzi_oscar.files import open_whole
from modeling_mengzi_oscar.retrieval import encoder_scores, score_matrix, shortlist

from .matching_rows import ImageRows
from .report import say, write_beside, write_rows, write_scores
from .trainer import in_order, share_of

BEST = 10  # matches written per image and per text
SCORES = ("image_to_text", "text_to_image", "mean_recall", "images", "texts")


def candidates_of(rows, images, options):
    """Numbers of the texts listed for each image, where the data list some and all pairs were not asked for."""
    if options.cross_image_eval or "candidates" not in rows.column_names or not any(rows["candidates"]):
        return None
    # texts are numbered through: the third caption of an image is its first text's number + 2
    first_text = np.searchsorted(images.owners, np.arange(len(images))).tolist()
    first_text = dict(zip(images.image_ids, first_text, strict=True))
    counts = dict(zip(images.image_ids, map(len, images.captions), strict=True))
    limit = options.num_captions_per_img_val or None
    return [
        [
            first_text[candidate["image_id"]] + candidate["caption"]
            for candidate in candidates[:limit]
            if candidate["caption"] < counts.get(candidate["image_id"], 0)  # of an image that is not left out
        ]
        for candidates in rows["candidates"]
    ]


def best_metric(images) -> str:
    """What chooses the best matcher. One image alone is always found, whatever the matcher says."""
    if len(images) > 1:
        return "image_to_text_r1"
    say("one validation image: its recall is always 1, so the loss chooses the best; give it more")
    return "loss"


def stored_scores(flag, path):
    """The matrix of a .npy file, mapped.

    Raises:
        SystemExit: names the flag and the file that is none.
    """
    try:
        scores = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise SystemExit(f"{flag} {path}: not a matrix of scores in a .npy file ({error})") from None
    if not isinstance(scores, np.ndarray) or scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise SystemExit(f"{flag} {path}: not a matrix of scores (images x texts) in a .npy file")
    return scores


def recall(scores, owners, candidates=None) -> dict:
    """Recall both ways; texts that the data list for each image say nothing about finding images."""
    results = retrieval_recall(scores, owners)
    if candidates is None:
        return results
    return {name: value for name, value in results.items() if not name.startswith(("text_to_image", "mean_recall"))}


def evaluate_recall(engine, images, candidates, photos=None):
    """Scores, and samples for the report: an image, the text that the engine likes best, one of its own texts."""
    texts, scores_of_images = engine.encode(images.texts), []
    for index in share_of(len(images)):
        listed = None if candidates is None else candidates[index]
        scores = np.full(len(texts), -np.inf, dtype=np.float32)
        scores[slice(None) if listed is None else listed] = engine.row(images[index], texts, listed).cpu()
        scores_of_images.append((index, scores))
    scores = np.stack(in_order(scores_of_images))  # (images, texts)
    samples = [
        {
            "image_id": image_id,
            "image": photo and photo["path"],
            "lines": [images.texts[text], images.captions[index][0]],
        }
        for index, (image_id, photo, text) in enumerate(
            zip(images.image_ids, photos or [None] * len(images), scores.argmax(axis=1), strict=True)
        )
    ]
    return recall(scores, images.owners, candidates), samples


def predict(engine, rows, settings, options, training):
    """Scores, matches and recall of a split, into the output folder; resumes where a killed run stopped."""
    rows = rows.select(range(min(len(rows), options.max_eval_rows or len(rows))))
    images = ImageRows(rows, **settings, captions=options.num_captions_per_img_val)
    folder, state = Path(training.output_dir), PartialState()
    candidates = pairs = candidates_of(rows, images, options)  # of each image the texts to score; None = all
    if options.first_stage:
        candidates, pairs = None, shortlist(first_stage(options, rows, images, training), options.shortlist)
    path = folder / "scores.npy"
    score_matrix(engine, images, images.texts, path, pairs, state.process_index, state.num_processes)
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    if not path.exists():
        raise ValueError(f"{path}: not all images are scored, a process ended early; start again to resume")
    scores = np.load(path, mmap_mode="r")
    for image_id, row in zip(images.image_ids, scores, strict=True):
        if pairs is None and not np.isfinite(row).all():
            raise ValueError(f"{path}: image {image_id!r} has texts without a score; delete it to start again")
    results = recall(scores, images.owners, candidates)
    original = {
        f"{short}_retrieval": {f"R@{k}": results[f"{name}_r{k}"] for k in (1, 5, 10)}
        for short, name in (("i2t", "image_to_text"), ("t2i", "text_to_image"))
        if f"{name}_r1" in results
    }
    results |= {"split": options.test_split, "pairs": len(images) * len(images.texts)}
    results["pairs_scored"] = results["pairs"] if pairs is None else sum(map(len, pairs))
    write_beside(folder / "eval.json", json.dumps(original, indent=2))
    write_rows(folder / "matches.jsonl", best_matches(engine, scores, images))
    if options.results_pt:
        with open_whole(folder / "results.pt") as file:
            torch.save(original_results(engine, scores, pairs), file)
    write_scores(folder, results)


def first_stage(options, rows, images, training):
    """A stored matrix, or the cosines of a two-tower model.

    Raises:
        SystemExit: the matrix is of other images and texts, or the data have no photos to look at.
    """
    if options.first_stage.endswith(".npy"):
        scores = stored_scores("--first_stage", options.first_stage)
        if scores.shape != (len(images), len(images.texts)):
            raise SystemExit(
                f"{options.first_stage} is {scores.shape[0]} x {scores.shape[1]}, the split has {len(images)} images "
                f"and {len(images.texts)} texts"
            )
        return scores
    if "image" not in rows.column_names:
        raise SystemExit(f"--first_stage {options.first_stage} needs the photos, which this data set does not carry")
    model = AutoModel.from_pretrained(options.first_stage, trust_remote_code=False).to(training.device)
    processor = AutoProcessor.from_pretrained(options.first_stage, trust_remote_code=False)
    return encoder_scores(model, processor, [photo["path"] for photo in rows["image"]], images.texts)


def best_matches(engine, scores, images):
    """A row per image with its best texts, then a row per text with its best images; pairs not scored stay out."""
    for image, image_id in enumerate(images.image_ids):
        matches = [
            {"text": images.texts[text], "probability": probability, "own": bool(images.owners[text] == image)}
            for text, probability in best(engine, scores[image])
        ]
        yield {"image_id": image_id, "texts": matches}
    for text, sentence in enumerate(images.texts):
        matches = [
            {"image_id": images.image_ids[image], "probability": probability, "own": bool(images.owners[text] == image)}
            for image, probability in best(engine, scores[:, text])
        ]
        yield {"text": sentence, "images": matches}


def best(engine, scores):
    """(number, probability) of the best that were scored."""
    scores = np.asarray(scores, np.float32)
    order = np.argsort(-scores, kind="stable")[:BEST]
    order = order[np.isfinite(scores[order])]
    return zip(order.tolist(), np.round(engine.probabilities(scores[order]), 6).tolist(), strict=True)


def original_results(engine, scores, pairs):
    """{index: score} as Oscar's results.pt: image x texts + text, or image x candidates + place in the list."""
    scored = [scores[i] if pairs is None else scores[i][pairs[i]] for i in range(len(scores))]
    return dict(enumerate(engine.probabilities(np.concatenate(scored)).tolist()))
