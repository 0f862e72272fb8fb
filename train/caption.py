"""Fine-tunes a captioner on photos and sentences, or writes captions with one and scores them.

    accelerate launch train/caption.py --do_train --recipe train/recipes/caption_coco.yaml \\
        --model_name_or_path mengzi-oscar --data_dir coco_caption --features stores/coco --output_dir outputs/coco
    python train/caption.py --do_predict --model_name_or_path checkpoints/mengzi-oscar-mini \\
        --dataset flickr8k_cn --data_dir data/flickr8k-cn --output_dir outputs/scores

Objectives: "masked", as published (15 % of a sentence's tokens, at most three); "dense", a loss at every position, all
sentences of a photo in one pass; "scst", rewarded by CIDEr-D, after one of the others. Without --features it works from
pixels with the checkpoint's own region model, parts of which --tune_region_model trains. How a captioner learns
to believe its tags, by sentences that have no photo, is in common/tag_sentences.py.

Rows may have a column `style` (the mini: short, detailed): their sentences are learnt in that style, and evaluations
caption each photo in the style of its row. Rows of several data sets have a column `dataset`, and each its stores:
--features coco=stores/coco flickr=stores/flickr flickr=stores/flickr-flipped.

Run again with the same --output_dir it resumes from the last checkpoint. The best validation, captions decoded by beam
search with the averaged weights, is kept as <output_dir>/best, a folder laid out as a Hub repo.
"""

from dataclasses import dataclass
from functools import partial

from common.arguments import (
    PUBLISHED,
    RunArguments,
    attention_of,
    check_width,
    checkpoint_of,
    every,
    flag,
    load_splits,
    model_from,
    parse_arguments,
    processor_from,
    settings_of,
    split_of,
    splits_needed,
    stores_of_datasets,
    tag_texts,
    told_in_one_line,
)
from common.caption_lengths import set_lengths, set_search
from common.collators import CaptionRows, DenseCaptionCollator, MaskedCaptionCollator, MaskedCaptionRows
from common.from_pixels import with_region_model
from common.lora import with_adapters
from common.report import say
from common.self_critical import SelfCriticalCollator, SelfCriticalTrainer
from common.tag_sentences import TagSentenceArguments, rows_with_tag_sentences
from common.trainer import OscarTrainer
from common.usable_rows import check_columns, check_photo, usable_splits
from common.write_captions import SCORES, best_metric, evaluate_captions, predict
from transformers import TrainingArguments

from modeling_mengzi_oscar import MengziOscarForImageCaptioning
from modeling_mengzi_oscar.generation_mengzi_oscar import published_generation_config
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.hub.repo import HEADS, subfolder_of
from modeling_mengzi_oscar.loading import load_region_model
from modeling_mengzi_oscar.precision import compute_in, region_dtype


