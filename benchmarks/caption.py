"""How fast a photo becomes a caption: from process start, in a batch, and the decoding against full recomputation.

    python benchmarks/caption.py
    python benchmarks/caption.py --model path/to/checkpoint --threads 4 --photos 64 --runs 5

Photos are the samples of scikit-image and scikit-learn, each turned and mirrored until there are enough. Medians of
several runs; the naive path runs every step over the whole sequence, per beam (`use_cache=False`), in the same process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import ImageOps

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.photos import open_photo
from modeling_mengzi_oscar.samples import sample_photos

MINI = Path(__file__).resolve().parents[1] / "checkpoints" / "mengzi-oscar-mini"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MINI), help="checkpoint folder or Hub id")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--photos", type=int, default=32, help="photos in the batch")
    parser.add_argument("--num-beams", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    samples = [open_photo(path) for path, _ in sample_photos().values()]
    variants = [photo.rotate(angle) for angle in range(0, 360, 15) for photo in samples]
    variants += [ImageOps.mirror(photo) for photo in variants]
    photos = (variants * (options.photos // len(variants) + 1))[: options.photos]
    pipeline = MengziOscarPipeline.from_pretrained(options.model)
    inputs = pipeline.image_processor(photos, return_tensors="pt")
    with torch.inference_mode():
        regions = pipeline.region_model(**inputs)
    encoded = pipeline.processor(tags=pipeline.region_model.tags(regions), regions=regions)

    def command():
        path = str(next(iter(sample_photos().values()))[0])
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        call = [sys.executable, "-m", "modeling_mengzi_oscar", "caption", path, "--model", options.model]
        subprocess.run([*call, "--num-beams", str(options.num_beams)], env=environment, check=True, capture_output=True)

    def decode(use_cache):
        return pipeline.captioner.generate(**encoded, num_beams=options.num_beams, use_cache=use_cache)

    agree = torch.equal(decode(True), decode(False))
    rows = {
        "one photo, from process start": median(command, options.runs),
        "a photo in a batch, pixels to caption": median(
            lambda: pipeline.caption(photos, batch_size=len(photos), num_beams=options.num_beams), options.runs
        )
        / len(photos),
        "  of which region model": median(lambda: regions_of(pipeline, inputs), options.runs) / len(photos),
        "  of which decoding": median(lambda: decode(True), options.runs) / len(photos),
        "decoding, naive (recompute every step)": median(lambda: decode(False), options.runs) / len(photos),
    }
    for name, seconds in rows.items():
        print(f"{name:<42} {seconds * 1000:>9.1f} ms")
    speedup = rows["decoding, naive (recompute every step)"] / rows["  of which decoding"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"decoding: {speedup:.1f} times as fast as the naive path, same captions: {agree}; peak memory {peak:,.0f} MiB"
    )
    settings = {"threads": options.threads, "photos": len(photos), "num_beams": options.num_beams}
    seconds = {name.strip(): value for name, value in rows.items()}
    print(json.dumps(settings | {"seconds": seconds, "speedup": speedup, "agree": agree, "peak_mib": peak}))


@torch.inference_mode()
def regions_of(pipeline, inputs):
    return pipeline.region_model(**inputs)


def median(function, runs):
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
