"""Captions (or pre-training pairs) per second of training: what the original does by default against what we do.

    python benchmarks/train_step.py                                     # captioning, bert-base size
    python benchmarks/train_step.py --job pretrain --batch 64
    python benchmarks/train_step.py --device cuda --dtype bfloat16 --batch 256 --workers 8

Captioning. Naive, as the original: one caption per row, 70 text and 50 region slots, padded, at most three masked
tokens per caption, float32, plain attention, AdamW parameter by parameter. Ours: the captions of an image packed on its
regions and tags, a loss at every token (`pack_captions`), padded to the longest row of the batch, fused AdamW.
Pre-training. Naive: 35 text and 50 region slots, the vocabulary head on all 85 of them. Ours: cut to the longest row,
the head on masked tokens only. Samples are captions; all paths see the same ones in the same order, with 10 to 18
tokens per caption, 30 tag tokens and 30 to 50 regions.
"""

import random
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import DTYPES, Clock, benchmark_parser, count_flops, in_turn, measure_machine, prepare, report, table
from torch.utils.data import DataLoader

from modeling_mengzi_oscar import (
    MengziOscarConfig,
    MengziOscarForImageCaptioning,
    MengziOscarForPreTraining,
    RegionFeatureStore,
)
from modeling_mengzi_oscar.processing_mengzi_oscar import pack_captions, pad_regions

CLS, SEP, MASK, TAGS = 101, 102, 103, 30
RECORDED = 3.4  # captioning samples/s of the original, 2 threads, float32


class Samples(torch.utils.data.Dataset):
    """Images with random regions (in a store), tags and captions; an item is an image with all its captions."""

    def __init__(self, path, images, captions):
        draw, generator = random.Random(0), np.random.default_rng(0)
        with RegionFeatureStore.writer(path) as writer:
            for number in range(images):
                features = generator.normal(size=(draw.randint(30, 50), 2054)).astype("float32")
                writer.add(str(number), {"region_features": features})
        words = range(1000, 20000)
        self.store = RegionFeatureStore.open(path)
        self.tags = [[*draw.choices(words, k=TAGS - 1), SEP] for _ in range(images)]
        self.captions = [
            [[CLS, *draw.choices(words, k=draw.randint(10, 18)), SEP] for _ in range(captions)] for _ in range(images)
        ]

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, number):
        return self.store[str(number)]["region_features"], self.tags[number], self.captions[number]


def regions_of(items):
    padded = pad_regions([features for features, _, _ in items], max_regions=None)
    return {name: torch.from_numpy(values) for name, values in padded.items()}


def packed_captions(items):
    """Ours: (images, ...) with all captions of an image in its row."""
    _, tags, captions = zip(*items, strict=True)
    regions = regions_of(items)
    return pack_captions(captions, regions["region_attention_mask"], MASK, tags=tags) | {
        "region_features": regions["region_features"]
    }


def masked(ids, rate=0.15, most=3):
    """Oscar's masking, without its random and unchanged tokens: ids, labels."""
    chosen = random.sample(range(1, len(ids)), min(max(round(rate * len(ids)), 1), most))
    labels = [token if place in chosen else -100 for place, token in enumerate(ids)]
    return [MASK if place in chosen else token for place, token in enumerate(ids)], labels


def padded_rows(rows, text_slots, region_slots, tag_place=None):
    """One caption per row: [CLS] caption [SEP] (padding up to `tag_place`) tags [SEP], padding; regions, padding."""
    batch = {"input_ids": torch.zeros(len(rows), text_slots, dtype=torch.long)}
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    batch["region_features"] = torch.zeros(len(rows), region_slots, 2054)
    batch["region_attention_mask"] = torch.zeros(len(rows), region_slots, dtype=torch.long)
    for row, (features, tags, caption) in enumerate(rows):
        ids, labels = masked(caption)
        start = tag_place or len(ids)
        tags = tags[: text_slots - start]
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["labels"][row, : len(ids)] = torch.tensor(labels)
        batch["input_ids"][row, start : start + len(tags)] = torch.tensor(tags)
        batch["token_type_ids"][row, start : start + len(tags)] = 1
        batch["attention_mask"][row, : len(ids)] = 1
        batch["attention_mask"][row, start : start + len(tags)] = 1
        batch["region_features"][row, : len(features)] = torch.from_numpy(np.asarray(features, dtype=np.float32))
        batch["region_attention_mask"][row, : len(features)] = 1
    return batch