@dataclass
class CaptionArguments(RunArguments):
    objective: str = flag(
        "Training objective. dense: a loss at every position of every sentence, all sentences of a photo packed over "
        "one set of regions. masked: as published, a few masked tokens per sentence. scst: self-critical sequence "
        "training with CIDEr-D as reward, from a captioner that is trained already.",
        default="dense",
        choices=["dense", "masked", "scst"],
    )
    tune_region_model: str | None = flag(
        "Train from pixels, and train those parameters of the region model, too, whose names match this regular "
        "expression. Its detector, and the stages that name classes, stay as they are. If not given, the region model "
        "is frozen.",
        default=None,
    )
    region_model_learning_rate: float = flag(
        "From pixels: learning rate of the region model (--learning_rate is the captioner's).", default=3e-4
    )
    tie_weights: bool | None = flag(
        "Tie the decoder of the language modelling head to the word embedding. If not given, as in the checkpoint.",
        default=None,
    )
    freeze_embedding: bool | None = flag("Freeze the word embedding. If not given, as in the checkpoint.", default=None)
    label_smoothing: float | None = flag(
        "Label smoothing: probability mass taken from the target token and spread over all others. If not given, as in "
        "the checkpoint.",
        default=None,
    )
    drop_worst_ratio: float | None = flag(
        "Leave this fraction of a batch's tokens, those with the highest losses, out of the loss. If not given, as in "
        "the checkpoint.",
        default=None,
    )
    drop_worst_after: int | None = flag(
        "Number of training batches before --drop_worst_ratio begins; with gradient accumulation each micro-batch "
        "counts. If not given, as in the checkpoint.",
        default=None,
    )
    lora_r: int = flag(
        "Rank of low-rank adapters (LoRA, needs peft). They alone are trained, beside what --tune_region_model names; "
        "best/ has them merged into its weights. 0: train all weights.",
        default=0,
    )
    mask_prob: float = flag("masked: fraction of a sentence's tokens that are predicted, at least one.", default=0.15)
    max_masked_tokens: int = flag("masked: maximum number of predicted tokens per sentence.", default=3)
    max_seq_length: int | None = flag(
        f"Maximum length in tokens of sentence and tags together. {PUBLISHED}", default=None
    )
    max_seq_a_length: int | None = flag(
        "Maximum length in tokens of a training sentence with [CLS] and [SEP]; longer ones are cut. If not given, what "
        "99 of 100 training sentences fit in.",
        default=None,
    )
    corruption: float = flag(
        "dense: probability that an input token is replaced by a random one, so that captioning can recover from its "
        "own mistakes. The targets stay right.",
        default=0.0,
    )
    sc_train_sample_n: int = flag("scst: number of captions sampled per photo.", default=5)
    sc_baseline_type: str = flag(
        "scst: baseline of the reward. greedy: the greedy caption; sample: the mean of the photo's other samples.",
        default="greedy",
        choices=["greedy", "sample"],
    )
    sc_segment: str = flag(
        "scst: words of the CIDEr-D reward. char: characters; jieba: as jieba segments.",
        default="char",
        choices=["char", "jieba"],
    )
    num_beams: int | None = flag(
        "Number of beams when captions are generated; 1: greedy search. If not given, as the checkpoint says.",
        default=None,
    )
    max_gen_length: int | None = flag(
        "Maximum length in tokens of a generated caption with [CLS] and [SEP], noted in what is saved. If not given, "
        "what 99 of 100 training sentences fit in; with --do_predict what the checkpoint says.",
        default=None,
    )
    style: str | None = flag(
        "Style of the generated captions, of a checkpoint that knows several (the mini: short, detailed). If not "
        "given, that of a row where the data have a column style; else captions begin with [CLS].",
        default=None,
    )
    protocol: str | None = flag(
        "Scores of an official evaluator beside ours: aic-icc, of the AI Challenger 2017 (docs/metrics.md).",
        default=None,
        choices=["aic-icc"],
    )
    references: str = flag(
        "--do_predict: column of the data set that holds the reference sentences.", default="captions"
    )


