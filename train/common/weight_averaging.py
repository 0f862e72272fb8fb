"""Exponential moving average of the weights, kept through checkpoints; the average is what gets evaluated and saved."""

from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from modeling_mengzi_oscar.files import state_checksum, write_whole

FILE = "weight_average.safetensors"
WITHOUT = "no_weight_average"  # stands in its place, empty, where nothing is averaged


class WeightAverage(TrainerCallback):
    """Averages the trained parameters after every optimiser step: average = decay x average + (1 - decay) x weight.

    The decay grows from 0 with the number of steps, so that the random start is forgotten. With a decay of 0 there is
    no average: the weights themselves are evaluated and saved.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.average = None

    @torch.no_grad()
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not self.decay:
            return
        self.average = {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}
        if state.global_step:
            self.load(Path(args.output_dir) / f"checkpoint-{state.global_step}", model.device)

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not self.decay:
            return
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        parameters = dict(model.named_parameters())
        for name, average in self.average.items():
            average.lerp_(parameters[name].detach().float(), 1 - decay)

    def save(self, folder):
        """Under a temporary name first: the file is there when it is whole."""
        if self.average is None:
            write_whole(folder / WITHOUT, b"")
            return
        temporary = folder / f".{FILE}"
        save_file(self.average, temporary)
        state_checksum(temporary)
        temporary.replace(folder / FILE)

    def load(self, folder, device):
        """What a checkpoint has averaged; one of a run without an average has none, and averaging begins there."""
        if self.decay and (Path(folder) / FILE).exists():
            self.average = load_file(Path(folder) / FILE, device=str(device))

    @contextmanager
    @torch.no_grad()
    def applied_to(self, model):
        """The model with the averaged weights inside the block."""
        if self.average is None:
            yield model
            return
        parameters = dict(model.named_parameters())
        current = {name: parameters[name].detach().clone() for name in self.average}
        for name, average in self.average.items():
            parameters[name].copy_(average)
        try:
            yield model
        finally:
            for name, values in current.items():
                parameters[name].copy_(values)
