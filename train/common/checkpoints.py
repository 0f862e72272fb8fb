"""Which checkpoints of a run count: those in which every process has written its part, and that are not damaged."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from transformers import TrainerCallback, TrainerState

from modeling_mengzi_oscar.checksums import check_bytes
from modeling_mengzi_oscar.files import state_checksum

from .report import say
from .weight_averaging import FILE, WITHOUT, WeightAverage

STATE, WEIGHTS, OPTIMIZER, SCHEDULER = "trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt"


class WholeCheckpoints(TrainerCallback):
    """Last of all the averaged weights are written, or that there are none, which makes a checkpoint count; older ones
    are deleted after that.

    `Trainer` would delete them when the first process is done, while another still writes what resuming needs.

    Args:
        limit: so many are kept; None = all.
    """

    def __init__(self, average: WeightAverage, limit: int | None):
        self.average, self.limit, self.after_evaluation = average, limit, False

    def on_step_end(self, args, state, control, **kwargs):
        """With an evaluation after every epoch `Trainer` saves its last step before it: a resumed run would skip it."""
        last = control.should_training_stop or state.epoch == int(state.epoch)
        if control.should_save and last and args.eval_strategy == "epoch":
            control.should_save, self.after_evaluation = False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.after_evaluation:
            control.should_save, self.after_evaluation = True, False

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()
        if args.should_save:
            for file in (Path(args.output_dir) / f"checkpoint-{state.global_step}").glob("*.safetensors"):
                state_checksum(file)
            self.average.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            for folder in whole_checkpoints(args.output_dir)[: -self.limit if self.limit else 0]:
                shutil.rmtree(folder)


def step_of(checkpoint) -> int:
    return int(str(checkpoint).rpartition("-")[2])


def whole_checkpoints(output_dir) -> list[Path]:
    """By step, the newest last. One that lacks what is written last was interrupted.

    Folders of other names, like a copy `checkpoint-4-kept`, are somebody's own.
    """
    folders = {file.parent for last in (FILE, WITHOUT) for file in Path(output_dir).glob(f"checkpoint-*/{last}")}
    return sorted((folder for folder in folders if re.fullmatch(r"checkpoint-(0|[1-9]\d*)", folder.name)), key=step_of)


def sound_checkpoint(output_dir, model, resumable=True) -> str | None:
    """The newest checkpoint that can be gone on from. Damaged ones before it are set aside, which is said.

    Args:
        resumable: the files of optimizer, scheduler and random numbers must be there, and whole.

    Raises:
        SystemExit: all are damaged; names the file of the newest.
    """
    damaged = [None]
    if PartialState().is_main_process:
        damaged = [{folder.name: damage_of(folder, model, resumable) for folder in whole_checkpoints(output_dir)}]
    broadcast_object_list(damaged)  # so that no process finds what another has moved
    problems = damaged[0]
    sound = [name for name, problem in problems.items() if problem is None]
    if problems and not sound:
        problem = list(problems.values())[-1]
        raise SystemExit(f"{problem}; no other checkpoint is whole: delete {output_dir}/checkpoint-* to start over")
    for name, problem in problems.items():
        if problem is not None:
            say(f"{problem}; it is now {output_dir}/damaged-{name}, training resumes from {sound[-1]}")
            if PartialState().is_main_process:
                shutil.rmtree(Path(output_dir) / f"damaged-{name}", ignore_errors=True)
                (Path(output_dir) / name).rename(Path(output_dir) / f"damaged-{name}")
    return str(Path(output_dir) / sound[-1]) if sound else None


def damage_of(folder, model, resumable) -> str | None:
    """What is wrong with a checkpoint, beginning with the file; None: nothing that can be seen."""
    checks = {STATE: check_state}
    if not (folder / WITHOUT).exists():
        checks[FILE] = lambda file: check_tensors(file, dict(model.named_parameters()))
    if resumable:
        checks[WEIGHTS] = lambda file: check_tensors(file, model.state_dict(), all_of=True)
        random_states = [file.name for file in folder.glob("rng_state*.pth")] or ["rng_state.pth"]
        checks |= dict.fromkeys([OPTIMIZER, SCHEDULER, *random_states], check_archive)
    for name, check in checks.items():
        try:
            check(folder / name)
        except FileNotFoundError:
            return f"{folder / name} is missing"
        except OtherModel as error:
            return f"{folder / name} is of another model ({error}): resume with the flags that the training began with"
        except Exception as error:  # whatever the readers of half a file may raise
            return f"{folder / name} is damaged ({' '.join(str(error).split())[:200]})"
    return None


def check_state(file):
    """Raises ValueError or TypeError unless it is the state that `Trainer` writes, of the step of its folder."""
    state = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ValueError("no JSON object")
    number = int | float
    kinds = {"global_step": int, "max_steps": int, "epoch": number, "log_history": list, "stateful_callbacks": dict}
    kinds |= {"best_metric": number | None, "best_global_step": int | None, "train_batch_size": int | None}
    kinds |= {"num_train_epochs": number, "total_flos": number, "num_input_tokens_seen": number}
    for name, kind in kinds.items():
        if not isinstance(state.get(name), kind) or isinstance(state[name], bool):
            raise ValueError(f"{name} is {state.get(name, 'missing')!r:.50}")
    if state["global_step"] != step_of(file.parent):
        raise ValueError(f"global_step is {state['global_step']}")
    for entry in state["log_history"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise ValueError(f"log_history has {entry!r:.50}")
    for name, entry in state["stateful_callbacks"].items():
        for part in entry if isinstance(entry, list) else [entry]:
            if not isinstance(part, dict) or not all(isinstance(part.get(key), dict) for key in ("args", "attributes")):
                raise ValueError(f"stateful_callbacks has {name}: {part!r:.50}")
    TrainerState.load_from_json(str(file))  # raises for names that it does not know


class OtherModel(ValueError):
    """A file of weights that fits another model than the one that is trained."""


def check_tensors(file, expected, all_of=False):
    """Raises ValueError or SafetensorError unless it holds tensors of these names and shapes (tied ones once)."""
    check_bytes(file)
    with safe_open(file, framework="pt") as tensors:
        names = tensors.keys()
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    for name, shape in shapes.items():
        if name not in expected or tuple(expected[name].shape) != shape:
            has = tuple(expected[name].shape) if name in expected else "none of that name"
            raise OtherModel(f"{name} is {shape}, this training has {has}")
    places = {expected[name].data_ptr() for name in shapes}
    for name, tensor in expected.items():
        needed = all_of or tensor.requires_grad
        if needed and name not in shapes and tensor.data_ptr() not in places:
            raise ValueError(f"{name} is missing")


def check_archive(file):
    """Raises unless it is what `torch.save` writes: a zip whose members have their checksums, with plain values."""
    file.stat()
    with zipfile.ZipFile(file) as archive:
        if broken := archive.testzip():
            raise ValueError(f"the checksum of {broken} is wrong")
    if file.name in (OPTIMIZER, SCHEDULER):
        values = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(values, dict) or (file.name == OPTIMIZER and {"state", "param_groups"} - values.keys()):
            raise ValueError("not what this training writes")
