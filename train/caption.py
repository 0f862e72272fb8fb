"""Fine-tunes a captioner on photos and sentences, or writes captions with one and scores them.

    accelerate launch train/caption.py --do_train --recipe train/recipes/caption_coco.yaml \\
        --model_name_or_path mengzi-oscar --data_dir coco_caption --features stores/coco --output_dir outputs/coco
    python train/caption.py --do_predict --model_name_or_path checkpoints/mengzi-oscar-mini \\
        --dataset flickr8k_cn --data_dir data/flickr8k-cn --output_dir outputs/scores

Objectives: "masked", as published (15 % of a sentence's tokens, at most three); "dense", a loss at every position, all
sentences of a photo in one pass; "scst", rewarded by CIDEr-D, after one of the others. Without --features it works from
pixels with the checkpoint's own region model, parts of which --tune_region_model trains.

Run again with the same --output_dir it goes on from the last checkpoint. The best validation, captions decoded by beam
search with the averaged weights, is kept as <output_dir>/best, a folder laid out as a Hub repo.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from arguments import RunArguments, load_splits, open_stores, parse_arguments, split_of
from collators import CaptionRows, DenseCaptionCollator, MaskedCaptionCollator, MaskedCaptionRows
from fluent_translations import keep_fluent
from from_pixels import CaptionerFromPixels
from report import write_beside
from self_critical import SelfCriticalCollator, SelfCriticalTrainer
from tag_sentences import PhotosAndTagSentences, read_sentences
from trainer import OscarTrainer
from transformers import TrainingArguments
from write_captions import score, write_captions

from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarProcessor
from modeling_mengzi_oscar.extraction import label_texts
from modeling_mengzi_oscar.generation_mengzi_oscar import published_generation_config
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.pipeline_mengzi_oscar import load_region_model
from modeling_mengzi_oscar.quantization import quantize


@dataclass
class CaptionArguments(RunArguments):
    objective: str = field(default="dense", metadata={"help": "what is learnt", "choices": ["dense", "masked", "scst"]})
    tune_region_model: str | None = field(
        default=None, metadata={"help": "train from pixels: regular expression of region model parameters"}
    )
    region_model_learning_rate: float = 3e-4
    crops: bool = field(default=True, metadata={"help": "from pixels: crop and brighten at random"})
    tie_weights: bool | None = field(default=None, metadata={"help": "decoder = word embedding"})
    freeze_embedding: bool | None = field(default=None, metadata={"help": "the word embedding is not trained"})
    label_smoothing: float | None = field(default=None, metadata={"help": "instead of the checkpoint's"})
    drop_worst_ratio: float | None = field(default=None, metadata={"help": "share of the tokens with the worst losses"})
    drop_worst_after: int | None = field(default=None, metadata={"help": "micro-batches before they are dropped"})
    mask_prob: float = field(default=0.15, metadata={"help": "masked: share of a sentence's tokens"})
    max_masked_tokens: int = field(default=3, metadata={"help": "masked: at most so many"})
    max_seq_length: int = field(default=70, metadata={"help": "tokens of sentence and tags, after pre-training"})
    max_seq_a_length: int = field(default=40, metadata={"help": "tokens of a sentence with [CLS] and [SEP]"})
    machine_captions: bool = field(default=False, metadata={"help": "one machine translation a photo, begun by [MT]"})
    fluent_only: bool = field(default=False, metadata={"help": "of these the fluent, and people's long sentences"})
    sentences: str | None = field(default=None, metadata={"help": "COCO-CN's: sentences without photos for the tags"})
    sentences_only: bool = field(default=False, metadata={"help": "no photos: only such sentences"})
    foreign_regions: float = field(default=0.6, metadata={"help": "share of them with the regions of a random photo"})
    sentence_rounds: int = field(default=4, metadata={"help": "rows of such sentences per tag word and epoch"})
    sentences_per_photo: int | None = field(default=None, metadata={"help": "dense: draw so many; default all"})
    tag_dropout: float = field(default=0.0, metadata={"help": "share of the photos that go without their tags"})
    corruption: float = field(default=0.0, metadata={"help": "dense: share of written tokens replaced by random ones"})
    sc_train_sample_n: int = field(default=5, metadata={"help": "scst: samples of a photo"})
    sc_baseline_type: str = field(default="greedy", metadata={"help": "scst", "choices": ["greedy", "sample"]})
    sc_segment: str = field(default="char", metadata={"help": "scst: reward by", "choices": ["char", "jieba"]})
    num_beams: int = 5
    max_gen_length: int = field(default=20, metadata={"help": "tokens of a written caption with [CLS] and [SEP]"})
    style: str | None = field(
        default=None, metadata={"help": "of the written captions, where the checkpoint has several"}
    )
    int8: bool = field(default=False, metadata={"help": "--do_predict: multiply in 8 bits, on a CPU"})
    references: str = field(default="captions", metadata={"help": "--do_predict: column to score against"})


def main(arguments=None):
    options, training = parse_arguments(CaptionArguments, TrainingArguments, description=__doc__, arguments=arguments)

    # 1. Model: published settings that were given replace the checkpoint's
    processor = MengziOscarProcessor.from_pretrained(options.model_name_or_path)
    processor.max_regions = options.max_img_seq_length
    names = ("tie_weights", "freeze_embedding", "label_smoothing", "drop_worst_ratio", "drop_worst_after")
    settings = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.drop_out is not None:
        settings["hidden_dropout_prob"] = options.drop_out
    # On CPUs the fused attention is slower to train at these sizes.
    attention = "eager" if training.do_train and training.device.type == "cpu" else "sdpa"
    captioner = model = MengziOscarForImageCaptioning.from_pretrained(
        options.model_name_or_path, dtype="float32", attn_implementation=attention, **settings
    )
    region_model = image_processor = num_regions = None
    if processor.layout != "caption":  # only pre-trained so far
        processor.layout, processor.max_length = "caption", options.max_seq_length
        processor.max_tags = None if options.add_od_labels else 0
        captioner.generation_config = published_generation_config(captioner.config, options.max_gen_length)
    if captioner.config.region_model:
        region_model, image_processor = load_region_model(options.model_name_or_path)
    from_pixels = options.tune_region_model is not None or not options.features
    if from_pixels and region_model is None:
        raise SystemExit(f"{options.model_name_or_path} names no region model: --features must name region features")
    if from_pixels and options.objective != "dense":
        raise SystemExit(f"--objective {options.objective} works on stored features: --features is missing")
    if from_pixels:
        region_model.to(memory_format=torch.channels_last)
        num_regions = region_model.config.grid_size**2
        model = CaptionerFromPixels(captioner, region_model, options.tune_region_model or "^$").to(training.device)

    # 2. Data
    splits = load_splits(options)
    common = {"processor": processor, "max_length": options.max_seq_a_length, "seed": training.seed}
    if from_pixels:
        common |= {"image_processor": image_processor, "tag_labels": region_model.config.tag_labels}
    else:
        common["stores"] = open_stores(options)
        if options.add_od_labels:
            common["labels"] = common["stores"][0].labels or label_texts(region_model, "zh")
    dense = DenseCaptionCollator(processor, num_regions)

    # 3. Captions only
    if training.do_predict:
        rows = CaptionRows(split_of(splits, options.test_split), **common)
        if options.int8:
            quantize(captioner)
        predictions = write_captions(model.to(training.device), rows, dense, training, options)
        if PartialState().is_main_process:
            results = {"split": options.test_split, "references": options.references, "punctuation": "dropped"}
            results |= score(predictions, split_of(splits, options.test_split)[options.references][: len(predictions)])
            folder = Path(training.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in predictions]
            write_beside(folder / "captions.jsonl", "".join(lines))
            write_beside(folder / "scores.json", json.dumps(results, indent=2))
            print(json.dumps(results, indent=2))
        return

    # 4. What the objective learns from
    trainer_class, more, collator, rows_class, validation_rows = OscarTrainer, {}, dense, CaptionRows, CaptionRows
    names = ("crops", "corruption", "tag_dropout", "sentences_per_photo")
    draws = {name: getattr(options, name) for name in names}
    sentences = read_sentences(options.sentences) if options.sentences else []
    if options.machine_captions:
        draws["machine_start_id"] = processor.tokenizer.convert_tokens_to_ids("[MT]")
    if options.fluent_only:
        splits["train"] = keep_fluent(split_of(splits, "train"), sentences)
    if options.objective == "masked":
        collator, rows_class, validation_rows = MaskedCaptionCollator(processor), MaskedCaptionRows, MaskedCaptionRows
        draws = {"mask_prob": options.mask_prob, "max_masked_tokens": options.max_masked_tokens}
    train = rows_class(split_of(splits, "train"), **common, **draws, training=True)
    if sentences:
        shares = {"foreign_regions": options.foreign_regions, "sentences_only": options.sentences_only}
        train = PhotosAndTagSentences(train, sentences, options.sentence_rounds, **shares)
    validation = CaptionRows(split_of(splits, "validation"), **common)
    if options.objective == "scst":
        trainer_class, collator = SelfCriticalTrainer, SelfCriticalCollator(processor)
        more = {"processor": processor, "references": train.references, "segment": options.sc_segment}

    # 5. Evaluation: captions of the validation photos
    def evaluate_captions(model):
        predictions = write_captions(model, validation, dense, training, options)
        samples = [
            {"image_id": row["image_id"], "image": path, "lines": [row["caption"], *references[:1]]}
            for row, path, references in zip(predictions, validation.paths, validation.references, strict=False)
        ]
        return score(predictions, validation.references[: len(predictions)]), samples

    # 6. Train
    if from_pixels:
        groups = model.optimizer_groups(training, options.region_model_learning_rate)
        betas = (training.adam_beta1, training.adam_beta2)
        more["optimizers"] = (torch.optim.AdamW(groups, betas=betas, fused=True), None)
    trainer_class(
        model=model,
        args=training,
        options=options,
        task="caption",
        best_metric="char_cider_d",
        data_collator=collator,
        train_dataset=train,
        eval_dataset=validation_rows(split_of(splits, "validation"), **common),
        evaluate_task=evaluate_captions,
        save=lambda folder, card: save_checkpoint(
            folder, captioner, processor, region_model, image_processor, card=card
        ),
        **more,
    ).run()


if __name__ == "__main__":
    main()