def first_caption(items):
    return [(features, tags, captions[0]) for features, tags, captions in items]


def original_captions(items):
    """Naive captioning: the captions of an image are rows of their own, each with the regions again."""
    rows = [(features, tags, caption) for features, tags, captions in items for caption in captions]
    return padded_rows(rows, 70, 50, tag_place=40)


def original_pairs(items):
    """Naive pre-training: every row as long as the longest could be."""
    return padded_rows(first_caption(items), 35, 50)


def trimmed_pairs(items):
    """Ours: as many slots as the longest row of the batch needs."""
    rows = first_caption(items)
    text = max(min(len(caption) + len(tags), 35) for _, tags, caption in rows)
    return padded_rows(rows, text, max(len(features) for features, _, _ in rows))


JOBS = {
    "caption": (MengziOscarForImageCaptioning, original_captions, packed_captions),
    "pretrain": (MengziOscarForPreTraining, original_pairs, trimmed_pairs),
}


def endless(dataset, options, collate):
    """Batches without end, of images drawn at random, as train/caption.py and train/pretrain.py make them."""
    while True:
        yield from DataLoader(
            dataset,
            options.batch // options.captions,
            shuffle=True,
            generator=torch.Generator().manual_seed(0),  # every variant sees the same images in the same order
            collate_fn=collate,
            drop_last=True,
            num_workers=options.workers,
            pin_memory=options.device == "cuda",
            multiprocessing_context="spawn" if options.workers else None,
        )


