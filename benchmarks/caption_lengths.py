"""What it saves to caption photos in batches of like numbers of regions, as train/common/write_captions.py does.

    python benchmarks/caption_lengths.py                     # 10 to 100 regions, bert-base size, random weights
    python benchmarks/caption_lengths.py --max-regions 50    # the published recipes keep the best 50

10 to 100 regions and 5 to 35 tag tokens per photo, drawn independently. Random weights never end a caption:
what a batch of real captions waits for its longest one is not in here.
"""

import sys
from argparse import Namespace
from pathlib import Path

import torch
from measure import benchmark_parser, in_turn, prepare, report, table
from torch.utils.data import Dataset
from transformers import BertTokenizer

from modeling_mengzi_oscar import MengziOscarConfig, MengziOscarForImageCaptioning, MengziOscarProcessor
from modeling_mengzi_oscar.precision import compute_in

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "train"))
from common.collators import DenseCaptionCollator  # noqa: E402
from common.write_captions import write_captions  # noqa: E402

MINI = REPOSITORY / "checkpoints" / "mengzi-oscar-mini"


class RandomRows(Dataset):
    """Photos as `CaptionRows` gives them; without `by_length` they stay in the order given."""

    def __init__(self, images, max_regions, by_length=True):
        generator = torch.Generator().manual_seed(0)
        self.numbers = torch.randint(10, 101, (images,), generator=generator).clamp(max=max_regions).tolist()
        self.tags = torch.randint(5, 36, (images,), generator=generator).tolist()
        self.image_ids, self.by_length = [str(number) for number in range(images)], by_length
        self.processor = MengziOscarProcessor(BertTokenizer.from_pretrained(MINI))

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        tags = torch.randint(1000, 2000, (self.tags[index],), generator=generator).tolist()
        return {"region_features": torch.randn(self.numbers[index], 2054, generator=generator).numpy(), "tags": tags}

    def num_regions(self, index):
        return self.numbers[index] if self.by_length else 0


def main():
    parser = benchmark_parser(__doc__, runs=2, int8=True)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-regions", type=int, default=100)
    options = parser.parse_args()
    prepare(options)
    model = MengziOscarForImageCaptioning(MengziOscarConfig(use_img_layernorm=True)).eval().to(options.device)
    compute_in(options.dtype, model, options.device)
    training = Namespace(eval_batch_size=options.batch_size, bf16=False)
    settings = Namespace(max_eval_rows=None, num_beams=5, max_gen_length=20, style=None)
    orders = {"in the order given": False, "most regions first": True}
    rows = {name: RandomRows(options.images, options.max_regions, by_length) for name, by_length in orders.items()}
    collator = DenseCaptionCollator(rows["in the order given"].processor)
    found = {}

    def write(name):
        found[name] = [row["caption"] for row in write_captions(model, rows[name], collator, training, settings)]

    measured = in_turn({name: lambda name=name: write(name) for name in rows}, options.runs, options.device)
    rates = {name: options.images / run.seconds for name, run in measured.items()}
    base = rates["in the order given"]
    same = sum(a == b for a, b in zip(*found.values(), strict=True))
    lines = [[name, rate, rate / base, measured[name].peak_mib] for name, rate in rates.items()]
    text = table([f"{options.dtype}, beam 5, batches of {options.batch_size}", "images/s", "times", "peak MiB"], lines)
    text += f"\n\nEqual captions: {same} of {options.images}."
    report("caption_lengths", options, text, {"images_per_s": rates, "same": same})


if __name__ == "__main__":
    main()
