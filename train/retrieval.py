"""Fine-tunes a matcher of photos and sentences, or scores every photo with every sentence.

    accelerate launch train/retrieval.py --do_train --recipe train/recipes/retrieval_coco.yaml \\
        --model_name_or_path mengzi-oscar --data_dir coco_ir --features stores/coco --output_dir outputs/coco_ir
    python train/retrieval.py --do_predict --recipe train/recipes/retrieval_aic_icc.yaml --data_dir aic_icc \\
        --model_name_or_path outputs/coco_ir/best --features stores/aic_icc --output_dir outputs/aic_icc_scores

Objectives: "pairs", as published: every sentence once with its image and once in a pair that is wrong on either side;
"contrast": all images of a batch against all its sentences, each to find its own. Both resume from the last checkpoint;
so does scoring, whose matrix grows in <output_dir>/scores.npy.

--do_predict writes scores.npy (log-odds, images x texts), matches.jsonl (the ten best of every image and text, with
probability), scores.json and eval.json (recall, the latter as the original writes it). A first stage makes it quick:
--first_stage names a stored matrix, or a model with two towers such as Chinese-CLIP; --shortlist how many of its best
are scored.
"""

from dataclasses import dataclass

from common.arguments import (
    PUBLISHED,
    RunArguments,
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
from common.matching_rows import (
    ImageRows,
    InBatchCollator,
    InBatchMatcher,
    InBatchRows,
    LikePhotos,
    OwnAndWrongCollator,
    OwnAndWrongRows,
)
from common.trainer import OscarTrainer
from common.usable_rows import usable_splits
from common.write_matches import SCORES, best_metric, candidates_of, evaluate_recall, predict, stored_scores
from transformers import TrainingArguments

from modeling_mengzi_oscar import MengziOscarForImageTextRetrieval
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.matching import Matcher
from modeling_mengzi_oscar.precision import compute_in


@dataclass
class RetrievalArguments(RunArguments):
    objective: str = flag(
        "Training objective of the image-text matching head. pairs: as published, every sentence once in a matched and "
        "once in a mismatched pair. contrast: all images of a batch against all its sentences (in-batch negatives).",
        default="pairs",
        choices=["pairs", "contrast"],
    )
    max_seq_length: int | None = flag(
        f"Maximum length in tokens of sentence and tags together. {PUBLISHED}", default=None
    )
    num_captions_per_img_train: int = flag("Number of sentences per training image, the first ones; 0: all.", default=5)
    num_captions_per_img_val: int = flag(
        "Number of sentences per evaluated image, the first ones; where the data set lists candidates for each image, "
        "number of candidates. 0: all.",
        default=0,
    )
    cross_image_eval: bool = flag(
        "Score every image with every sentence, also where the data set lists candidates for each image.", default=False
    )
    like_photos: bool = flag(
        "contrast: batches of photos with similar sentences (hard negatives), of one data set. false: random photos.",
        default=False,
    )
    hard_negatives: str | None = flag(
        "pairs: .npy matrix of scores (training images x their sentences, as --do_predict writes scores.npy); "
        "mismatched pairs are drawn from the highest ones. If not given, from all.",
        default=None,
    )
    hard_top: int = flag(
        "--hard_negatives: number of highest-scoring wrong sentences, or images, to draw from.", default=20
    )
    first_stage: str | None = flag(
        "--do_predict: what chooses the pairs worth scoring: .npy matrix of scores (images x sentences), or a dual "
        "encoder such as Chinese-CLIP (folder or Hub id). If not given, all pairs are scored.",
        default=None,
    )
    shortlist: int = flag(
        "--first_stage: number of its best sentences per image, and images per sentence, that are scored.", default=100
    )
    num_hidden_layers: int | None = flag("Use only the first N layers of the encoder. If not given, all.", default=None)
    regions_read_text: bool | None = flag(
        "Let regions attend to the text, as published. false: they attend to one another only and are encoded once per "
        "image, which makes matching many times faster. If not given, as in the checkpoint.",
        default=None,
    )
    results_pt: bool = flag(
        "--do_predict: also write results.pt, the scores as the original code stores them.", default=False
    )


@told_in_one_line
def main(arguments=None):
    options, training = parse_arguments(RetrievalArguments, TrainingArguments, description=__doc__, arguments=arguments)

    # 1. Data: what cannot be used is said, or left out
    splits = load_splits(options)
    validation = "minival" if "minival" in splits else "validation"
    needed = splits_needed(options, training, validation=validation)
    for name in needed:
        split_of(splits, name)
    settings = {"stores": (stores := stores_of_datasets(options)), "seed": training.seed}
    judged = {"columns": ("image_id", "captions"), "stores": stores, "texts": "captions"}
    splits = usable_splits(
        splits, needed, options, training, **judged, train=(2, "a wrong pair is drawn from another image")
    )

    # 2. Model
    start = checkpoint_of(options)
    matcher = model_from(
        MengziOscarForImageTextRetrieval,
        start,
        trained=training.do_predict,
        dtype="float32",
        attn_implementation="sdpa",
        **settings_of(options, "num_hidden_layers", "regions_read_text"),
    )
    check_width(start, matcher.config, opened := every(stores))
    processor = processor_from("retrieval", start, options, matcher.config)
    settings["labels"] = tag_texts(options, training, processor, opened[0])

    # 3. Scores only
    if training.do_predict:
        engine = Matcher(compute_in(options.dtype, matcher, training.device), processor)
        predict(engine, splits[options.test_split], settings, options, training)
        return

    # 4. What the objective learns from
    train_settings, negatives = settings | {"captions": options.num_captions_per_img_train}, {}
    if options.objective == "contrast":
        if training.per_device_train_batch_size < 2:
            raise SystemExit("--objective contrast tells the images of a batch apart: --per_device_train_batch_size 2")
        model, collator, rows_class = InBatchMatcher(matcher), InBatchCollator(processor), InBatchRows
    else:
        model, collator, rows_class = matcher, OwnAndWrongCollator(processor), OwnAndWrongRows
        if options.hard_negatives:
            scores = stored_scores("--hard_negatives", options.hard_negatives)
            negatives = {"hard_negatives": scores, "hard_top": options.hard_top}
    train_rows = rows_class(splits["train"], **train_settings, **negatives, training=True)
    if options.like_photos:
        if options.objective != "contrast":
            raise SystemExit("--like_photos goes with --objective contrast")
        train_rows = LikePhotos(train_rows, training.per_device_train_batch_size)
        if not len(train_rows):
            raise SystemExit("--like_photos: no data set fills a batch; a smaller --per_device_train_batch_size")
        training.train_sampling_strategy = "sequential"
    validation = splits[validation]
    validation = validation.select(range(min(len(validation), options.max_eval_rows or len(validation))))
    images = ImageRows(validation, **settings, captions=options.num_captions_per_img_val)
    candidates = candidates_of(validation, images, options)

    # 5. Evaluation: the validation images find their sentences, and the other way round
    engine, paths = Matcher(matcher, processor), validation["image"] if "image" in validation.column_names else None

    # 6. Train
    OscarTrainer(
        model=model,
        args=training,
        options=options,
        task="retrieval",
        best_metric=best_metric(images),
        score_names=SCORES,
        data_collator=collator,
        train_dataset=train_rows,
        eval_dataset=rows_class(validation, **train_settings),
        evaluate_task=lambda _: evaluate_recall(engine, images, candidates, paths),
        save=lambda folder, card: save_checkpoint(folder, matcher, processor, card=card, task="retrieval", start=start),
    ).run()


if __name__ == "__main__":
    main()
