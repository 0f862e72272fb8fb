"""Which checkpoints of a run count: those in which every process has written its part."""

import re
import shutil
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback

from .weight_averaging import FILE, WeightAverage


class WholeCheckpoints(TrainerCallback):
    """Last of all the averaged weights are written, which makes a checkpoint count; older ones are deleted after that.

    `Trainer` would delete them when the first process is done, while another still writes what resuming needs.

    Args:
        limit: so many are kept; None = all.
    """

    def __init__(self, average: WeightAverage, limit: int | None):
        self.average, self.limit = average, limit

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()
        if args.should_save:
            self.average.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            for folder in whole_checkpoints(args.output_dir)[: -self.limit if self.limit else 0]:
                shutil.rmtree(folder)


def step_of(checkpoint) -> int:
    return int(str(checkpoint).rpartition("-")[2])


def whole_checkpoints(output_dir) -> list[Path]:
    """By step, the newest last. One without averaged weights was interrupted while it was written.

    Folders of other names, like a copy `checkpoint-4-kept`, are somebody's own.
    """
    folders = (file.parent for file in Path(output_dir).glob(f"checkpoint-*/{FILE}"))
    return sorted((folder for folder in folders if re.fullmatch(r"checkpoint-\d+", folder.name)), key=step_of)


def newest_checkpoint(output_dir) -> str | None:
    return max(map(str, whole_checkpoints(output_dir)), key=step_of, default=None)
