"""Oscar+ pre-training: masked tokens of text and tags, and whether text, tags and image belong together.

    accelerate launch train/pretrain.py --recipe train/recipes/pretrain.yaml --output_dir outputs/pretrain \\
        --model_name_or_path Langboat/mengzi-bert-base --data_dir data/pretraining \\
        --features coco=stores/coco flickr30k=stores/flickr30k gqa=stores/gqa
    python train/pretrain.py --recipe train/recipes/mini_pretrain.yaml --output_dir outputs/mini-pretrain

It starts from a text BERT, from a checkpoint of ours or from the folder of mini/start_mini.py, and reads the
pre-training corpus or any builder of captions or questions. Run again with the same --output_dir it goes on from the
last checkpoint. The best validation is kept as <output_dir>/best, which the other scripts fine-tune.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from common.arguments import (
    RunArguments,
    attention_of,
    flag,
    load_splits,
    model_from,
    parse_arguments,
    processor_from,
    settings_of,
    tag_texts,
    told_in_one_line,
    within_positions,
)
from common.collators import tag_words
from common.pretraining_data import PretrainingCollator, PretrainingRows, contrast_classes, hold_out, one_row_per_text
from common.pretraining_scores import evaluate_pretraining
from common.trainer import OscarTrainer
from common.usable_rows import usable_splits
from transformers import TrainingArguments

from modeling_mengzi_oscar import MengziOscarForPreTraining, RegionFeatureStore
from modeling_mengzi_oscar.checkpoint_folder import CheckpointError, CheckpointFolder
from modeling_mengzi_oscar.convert.oscar import convert
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.pipeline_mengzi_oscar import load_region_model


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
    max_seq_length: int = flag("Maximum length in tokens of text and tags together.", default=35)
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

    # 1. Model: what the checkpoint lacks (all of the image, in a text BERT) begins at random
    stores = named_stores(options.features)
    try:
        start = starting_folder(options, training)
    except CheckpointError as error:
        raise SystemExit(f"--model_name_or_path {error}") from None
    model = load_model(start, options, training, next(iter(stores.values())).feature_dim)
    processor = processor_from(start)
    processor.layout, processor.max_tags = "pair", None if options.use_b else 0
    processor.max_length = within_positions(options, "max_seq_length", model.config)
    processor.max_regions = options.max_img_seq_length
    region_model = image_processor = None
    if model.config.region_model:
        region_model, image_processor = load_region_model(start)

    # 2. Data: a row per caption or question
    datasets = pretraining_rows(options, stores, region_model, training)
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
        save=lambda folder, card: save_checkpoint(
            folder, model, processor, region_model, image_processor, card=card, task="pretrain"
        ),
    ).run()


def named_stores(features) -> dict:
    """{data set: store}; of a store without name, or of a single one, for all data sets, {None: store}."""
    if not features:
        raise SystemExit("--features is missing: region features of the images, made by mengzi-oscar extract")
    pairs = [text.split("=", 1) if "=" in text else (None, text) for text in features]
    if len({name for name, _ in pairs}) < len(pairs):
        raise SystemExit("--features: name the data set of each store: coco=STORE gqa=STORE")
    return {name: RegionFeatureStore.open(path) for name, path in pairs}


def pretraining_rows(options, stores, region_model, training) -> dict:
    """{split: `PretrainingRows`} to train and to validate on, without what cannot be used.

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
    if options.use_b and store is not None and (store.labels is not None or region_model is not None):
        labels = tag_texts(options, store)

    def tags(image_id):
        return tag_words(store[image_id], labels) if labels else []

    texts = {split: one_row_per_text(splits[split], tags) for split in ("train", "validation")}
    if options.use_b and not any(texts["train"]["tags"]):
        raise SystemExit(f"{options.dataset}: no row has tags, and --features names none; or give --use_b false")
    count = len(texts["validation"])
    texts["validation"] = texts["validation"].select(range(min(count, options.max_eval_rows or count)))
    names = ("texta_false_prob", "textb_sample_mode", "use_b")
    mismatches = {name: getattr(options, name) for name in names}
    return {split: PretrainingRows(rows, stores, **mismatches, seed=training.seed) for split, rows in texts.items()}


def starting_folder(options, training):
    """A text BERT is converted once, to <output_dir>/start; anything else is where it is."""
    config = CheckpointFolder(options.model_name_or_path).json("config.json")
    if config.get("model_type", "bert") != "bert" or "img_feature_dim" in config:
        return options.model_name_or_path
    folder = Path(training.output_dir) / "start"
    with training.main_process_first(local=False, desc="the text BERT becomes a checkpoint of ours"):
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with torch.random.fork_rng(devices=[]):  # one process draws here; all shall draw the same new parts later
                convert(options.model_name_or_path, folder, task="pretrain", allow_missing=True)
    return folder


def load_model(start, options, training, feature_dim):
    """The checkpoint with the settings of this run. Only what is new here may have another shape."""
    settings = settings_of(options, "img_layer_norm_eps", "use_img_layernorm")
    settings["num_contrast_classes"] = contrast_classes(options.texta_false_prob, options.use_b)
    new = ["cls.seq_relationship."]
    if Path(training.output_dir) / "start" == start:
        settings["img_feature_dim"] = feature_dim
        new += ["bert.img_embedding."]
    model = model_from(
        MengziOscarForPreTraining,
        start,
        new=new,
        dtype="float32",
        attn_implementation=attention_of(training),
        **settings,
    )
    if model.config.img_feature_dim != feature_dim:
        found = model.config.img_feature_dim
        raise SystemExit(f"{start} does not fit: it has features {found} wide, --features has rows of {feature_dim}")
    return model


if __name__ == "__main__":
    main()
