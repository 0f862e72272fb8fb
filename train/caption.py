"""Fine-tunes a captioner on photos and sentences, or writes captions with one and scores them.

    accelerate launch train/caption.py --do_train --recipe train/recipes/caption_coco.yaml \\
        --model_name_or_path mengzi-oscar --data_dir coco_caption --features stores/coco --output_dir outputs/coco
    python train/caption.py --do_predict --model_name_or_path checkpoints/mengzi-oscar-mini \\
        --dataset flickr8k_cn --data_dir data/flickr8k-cn --output_dir outputs/scores

Objectives: "masked", as published (15 % of a sentence's tokens, at most three); "dense", a loss at every position, all
sentences of a photo in one pass; "scst", rewarded by CIDEr-D, after one of the others. Without --features it works from
pixels with the checkpoint's own region model, parts of which --tune_region_model trains. How the mini learnt its tags,
with sentences that have no photo, is in common/tag_sentences.py.

Run again with the same --output_dir it goes on from the last checkpoint. The best validation, captions decoded by beam
search with the averaged weights, is kept as <output_dir>/best, a folder laid out as a Hub repo.
"""

from dataclasses import dataclass, field

from common.arguments import (
    RunArguments,
    attention_of,
    load_splits,
    open_stores,
    parse_arguments,
    settings_of,
    split_of,
    tag_texts,
)
from common.collators import CaptionRows, DenseCaptionCollator, MaskedCaptionCollator, MaskedCaptionRows
from common.from_pixels import CaptionerFromPixels
from common.self_critical import SelfCriticalCollator, SelfCriticalTrainer
from common.tag_sentences import TagSentenceArguments, rows_with_tag_sentences
from common.trainer import OscarTrainer
from common.write_captions import evaluate_captions, predict
from transformers import TrainingArguments

from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarProcessor
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
    options, teaching, training = parse_arguments(
        CaptionArguments, TagSentenceArguments, TrainingArguments, description=__doc__, arguments=arguments
    )

    # 1. Model
    captioner, processor = load_captioner(options, training)
    model, region_model, image_processor, num_regions = captioner, None, None, None
    if captioner.config.region_model:
        region_model, image_processor = load_region_model(options.model_name_or_path)
    from_pixels = options.tune_region_model is not None or not options.features
    if from_pixels:
        model = with_region_model(captioner, region_model, options).to(training.device)
        num_regions = region_model.config.grid_size**2

    # 2. Data
    splits = load_splits(options)
    common = {"processor": processor, "max_length": options.max_seq_a_length, "seed": training.seed}
    if from_pixels:
        common |= {"image_processor": image_processor, "tag_labels": region_model.config.tag_labels}
    else:
        common["stores"] = open_stores(options)
        if options.add_od_labels:
            common["labels"] = tag_texts(options, common["stores"][0])
    dense = DenseCaptionCollator(processor, num_regions)

    # 3. Captions only
    if training.do_predict:
        split = split_of(splits, options.test_split)
        if options.int8:
            quantize(captioner)
        predict(model.to(training.device), CaptionRows(split, **common), split, dense, training, options)
        return

    # 4. What the objective learns from, and validation takes the loss of
    train = training_rows(split_of(splits, "train"), common, options, teaching)
    validation = losses = CaptionRows(split_of(splits, "validation"), **common)
    trainer_class, collator, more = OscarTrainer, dense, {}
    if options.objective == "masked":
        collator, losses = MaskedCaptionCollator(processor), MaskedCaptionRows(splits["validation"], **common)
    if options.objective == "scst":
        trainer_class, collator = SelfCriticalTrainer, SelfCriticalCollator(processor)
        more = {"processor": processor, "references": train.references, "segment": options.sc_segment}

    # 5. Train; captions of the validation photos decide which weights are the best
    if from_pixels:
        more["optimizers"] = (model.optimizer(training, options.region_model_learning_rate), None)
    trainer_class(
        model=model,
        args=training,
        options=options,
        task="caption",
        best_metric="char_cider_d",
        data_collator=collator,
        train_dataset=train,
        eval_dataset=losses,
        evaluate_task=lambda model: evaluate_captions(model, validation, dense, training, options),
        save=lambda folder, card: save_checkpoint(
            folder, captioner, processor, region_model, image_processor, card=card
        ),
        **more,
    ).run()


def load_captioner(options, training):
    """Captioner and processor; published settings that were given replace the checkpoint's."""
    names = ("tie_weights", "freeze_embedding", "label_smoothing", "drop_worst_ratio", "drop_worst_after")
    captioner = MengziOscarForImageCaptioning.from_pretrained(
        options.model_name_or_path,
        dtype="float32",
        attn_implementation=attention_of(training),
        **settings_of(options, *names),
    )
    processor = MengziOscarProcessor.from_pretrained(options.model_name_or_path)
    processor.max_regions = options.max_img_seq_length
    if processor.layout != "caption":  # only pre-trained so far
        processor.layout, processor.max_length = "caption", options.max_seq_length
        processor.max_tags = None if options.add_od_labels else 0
        captioner.generation_config = published_generation_config(captioner.config, options.max_gen_length)
    return captioner, processor


def with_region_model(captioner, region_model, options):
    """Both as one model, which works from pixels.

    Raises:
        SystemExit: the checkpoint has no region model, or the objective needs stored features.
    """
    if region_model is None:
        raise SystemExit(f"{options.model_name_or_path} names no region model: --features must name region features")
    if options.objective != "dense":
        raise SystemExit(f"--objective {options.objective} works on stored features: --features is missing")
    return CaptionerFromPixels(captioner, region_model, options.tune_region_model or "^$")


def training_rows(rows, common, options, teaching):
    """What `--objective` learns from a split.

    Raises:
        SystemExit: sentences without photos were given where they cannot be read.
    """
    if teaching.sentences and (options.objective != "dense" or "stores" not in common):
        raise SystemExit("--sentences go with --objective dense and --features only")
    if options.objective == "masked":
        masks = {"mask_prob": options.mask_prob, "max_masked_tokens": options.max_masked_tokens}
        return MaskedCaptionRows(rows, **common, **masks, training=True)
    draws = {"crops": options.crops, "corruption": options.corruption, "training": True}
    if options.machine_captions:
        draws["machine_start_id"] = common["processor"].tokenizer.convert_tokens_to_ids("[MT]")
    return rows_with_tag_sentences(rows, teaching, lambda rows, **more: CaptionRows(rows, **common, **draws, **more))


if __name__ == "__main__":
    main()
