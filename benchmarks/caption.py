"""How fast regions become captions: our decoding against recomputing everything, where its time goes, the floor.

    python benchmarks/caption.py                                            # bert-base size, random weights
    python benchmarks/caption.py --model checkpoints/mengzi-oscar-mini      # from photos, with its region model
    python benchmarks/caption.py --dtype int8                               # 8-bit products, for CPUs
    python benchmarks/caption.py --device cuda --dtype bfloat16 --images 512

The naive path is what the original does by default: every step runs tags, regions, caption and [MASK] of every beam
again, with the vocabulary head on all text slots, in float32 with plain attention. It is slow, so it gets fewer images.
Random weights never end a caption: every caption takes all its steps, the slowest case. Regions are 50 and tag tokens
30 in every image, so nothing here comes from padding.
"""

import copy
import os
import subprocess
import sys

import torch
from measure import (
    DTYPES,
    Clock,
    benchmark_parser,
    copy_in,
    count_flops,
    in_turn,
    measure_machine,
    prepare,
    report,
    table,
)
from PIL import ImageOps

from modeling_mengzi_oscar import MengziOscarConfig, MengziOscarForImageCaptioning, MengziOscarPipeline
from modeling_mengzi_oscar.demo.samples import sample_photos
from modeling_mengzi_oscar.photos import open_photo
from modeling_mengzi_oscar.precision import compute_in, region_dtype

RECORDED = {"default mode": 0.145, "cached mode": 0.65}  # images/s of the original, 2 threads, bert-base size, beam 5


@torch.inference_mode()
def naive_captions(model, inputs, num_beams, max_length):
    """Beam search as the original runs it; one caption (ids up to and with [SEP]) per image."""
    config, images = model.config, len(inputs["region_features"])
    inputs = {name: tensor.repeat_interleave(num_beams, dim=0) for name, tensor in inputs.items()}
    tags, rows = inputs["tag_input_ids"], images * num_beams
    captions = tags.new_full((rows, 1), config.bos_token_id)
    scores = torch.tensor([0.0] + [-1e9] * (num_beams - 1), device=tags.device).repeat(images)
    finished = [[] for _ in range(images)]
    for length in range(1, max_length):
        text = torch.cat([captions, tags.new_full((rows, 1), config.mask_token_id)], dim=1)
        positions = [*range(length + 1), *range(config.tag_position_offset, config.tag_position_offset + tags.shape[1])]
        logits = model(
            input_ids=torch.cat([text, tags], dim=1),
            attention_mask=torch.cat([torch.ones_like(text), inputs["tag_attention_mask"]], dim=1),
            token_type_ids=torch.cat([torch.zeros_like(text), torch.ones_like(tags)], dim=1),
            position_ids=torch.tensor([positions], device=tags.device).expand(rows, -1),
            region_features=inputs["region_features"],
            region_attention_mask=inputs["region_attention_mask"],
        ).logits[:, length]
        candidates = (scores[:, None] + logits.log_softmax(dim=-1)).view(images, -1)
        best, index = candidates.topk(2 * num_beams, dim=-1)
        chosen = []
        for image in range(images):
            beams = []
            for rank, (score, number) in enumerate(zip(best[image].tolist(), index[image].tolist(), strict=True)):
                beam, token = image * num_beams + number // logits.shape[-1], number % logits.shape[-1]
                ends = token == config.eos_token_id
                if rank < num_beams and (ends or length + 1 == max_length):  # transformers' rule for who may end
                    finished[image].append((score / length, [*captions[beam].tolist(), token]))
                if not ends and len(beams) < num_beams:
                    beams.append((score, beam, token))
            chosen += beams
        origins = [beam for _, beam, _ in chosen]
        scores = torch.tensor([score for score, _, _ in chosen], device=tags.device)
        captions = torch.cat([captions[origins], tags.new_tensor([token for _, _, token in chosen])[:, None]], dim=1)
        running = scores[::num_beams].tolist()
        if all(
            ended and max(ended)[0] >= best / (max_length - 1) for ended, best in zip(finished, running, strict=True)
        ):
            break
    return [max(ended)[1] for ended in finished]


