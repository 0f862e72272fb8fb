"""Oscar+ pre-training: masked tokens of text and tags, and whether text, tags and image belong together.

    accelerate launch train/pretrain.py --recipe train/recipes/pretrain.yaml --output_dir outputs/pretrain \\
        --model_name_or_path Langboat/mengzi-bert-base --data_dir data/pretraining \\
        --features coco=stores/coco flickr30k=stores/flickr30k gqa=stores/gqa

It starts from a text BERT, from a checkpoint of ours or from the folder of start_captioner.py, and reads the
pre-training corpus or any builder of captions or questions. Run again with the same --output_dir it resumes from the
last checkpoint. The best validation is kept as <output_dir>/best, which the other scripts fine-tune.
"""

from contextlib import suppress
from dataclasses import dataclass

from common.arguments import (
    PUBLISHED,
    RunArguments,
    attention_of,
    check_width,
    checkpoint_of,
    flag,
    load_splits,
    model_from,
    note_language,
    parse_arguments,
    processor_from,
    settings_of,
    tag_words_of,
    told_in_one_line,
)
from common.collators import tag_words
from common.pretraining_data import PretrainingCollator, PretrainingRows, contrast_classes, hold_out, one_row_per_text
from common.pretraining_scores import evaluate_pretraining
from common.trainer import OscarTrainer
from common.usable_rows import usable_splits
from transformers import TrainingArguments

from modeling_mengzi_oscar import MengziOscarForPreTraining, RegionFeatureStore
from modeling_mengzi_oscar.hub import save_checkpoint


@dataclass
class PretrainingArguments(RunArguments):
    features: list[str] = flag(
        "Region feature store of the images, written by `mengzi-oscar extract`; or one for each data set of the "
        "corpus, by name: coco=STORE gqa=STORE.",
        default_factory=list,
    )
    dataset_file: str = flag(
        "pretraining_corpus: YAML file in --data_dir that says which files make up the corpus.",
        default="coco_flickr30k_gqa.yaml",
    )
    use_gtlabels: bool = flag(
        "pretraining_corpus: where an image has annotated objects, they are its tags instead of the detected ones.",
        default=True,
    )
    validation_images: int = flag(
        "Number of images held out for validation, drawn at random, if the data set has no validation split.",
        default=500,
    )
    use_b: bool = flag("Feed tags (of a question: its answer) behind the text, as its second segment.", default=True)
    texta_false_prob: float = flag(
        "Probability that a row's text is replaced by one of another image; its tags are replaced with probability 0.5 "
        "minus this. The other half of the rows stays matched.",
        default=0.0,
    )
    textb_sample_mode: int = flag(
        "What replaces the tags. 0: text or tags of another image; 1: tags of another image; 2: the answer to another "
        "question.",
        default=0,
        choices=[0, 1, 2],
    )
    mask_loss_for_unmatched: bool = flag(
        "Mask and predict tokens of tags of another image, too. false: they are left as they are.", default=True
    )
    max_seq_length: int | None = flag(f"Maximum length in tokens of text and tags together. {PUBLISHED}", default=None)
    use_img_layernorm: bool | None = flag(
        "Apply LayerNorm to the region embeddings. If not given, as in the checkpoint.", default=None
    )
    img_layer_norm_eps: float = flag("Epsilon of the LayerNorm of --use_img_layernorm.", default=1e-12)
    train_batch_size: int | None = flag(
        "Total batch size of an optimiser step, over all processes and gradient accumulation steps; it sets "
        "--per_device_train_batch_size.",
        default=None,
    )