@told_in_one_line
def main(arguments=None):
    options, tag_sentences, training = parse_arguments(
        CaptionArguments, TagSentenceArguments, TrainingArguments, description=__doc__, arguments=arguments
    )

    # 1. Data and model
    splits = load_splits(options, *(needed := splits_needed(options, training)))
    if training.do_predict:  # captions are written without references, too, unless one asked for others
        columns = ("image_id",) if options.references == "captions" else ("image_id", options.references)
    else:
        columns = ("image_id", "captions")
    check_columns(splits, needed, columns)
    from_pixels = options.tune_region_model is not None or not options.features
    stores = {} if from_pixels else stores_of_datasets(options)
    start = checkpoint_of(options)
    captioner, processor = load_captioner(start, options, training)
    adapts = options.lora_r and not training.do_predict  # --do_train says nothing new: what does not predict trains
    merged = with_adapters(captioner, options.lora_r) if adapts else lambda: captioner
    model, region_model, image_processor = captioner, None, None
    if from_pixels:
        if captioner.config.region_model:
            region_model, image_processor = load_region_model(options.model_name_or_path)
        model = with_region_model(captioner, processor, region_model, options, training).to(training.device)

    # 2. What cannot be used is said, or left out
    settings = {"processor": processor, "seed": training.seed}
    if from_pixels:
        tag_texts(options, training, processor, None)
        settings |= {"image_processor": image_processor, "tag_labels": model.tag_labels}
        judged = {"photo": partial(check_photo, image_processor=image_processor)}
    else:
        check_width(start, captioner.config, opened := every(stores))
        settings |= {"stores": stores, "labels": tag_texts(options, training, processor, opened[0])}
        judged = {"stores": stores}
    if not training.do_predict:
        judged |= {"texts": "captions", "scorable": True}
    judged["columns"] = columns
    splits = usable_splits(splits, needed, options, training, **judged)
    dense = DenseCaptionCollator(processor)
    if not training.do_predict:
        set_lengths(options, captioner, processor, split_of(splits, "train"))
        settings["max_length"] = options.max_seq_a_length
    set_search(options, captioner, processor)

    # 3. Captions only
    if training.do_predict:
        split = split_of(splits, options.test_split)
        compute_in(options.dtype, captioner, training.device)
        if from_pixels:
            compute_in(region_dtype(options.dtype, training.device), region_model, training.device)
        predict(model, CaptionRows(split, **settings), split, dense, training, options)
        return

    # 4. What the objective learns from; validation photos are captioned, and the loss is taken of their sentences
    train_dataset = training_rows(split_of(splits, "train"), settings, options, tag_sentences)
    photos = eval_dataset = CaptionRows(split_of(splits, "validation"), **settings)
    trainer_class, collator, trainer_settings = OscarTrainer, dense, {}
    if options.objective == "masked":
        collator, eval_dataset = MaskedCaptionCollator(processor), MaskedCaptionRows(splits["validation"], **settings)
    if options.objective == "scst":
        trainer_class, collator = SelfCriticalTrainer, SelfCriticalCollator(processor)
        references = train_dataset.references
        trainer_settings = {"processor": processor, "references": references, "segment": options.sc_segment}

    # 5. Train; captions of the validation photos decide which weights are the best
    tuned = () if options.tune_region_model is None else (region_model, image_processor)
    if tuned and (heads := [f"{name}/" for name in HEADS if subfolder_of(start, name) is not None]):
        say(f"{' and '.join(heads)} read regions of the region model before training: best/ lacks them once it learns")
    if from_pixels:
        trainer_settings["optimizers"] = (model.optimizer(training, options.region_model_learning_rate), None)
    trainer_class(
        model=model,
        args=training,
        options=options,
        task="caption",
        best_metric=best_metric(photos),
        score_names=SCORES,
        data_collator=collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        evaluate_task=lambda model: evaluate_captions(model, photos, dense, training, options),
        save=lambda folder, card: save_checkpoint(folder, merged(), processor, *tuned, card=card, start=start),
        **trainer_settings,
    ).run()


def load_captioner(start, options, training):
    """Captioner and processor; published settings that were given replace the checkpoint's."""
    names = ("tie_weights", "freeze_embedding", "label_smoothing", "drop_worst_ratio", "drop_worst_after")
    captioner = model_from(
        MengziOscarForImageCaptioning,
        start,
        trained=training.do_predict,
        dtype="float32",
        attn_implementation=attention_of(training),
        **settings_of(options, *names),
    )
    if captioner.generation_config.max_length is captioner.generation_config.max_new_tokens is None:
        captioner.generation_config = published_generation_config(captioner.config)
    return captioner, processor_from("caption", start, options, captioner.config)


def training_rows(split, settings, options, tag_sentences):
    """What `--objective` learns from a split; `settings` are those of all `CaptionRows`.

    Raises:
        SystemExit: sentences or styles were given that this objective cannot learn from.
    """
    if tag_sentences.sentences and (options.objective != "dense" or "stores" not in settings):
        raise SystemExit("--sentences go with --objective dense and --features only")
    if options.objective == "scst" and "style" in split.column_names:
        raise SystemExit("--objective scst samples captions of one style only: the data must not have a column style")
    if options.objective == "masked":
        masking = {"mask_prob": options.mask_prob, "max_masked_tokens": options.max_masked_tokens}
        return MaskedCaptionRows(split, **settings, **masking, training=True)
    settings = settings | {"corruption": options.corruption, "training": True}
    return rows_with_tag_sentences(split, tag_sentences, partial(CaptionRows, **settings))


if __name__ == "__main__":
    main()
