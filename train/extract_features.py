"""Photos -> region features on disk, with any region model.

    accelerate launch train/extract_features.py PHOTOS --model FOLDER_OR_ID --output STORE

Run again after an interruption: what the store holds is left out. Several processes share the work
(`accelerate launch --multi_gpu --num_processes 4 ...`; on CPUs add `--use_cpu` to the script's flags).
"""

import argparse

import torch
from accelerate import PartialState

from modeling_mengzi_oscar.extraction import extract_regions
from modeling_mengzi_oscar.photos import find_photos
from modeling_mengzi_oscar.pipeline_mengzi_oscar import load_region_model


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder of photos, searched with its subfolders")
    parser.add_argument("--model", required=True, help="region model, or a checkpoint that names one: folder or Hub id")
    parser.add_argument("--output", required=True, help="folder of the store")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--flip", action="store_true", help="mirror the photos (augmentation; give a store of its own)")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="of the stored features")
    parser.add_argument("--use_cpu", action="store_true")
    arguments = parser.parse_args(arguments)

    state = PartialState(cpu=arguments.use_cpu)
    region_model, image_processor = load_region_model(arguments.model)
    region_model = region_model.eval().to(state.device, memory_format=torch.channels_last)
    extract_regions(
        find_photos(arguments.photos),
        region_model,
        image_processor,
        arguments.output,
        batch_size=arguments.batch_size,
        flip=arguments.flip,
        dtype=arguments.dtype,
        region_model_name=arguments.model,
        process_index=state.process_index,
        num_processes=state.num_processes,
    )


if __name__ == "__main__":
    main()
