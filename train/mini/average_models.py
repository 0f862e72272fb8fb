"""Mean of the weights of two captioners, one trained further from the other ("Model soups", Wortsman et al., 2022).

    python train/mini/average_models.py outputs/objects/best outputs/objects2/best --output outputs/captioner

The region model and all else are those of the second.
"""

import argparse
import shutil

import torch

from modeling_mengzi_oscar import MengziOscarForImageCaptioning
from modeling_mengzi_oscar.hub.repo import save_in_dtype, written_beside


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="folder of a captioner")
    parser.add_argument("second", help="folder of the one that was trained further from it")
    parser.add_argument("--output", required=True, help="folder to write")
    options = parser.parse_args(arguments)

    first = MengziOscarForImageCaptioning.from_pretrained(options.first, dtype=torch.float32).state_dict()
    model = MengziOscarForImageCaptioning.from_pretrained(options.second, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():  # tied ones once
            weight.lerp_(first[name], 0.5)
    with written_beside(options.output, ".tmp") as folder:
        shutil.copytree(options.second, folder, dirs_exist_ok=True)
        save_in_dtype(model, folder, torch.float32)
    print(f"{options.output}: the mean of {options.first} and {options.second}")


if __name__ == "__main__":
    main()