def random_captioner(images):
    config = MengziOscarConfig(use_img_layernorm=True)
    inputs = {
        "region_features": torch.randn(images, 50, config.img_feature_dim),
        "region_attention_mask": torch.ones(images, 50, dtype=torch.long),
        "tag_input_ids": torch.randint(1000, 20000, (images, 30)),
        "tag_attention_mask": torch.ones(images, 30, dtype=torch.long),
    }
    return MengziOscarForImageCaptioning(config).eval(), inputs


def photo_captioner(name, images):
    """The checkpoint's pipeline, photos for it, and what its region model says of them."""
    samples = [open_photo(path) for path, _ in sample_photos().values()]
    photos = [photo.rotate(angle) for angle in range(0, 360, 15) for photo in samples]
    photos = [*photos, *(ImageOps.mirror(photo) for photo in photos)]
    photos = (photos * (images // len(photos) + 1))[:images]
    pipeline = MengziOscarPipeline.from_pretrained(name, dtype="float32")
    with torch.inference_mode():
        regions = pipeline.region_model(**pipeline.image_processor(photos, return_tensors="pt"))
    inputs = dict(pipeline.processor(tags=pipeline.region_model.tags(regions), regions=regions))
    none = torch.empty((images, 0), dtype=torch.long)
    return pipeline, photos, {"tag_input_ids": none, "tag_attention_mask": none} | inputs


def from_process_start(name, options):
    path = str(next(iter(sample_photos().values()))[0])
    call = [sys.executable, "-m", "modeling_mengzi_oscar", "caption", path, "--model", name]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    call += ["--num-beams", str(options.num_beams), "--dtype", options.dtype]
    subprocess.run(call, env=environment, check=True, capture_output=True)


def stages_of(model, decode, device) -> dict:
    """Seconds of one call: prefix, encoder of the steps, vocabulary head, and the rest (search, bookkeeping)."""
    clock = Clock(device)
    parts = {
        "tags and regions, once per image": (model, "encode_prefix"),
        "encoder of the steps": (model.bert.encoder, "forward"),
        "vocabulary head": (model, "get_logits"),
    }
    with clock.around_methods(parts), clock.stage("all"):
        decode()
    seconds = dict(clock.seconds)
    seconds["encoder of the steps"] -= seconds["tags and regions, once per image"]  # it runs inside it, too
    whole = seconds.pop("all")
    return seconds | {"search and the rest": whole - sum(seconds.values())}


def agreement(ids, reference) -> int:
    """Rows of token ids that are the same, whatever the padding behind them."""
    width = min(ids.shape[1], reference.shape[1])
    return int((ids[:, :width] == reference[:, :width]).all(dim=1).sum())


def bytes_moved(model, inputs, options, steps) -> int:
    """At the least: all weights once per forward, the keys and values of every image once per step."""
    size, config = DTYPES[options.dtype].itemsize, model.config
    encoder = sum(p.numel() for p in model.bert.encoder.parameters())
    head = sum(p.numel() for p in model.cls.parameters())
    slots = inputs["tag_input_ids"].shape[1] + inputs["region_features"].shape[1]
    slots += options.num_beams * options.max_length
    states = 2 * config.num_hidden_layers * len(inputs["region_features"]) * slots * config.hidden_size
    return size * ((steps + 1) * encoder + steps * (head + states))


def main():
    parser = benchmark_parser(__doc__, runs=3, int8=True)
    parser.add_argument("--model", help="checkpoint folder or Hub id with a region model (default: random weights)")
    parser.add_argument("--images", type=int, default=32, help="in the batch of the fast path")
    parser.add_argument("--naive-images", type=int, default=2, help="in the batch of the naive path; 0 leaves it out")
    parser.add_argument("--num-beams", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=20)
    options = parser.parse_args()
    prepare(options)

    # 1. Models and inputs
    pipeline = None
    if options.model:
        pipeline, photos, inputs = photo_captioner(options.model, options.images)
        captioner = pipeline.captioner
    else:
        captioner, inputs = random_captioner(options.images)
    inputs = {name: tensor.to(options.device) for name, tensor in inputs.items()}
    captioner = captioner.to(options.device)
    plain, fast = copy.deepcopy(captioner), copy_in(options.dtype, captioner)
    plain.set_attn_implementation("eager")
    if pipeline:
        pipeline.captioner = fast
        compute_in(region_dtype(options.dtype, options.device), pipeline.region_model, options.device)

    def first(count):
        return {name: tensor[:count] for name, tensor in inputs.items()}

    def decode(model=fast, count=options.images):
        search = {"num_beams": options.num_beams, "max_length": options.max_length, "early_stopping": "never"}
        return model.generate(**first(count), **search, pad_token_id=model.config.pad_token_id)

    # 2. All variants in turn
    naive, batch = "naive: everything again in every step", f"batch of {options.images}"
    variants = {"one image": lambda: decode(count=1), batch: decode}
    images = {"one image": 1, batch: options.images}
    if options.dtype != "float32":
        variants |= {f"{name}, float32": lambda n=n: decode(captioner, n) for name, n in images.items()}
        images |= {f"{name}, float32": n for name, n in images.items()}
    if options.naive_images:
        few = first(options.naive_images)
        variants[naive] = lambda: naive_captions(plain, few, options.num_beams, options.max_length)
        images[naive] = options.naive_images
    if pipeline and options.device == "cpu" and options.dtype != "float16":  # which the command has no switch for
        variants["photos to captions"] = lambda: pipeline.caption(photos, len(photos), num_beams=options.num_beams)
        variants["one photo, from process start"] = lambda: from_process_start(options.model, options)
        images |= {"photos to captions": len(photos), "one photo, from process start": 1}
    measured = in_turn(variants, options.runs, options.device)
    rates = {name: images[name] / run.seconds for name, run in measured.items()}

    # 3. The same captions? Where does the time go, how near is the floor?
    ids = decode()
    steps = ids.shape[1] - 1
    result = {"dtype": options.dtype, "images": options.images, "images_per_s": rates, "steps": steps}
    lines = []
    if options.naive_images:
        expected = variants[naive]()
        ends = captioner.config.eos_token_id
        ours = [row[: row.index(ends) + 1] if ends in row else row for row in ids[: len(expected)].tolist()]
        result["same_as_naive"] = f"{sum(a == b for a, b in zip(ours, expected, strict=True))} of {len(expected)}"
        lines.append(f"Captions equal to the naive path's: {result['same_as_naive']}.")
    if options.dtype != "float32":
        result["same_as_float32"] = same = agreement(ids, decode(captioner))
        lines.append(f"Captions in {options.dtype} equal to those in float32: {same} of {options.images}.")
    stages = stages_of(fast, decode, options.device)
    result["stages"] = stages
    if options.dtype in DTYPES:  # operations and rates of 8-bit products are not counted
        machine = measure_machine(options.device, options.dtype)
        flops = count_flops(decode)
        floor = machine.floor(flops, bytes_moved(fast, inputs, options, steps))
        result |= {"flops": flops, "matrix_rate": machine.matrix_rate, "floor_s": floor}
        lines.append(
            f"Floor of the batch: {flops / 1e9:,.0f} GFLOP in {floor:.2f} s ({machine}); "
            f"{floor / measured[batch].fastest:.0%} of it reached."
        )

    # 4. Tables
    rows = [
        [name, rate, rate / rates[naive] if naive in rates else "", measured[name].seconds, measured[name].peak_mib]
        for name, rate in rates.items()
    ]
    text = table([f"{options.dtype}, beam {options.num_beams}", "images/s", "x naive", "s", "peak MiB"], rows)
    if not options.model:
        recorded = [[f"recorded original, {name}", rate, rates[batch] / rate] for name, rate in RECORDED.items()]
        text += "\n\n" + table(["", "images/s", f"times as fast: {batch}"], recorded)
    total = sum(stages.values())
    text += "\n\n" + table([f"{batch}, by stage", "s", "%"], [[k, v, 100 * v / total] for k, v in stages.items()])
    report("caption", options, text + "\n\n" + "\n".join(lines), result)


if __name__ == "__main__":
    main()
