"""Fine-tunes a captioner on photos and sentences, or scores one.

    accelerate launch train/caption.py --recipe train/recipes/mini_stage1.yaml --output_dir outputs/stage1
    python train/caption.py --do_predict --model_name_or_path checkpoints/mengzi-oscar-mini \\
        --data_dir data/flickr8k-cn --output_dir outputs/scores

Runs again with the same --output_dir go on from the last checkpoint. Validation decodes captions with the averaged
weights; the best epoch by character-level CIDEr-D is kept as <output_dir>/best, a folder laid out as a Hub repo.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from arguments import parse_arguments
from collators import CaptionDataset, DenseCaptionCollator
from datasets import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from weight_averaging import WeightAverage

from datasets_scripts.flickr8k_cn import Flickr8kCN
from metrics.caption_zh.scores import caption_scores
from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarProcessor, RegionFeatureStore
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.modeling_mengzi_oscar import MengziOscarPreTrainedModel
from modeling_mengzi_oscar.pipeline_mengzi_oscar import load_region_model


@dataclass
class CaptionArguments:
    model_name_or_path: str = field(metadata={"help": "checkpoint to start from, or to score: folder or Hub id"})
    data_dir: str = field(metadata={"help": "Flickr8k-CN, laid out as docs/data.md says"})
    features: list[str] = field(default_factory=list, metadata={"help": "stores: the plain one, then augmented ones"})
    tune_region_model: str | None = field(
        default=None,
        metadata={"help": "train from pixels: regular expression of region model parameters"},
    )
    region_model_learning_rate: float = 3e-4
    crops: bool = field(default=True, metadata={"help": "from pixels: crop and brighten at random"})
    label_smoothing: float | None = field(default=None, metadata={"help": "instead of the checkpoint's"})
    machine_captions: bool = field(default=False, metadata={"help": "one machine translation a photo, begun by [MT]"})
    corruption: float = field(default=0.1, metadata={"help": "share of written tokens replaced by random ones"})
    ema_decay: float = field(default=0.999, metadata={"help": "weight averaging"})
    num_beams: int = 5
    max_gen_length: int = field(default=20, metadata={"help": "tokens of a caption with [CLS] and [SEP]"})
    max_eval_photos: int | None = field(default=None, metadata={"help": "score the first so many photos only"})


class CaptionerFromPixels(MengziOscarPreTrainedModel):
    """Region model and captioner as one, to train both; the region model stays in eval mode (fixed BN statistics)."""

    _tied_weights_keys = {
        "captioner.cls.predictions.decoder.weight": "captioner.bert.embeddings.word_embeddings.weight"
    }

    def __init__(self, captioner, region_model, trainable):
        super().__init__(captioner.config)
        self.captioner, self.region_model = captioner, region_model
        for name, parameter in region_model.named_parameters():
            parameter.requires_grad_(re.search(trainable, name) is not None)
        self.post_init()

    def _init_weights(self, module):
        pass  # both parts come trained

    def train(self, mode=True):
        super().train(mode)
        self.region_model.eval()
        return self

    def forward(self, pixel_values, original_sizes, tag_labels, **inputs):
        regions = self.region_model(pixel_values, original_sizes)
        output = self.captioner(region_features=regions.region_features, **inputs)
        tag_logits = self.region_model.tag_logits(regions.region_features)
        tag_loss = torch.nn.functional.binary_cross_entropy_with_logits(tag_logits.float(), tag_labels)
        return {"loss": output.loss + tag_loss}


class CaptionTrainer(Trainer):
    """Trainer whose evaluation also writes and scores captions, and keeps the best epoch as a Hub folder."""

    def __init__(self, *args, average, options, save_best, **kwargs):
        super().__init__(*args, callbacks=[average], **kwargs)
        self.average, self.options, self.save_best = average, options, save_best

    def evaluate(self, *args, **kwargs):
        with self.average.applied_to(self.model):
            metrics = super().evaluate(*args, **kwargs)
            predictions = write_captions(self.model, self.eval_dataset, self.data_collator, self.args, self.options)
            scores = score(predictions, self.eval_dataset.references[: len(predictions)])
            self.log({f"eval_{name}": value for name, value in scores.items()})
            if self.state.best_metric is None or scores["char_cider_d"] > self.state.best_metric:
                self.state.best_metric, self.state.best_global_step = scores["char_cider_d"], self.state.global_step
                self.save_best()
        return metrics | {f"eval_{name}": value for name, value in scores.items()}


@torch.inference_mode()
def write_captions(model, dataset, collator, training_arguments, options):
    """One caption per photo, by beam search; list of token id rows -> list of texts."""
    model.eval()
    captioner = getattr(model, "captioner", model)
    processor = MengziOscarProcessor(dataset.tokenizer)
    subset = torch.utils.data.Subset(dataset, range(min(len(dataset), options.max_eval_photos or len(dataset))))
    texts = []
    loader = DataLoader(subset, batch_size=training_arguments.eval_batch_size, collate_fn=collator)
    for batch in tqdm(loader, desc="captions", leave=False):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training_arguments.bf16):
            if "pixel_values" in batch:
                regions = model.region_model(batch["pixel_values"], batch["original_sizes"])
                features, mask = regions.region_features, regions.region_attention_mask
            else:
                features, mask = batch["region_features"], batch["region_attention_mask"]
            ids = captioner.generate(features, mask, num_beams=options.num_beams, max_length=options.max_gen_length)
        texts += processor.batch_decode(ids)
    return texts


def score(predictions, references):
    """Character and word level scores, punctuation dropped on both sides, and how many captions differ."""
    scores = {"distinct": len(set(predictions))}
    for level, segment in (("char", "char"), ("word", "jieba")):
        result = caption_scores(predictions, references, segment=segment, metrics=("bleu", "rouge_l", "cider_d"))
        scores |= {f"{level}_{name}": result[name] for name in ("bleu_4", "rouge_l", "cider_d")}
    return scores


def main(arguments=None):
    options, training = parse_arguments(CaptionArguments, TrainingArguments, description=__doc__, arguments=arguments)

    # 1. Model
    processor = MengziOscarProcessor.from_pretrained(options.model_name_or_path)
    attention = (
        "eager" if training.device.type == "cpu" else "sdpa"
    )  # on CPUs the fused backward is slower at these sizes
    captioner = MengziOscarForImageCaptioning.from_pretrained(
        options.model_name_or_path, dtype="float32", attn_implementation=attention if training.do_train else "sdpa"
    )
    if options.label_smoothing is not None:
        captioner.config.label_smoothing = options.label_smoothing
    region_model, image_processor = load_region_model(options.model_name_or_path)
    model = captioner
    if options.tune_region_model is not None or not options.features:
        region_model.to(memory_format=torch.channels_last)
        model = CaptionerFromPixels(captioner, region_model, options.tune_region_model or "^$")

    # 2. Data
    builder = Flickr8kCN(data_dir=options.data_dir)
    builder.download_and_prepare()
    splits = builder.as_dataset().cast_column("image", Image(decode=False))
    common = {"tokenizer": processor.tokenizer, "max_length": options.max_gen_length}
    if model is captioner:
        common["stores"] = [RegionFeatureStore.open(path) for path in options.features]
    else:
        common |= {"image_processor": image_processor, "tag_labels": region_model.config.tag_labels}
    collator = DenseCaptionCollator(processor.tokenizer, num_regions=region_model.config.grid_size**2)

    # 3. Score only
    if training.do_predict:
        dataset = CaptionDataset(splits["test"], **common)
        predictions = write_captions(model, dataset, collator, training, options)
        results = {"split": "test", "references": "5 human-written", "punctuation": "dropped"}
        results |= score(predictions, dataset.references[: len(predictions)])
        folder = Path(training.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rows = zip(dataset.image_ids, predictions, strict=False)
        lines = [json.dumps({"image_id": i, "caption": c}, ensure_ascii=False) + "\n" for i, c in rows]
        (folder / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / "scores.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
        print(json.dumps(results, indent=2))
        return

    # 4. Optimiser: no decay for biases and LayerNorms, a rate of its own for the region model
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = options.region_model_learning_rate if "region_model." in name else training.learning_rate
            decay = 0.0 if parameter.dim() < 2 else training.weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
        betas=(training.adam_beta1, training.adam_beta2),
    )

    # 5. Train
    start = processor.tokenizer.convert_tokens_to_ids("[MT]") if options.machine_captions else None
    train = CaptionDataset(
        splits["train"],
        **common,
        training=True,
        crops=options.crops,
        machine_start_id=start,
        corruption=options.corruption,
    )
    training.remove_unused_columns = False
    training.label_names = ["labels"]
    training.prediction_loss_only = True
    output = Path(training.output_dir)
    trainer = CaptionTrainer(
        model=model,
        args=training,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=CaptionDataset(splits["validation"], **common),
        optimizers=(optimizer, None),
        average=WeightAverage(options.ema_decay),
        options=options,
        save_best=lambda: save_checkpoint(output / "best", captioner, processor, region_model, image_processor),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output) if output.is_dir() else None)
    last = trainer.state.global_step
    if not any("eval_loss" in entry and entry["step"] == last for entry in trainer.state.log_history):
        trainer.evaluate()


if __name__ == "__main__":
    main()