class Training:
    """A model in training, its optimiser and its batches; calling it runs one step."""

    def __init__(self, model, optimizer, batches, options, dtype, naive=False, checkpointing=False):
        self.model, self.optimizer, self.batches, self.options = model, optimizer, batches, options
        self.dtype, self.naive, self.checkpointing = dtype, naive, checkpointing
        self.clock, self.steps, self.slots, self.labels = Clock(options.device), 0, 0, 0

    def forward(self, batch):
        switch = "enable" if self.checkpointing else "disable"
        getattr(self.model, f"activation_checkpointing_{switch}")()
        with torch.autocast(self.options.device, self.dtype, enabled=self.dtype != torch.float32):
            if not (self.naive and self.options.job == "pretrain"):
                return self.model(**batch).loss
            labels, relationship = batch["labels"], batch["next_sentence_label"]
            output = self.model(
                **{name: batch[name] for name in batch if name not in ("labels", "next_sentence_label")}
            )
            logits = output.prediction_logits[:, : labels.shape[1]]  # the head ran on all slots
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
            return loss + F.cross_entropy(output.seq_relationship_logits, relationship)

    def next_batch(self):
        batch = next(self.batches)
        if isinstance(self.model, MengziOscarForPreTraining):
            batch["next_sentence_label"] = torch.zeros(len(batch["labels"]), dtype=torch.long)
        return batch

    def __call__(self):
        stage = self.clock.stage
        with stage("waiting for the loader"):
            batch = self.next_batch()
        with stage("to the device"):
            batch = {name: tensor.to(self.options.device, non_blocking=True) for name, tensor in batch.items()}
        with stage("forward"):
            loss = self.forward(batch)
        with stage("backward"):
            loss.backward()
        with stage("clipping and optimiser"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.param_groups[0]["fused"] = not self.naive
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.slots += batch["input_ids"].numel() + batch["region_features"].shape[:2].numel()
        self.labels += int((batch["labels"] != -100).sum())


def main():
    parser = benchmark_parser(__doc__, runs=5)
    parser.add_argument("--job", default="caption", choices=JOBS)
    parser.add_argument("--batch", type=int, default=20, help="captions per step")
    parser.add_argument("--captions", type=int, default=5, help="captions of an image in one row (pre-training: 1)")
    parser.add_argument("--images", type=int, default=200, help="in the data set")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--layers", type=int, default=12, help="fewer, to try the script out")
    options = parser.parse_args()
    options.captions = 1 if options.job == "pretrain" else options.captions
    prepare(options)

    # 1. One model, two ways to train it
    model_class, original, ours = JOBS[options.job]
    config = MengziOscarConfig(use_img_layernorm=True, tie_weights=True, num_hidden_layers=options.layers)
    model = model_class(config).to(options.device).train()
    attention = "eager" if options.device == "cpu" else "sdpa"  # on CPUs the fused backward is slower at these sizes
    model.set_attn_implementation(attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=False)
    dtype = DTYPES[options.dtype]
    folder = tempfile.TemporaryDirectory()
    dataset = Samples(Path(folder.name) / "store", options.images, options.captions)
    names = ("naive, float32", f"ours, {options.dtype}", f"ours, {options.dtype}, activation checkpointing")
    original_batches, batches, more_batches = (endless(dataset, options, collate) for collate in (original, ours, ours))
    trainings = {
        names[0]: Training(model, optimizer, original_batches, options, torch.float32, naive=True),
        names[1]: Training(model, optimizer, batches, options, dtype),
        names[2]: Training(model, optimizer, more_batches, options, dtype, checkpointing=True),
    }

    # 2. Steps in turn
    measured = in_turn(trainings, options.runs, options.device)
    machines = {name: measure_machine(options.device, name) for name in dict.fromkeys(("float32", options.dtype))}

    # 3. Tables
    rows, result = [], {"job": options.job, "dtype": options.dtype, "batch": options.batch}
    result["machine"] = {name: vars(machine) for name, machine in machines.items()}
    for name, training in trainings.items():
        batch = training.next_batch()
        batch = {key: tensor.to(options.device) for key, tensor in batch.items()}
        flops = count_flops(lambda training=training, batch=batch: training.forward(batch).backward())
        model.zero_grad(set_to_none=True)
        rate = options.batch / measured[name].seconds
        machine = machines["float32" if training.naive else options.dtype]
        reached = machine.floor(flops) / measured[name].seconds
        slots, labels = (count / training.steps / options.batch for count in (training.slots, training.labels))
        result[name] = {
            "samples_per_s": rate,
            "flops_per_sample": flops / options.batch,
            "of_matrix_rate": reached,
            "slots_per_sample": slots,
            "labels_per_sample": labels,
            "peak_mib": measured[name].peak_mib,
            "stages": {stage: seconds / training.steps for stage, seconds in training.clock.seconds.items()},
        }
        naive = result[names[0]]["samples_per_s"]
        work = flops / options.batch / 1e9
        rows.append([name, rate, rate / naive, slots, labels, work, f"{reached:.0%}", measured[name].peak_mib])
    header = [f"{options.job}, batch {options.batch}", "samples/s", "x naive", "slots", "labels", "GFLOP per sample"]
    text = table([*header, "of its matrix rate", "peak MiB"], rows)
    if options.job == "caption":
        ratio = result[names[1]]["samples_per_s"] / RECORDED
        text += f"\n\nAgainst the recorded original ({RECORDED} samples/s, float32, 2 threads): {ratio:.1f} x."
    stages = result[names[1]]["stages"]
    whole = sum(stages.values())
    text += "\n\n" + table([f"{names[1]}, a step", "s", "%"], [[k, v, 100 * v / whole] for k, v in stages.items()])
    speeds = "\n".join(f"{name}: {machine}." for name, machine in machines.items())
    report("train_step", options, f"{text}\n\n{speeds}", result)


if __name__ == "__main__":
    main()