@told_in_one_line
def main(arguments=None):
    options, training = parse_arguments(
        PretrainingArguments, TrainingArguments, description=__doc__, arguments=arguments
    )
    if options.train_batch_size is not None:
        processes = training.world_size * training.gradient_accumulation_steps
        if options.train_batch_size % processes:
            raise SystemExit(f"--train_batch_size {options.train_batch_size} is no multiple of {processes} shares")
        training.per_device_train_batch_size = options.train_batch_size // processes

    # 1. Data: a row per caption or question
    stores = named_stores(options.features)
    datasets, labels = pretraining_rows(options, stores, training)

    # 2. Model: what the checkpoint lacks (all of the image, in a text BERT) begins at random
    start = checkpoint_of(options)
    model = load_model(start, options, training, next(iter(stores.values())).feature_dim)
    check_width(start, model.config, stores.values())
    processor = processor_from("pretrain", start, options, model.config)
    processor.max_tags = None if options.use_b else 0
    if labels is not None:
        note_language(processor, labels, stores[None].path)
    collator = PretrainingCollator(processor, options.mask_loss_for_unmatched)

    # 3. Train
    OscarTrainer(
        model=model,
        args=training,
        options=options,
        task="pretrain",
        best_metric="loss",
        score_names=("masked_accuracy", "contrast_accuracy"),
        data_collator=collator,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
        evaluate_task=lambda model: evaluate_pretraining(model, datasets["validation"], collator, training),
        save=lambda folder, card: save_checkpoint(folder, model, processor, card=card, task="pretrain", start=start),
    ).run()


def named_stores(features) -> dict:
    """{data set: store}; of a store without name, or of a single one, for all data sets, {None: store}."""
    if not features:
        raise SystemExit("--features is missing: region features of the images, made by mengzi-oscar extract")
    pairs = [text.split("=", 1) if "=" in text else (None, text) for text in features]
    if len({name for name, _ in pairs}) < len(pairs):
        raise SystemExit("--features: name the data set of each store: coco=STORE gqa=STORE")
    return {name: RegionFeatureStore.open(path) for name, path in pairs}


def pretraining_rows(options, stores, training) -> tuple[dict, list[str] | None]:
    """{split: `PretrainingRows`} to train and to validate on, without what cannot be used; the words of a store's tags.

    Raises:
        SystemExit: there shall be tags, and nothing names any.
    """
    settings = {"yaml_file": options.dataset_file, "ground_truth": options.use_gtlabels}
    splits = load_splits(options, "train", **(settings if options.dataset == "pretraining_corpus" else {}))
    needed = [split for split in ("train", "validation") if split in splits]
    texts = next((name for name in ("text", "question", "captions") if name in splits["train"].column_names), "text")
    judged = {"columns": ("image_id", texts), "stores": {name: [store] for name, store in stores.items()}}
    splits = usable_splits(splits, needed, options, training, **judged, texts=texts)
    images = len(set(splits["train"]["image_id"]))
    if images < 2 + ("validation" not in splits):
        raise SystemExit(f"--dataset: {images} usable images are too few to draw wrong texts and tags from others")
    if "validation" not in splits:
        splits["train"], splits["validation"] = hold_out(splits["train"], options.validation_images, training.seed)
    store, labels = stores.get(None), None
    if options.use_b and store is not None:
        with suppress(ValueError):  # the rows may bring tags
            labels = tag_words_of(store, options.model_name_or_path)

    def tags(image_id):
        return tag_words(store[image_id], labels) if labels else []

    texts = {split: one_row_per_text(splits[split], tags) for split in ("train", "validation")}
    if options.use_b and not any(texts["train"]["tags"]):
        raise SystemExit(f"{options.dataset}: no row has tags, and --features names none; or give --use_b false")
    count = len(texts["validation"])
    texts["validation"] = texts["validation"].select(range(min(count, options.max_eval_rows or count)))
    names = ("texta_false_prob", "textb_sample_mode", "use_b")
    mismatches = {name: getattr(options, name) for name in names}
    rows_of = {split: PretrainingRows(rows, stores, **mismatches, seed=training.seed) for split, rows in texts.items()}
    return rows_of, labels


def load_model(start, options, training, feature_dim):
    """The checkpoint with the settings of this run. Only what is new here may have another shape."""
    settings = settings_of(options, "img_layer_norm_eps", "use_img_layernorm")
    settings["num_contrast_classes"] = contrast_classes(options.texta_false_prob, options.use_b)
    new = ["cls.seq_relationship."]
    if "img_feature_dim" not in start.json("config.json"):  # a text BERT
        settings["img_feature_dim"] = feature_dim
    model = model_from(
        MengziOscarForPreTraining,
        start,
        new=new,
        dtype="float32",
        attn_implementation=attention_of(training),
        **settings,
    )
    return model


if __name__ == "__main__":
    main()
