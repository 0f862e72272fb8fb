"""What every training shares: transformers' `Trainer`, and where ours differs from it.

* A loss is a mean over all rows (or labelled tokens) of an optimiser step, whatever process or accumulated batch they
  are in: two processes give the same weights as one with twice the batch.
* What is drawn for a row comes from seed, epoch and row (`collators.py`), so a run that was killed ends as if it had
  not been. A checkpoint counts when every process has written its part; `run` resumes from the newest that does.
* Evaluation uses the averaged weights, adds the job's own scores to the loss, and keeps the best as <output_dir>/best,
  a Hub repo with a model card that the run wrote.
* Speed and peak memory stand in every line of the log; `report.py` draws the curves and ten samples.

What is overridden is public in transformers, and tests/train/test_trainer_surface.py fails when it is no longer called.
"""

import ctypes
import math
import resource
import sys
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object, send_to_device
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerState

from modeling_mengzi_oscar.files import HINT
from modeling_mengzi_oscar.hub import push

from .checkpoints import WholeCheckpoints, sound_checkpoint, step_of
from .collators import LikeLengths
from .report import (
    LOGS,
    RAREST_LOG,
    draw_curves,
    how_to_use,
    left_out_if_it_fails,
    outcome,
    run_card,
    save_samples,
    say,
    write_score_table,
)
from .weight_averaging import WeightAverage


class OscarTrainer(Trainer):
    """
    Args:
        options: `arguments.RunArguments` of the script.
        task: a key of `model_card.TASKS`. best_metric: what the best evaluation is chosen by. score_names: of the
            scores of `evaluate_task`; what begins with one of them and an underscore is one, too.
        evaluate_task: model -> (scores, samples): numbers to log beside the loss, and what `report.save_samples` takes.
            Every process calls it; `in_order` brings their shares together.
        save: (folder, card) -> None, writes the model as a Hub repo.
        The others as `Trainer` takes them.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the counts of the whole step

    def __init__(
        self,
        *,
        args,
        options,
        task,
        best_metric,
        save,
        train_dataset,
        score_names=(),
        evaluate_task=None,
        callbacks=(),
        **kwargs,
    ):
        args.remove_unused_columns = False  # the collators make the inputs
        args.dataloader_pin_memory &= torch.accelerator.is_available()  # without one torch warns of it
        args.metric_for_best_model = args.metric_for_best_model or best_metric
        name = args.metric_for_best_model.removeprefix("eval_")
        known = ("loss", *(score_names or (() if evaluate_task is None else (best_metric,))))
        if name not in known and not name.startswith(tuple(f"{known_name}_" for known_name in known)):
            raise SystemExit(f"--metric_for_best_model {name}: an evaluation gives {', '.join(known)}")
        if args.greater_is_better is None:
            args.greater_is_better = not name.endswith("loss")
        args.restore_callback_states_from_checkpoint = True  # the patience of early stopping
        self.push_at_the_end, args.push_to_hub = args.push_to_hub, False  # the best folder, not every checkpoint
        limit, args.save_total_limit = args.save_total_limit, None  # WholeCheckpoints deletes
        if args.train_sampling_strategy == "group_by_length" and hasattr(train_dataset, "lengths"):
            args.train_sampling_strategy = "sequential"
            train_dataset = LikeLengths(train_dataset, args.train_batch_size * args.gradient_accumulation_steps)
        self.options, self.task, self.save, self.evaluate_task = options, task, save, evaluate_task
        self.average = WeightAverage(options.ema_decay)
        self.samples = []
        callbacks = [*callbacks, self.average, WholeCheckpoints(self.average, limit), EpochOfDraws(), ReusedMemory()]
        recompute_without_reentering(args)
        if args.max_steps == 0:  # of which Trainer takes one, at a learning rate of 0
            args.max_steps, args.num_train_epochs = -1, 0
        if args.eval_steps == LOGS:  # not given, so transformers took that of --logging_steps
            args.eval_steps = args.save_steps
        if args.logging_steps < 1:
            args.logging_steps = min(math.ceil(args.logging_steps * steps_of(args, len(train_dataset))), RAREST_LOG)
        if options.early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(options.early_stopping_patience))
        super().__init__(args=args, train_dataset=train_dataset, callbacks=callbacks, **kwargs)
        self.model_accepts_loss_kwargs = True  # what loss_is_scaled_for_ga says, for releases that do not know it yet

    def expect_tied_weights_once(self):
        """A file has tied weights once; transformers would warn of the other name as of one that is missing."""
        decoder = self.model.get_output_embeddings()
        if decoder is not None and decoder.weight is self.model.get_input_embeddings().weight:
            self.model._keys_to_ignore_on_save = set(self.model._tied_weights_keys)

    def run(self):
        """Trains, from the newest whole checkpoint if there is one; evaluates at the end; pushes if asked."""
        parts = self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.save_only_model  # in files of their own
        checkpoint = sound_checkpoint(self.args.output_dir, self.model, resumable=not parts)
        self.last_log = time.monotonic(), step_of(checkpoint) if checkpoint else 0
        if checkpoint and self.is_over(checkpoint):  # Trainer would take one more step before it looks
            say(
                f"there is nothing left to train: {checkpoint} is the end of this run. More steps take a larger "
                "--num_train_epochs or --max_steps, a new run another --output_dir"
            )
            self.state = TrainerState.load_from_json(Path(checkpoint) / "trainer_state.json")
            weights = load_file(Path(checkpoint) / "model.safetensors")
            self.model.load_state_dict(weights, strict=False)  # a file has tied weights once
            self.average.load(checkpoint, self.args.device)
        else:
            self.args.eval_on_start = self.args.eval_on_start and not checkpoint
            if checkpoint:
                say(f"resuming from {checkpoint}")
                self.expect_tied_weights_once()
            with naming_what_is_not_written(self.args.output_dir):
                self.train(resume_from_checkpoint=checkpoint)
        last = self.state.global_step
        if not any("eval_loss" in entry and entry["step"] == last for entry in self.state.log_history):
            self.evaluate()
        if self.push_at_the_end and self.args.should_save:
            name = self.args.hub_model_id or Path(self.args.output_dir).name
            print(push(self.best_folder, name, private=bool(self.args.hub_private_repo)))
        say(outcome(self.state.log_history, self.best_name, self.args.greater_is_better, self.best_folder))
        say(f"use it: {how_to_use(self.task, self.model.config, self.options, self.args, self.best_folder)}")

    def is_over(self, checkpoint) -> bool:
        """Whether a run that is started again has nothing left to train: all steps taken, or stopped early."""
        state = TrainerState.load_from_json(Path(checkpoint) / "trainer_state.json")
        if 0 < self.args.max_steps <= state.global_step:
            return True
        if self.args.max_steps <= 0 and state.epoch > self.args.num_train_epochs - 1e-6:
            return True
        stopping = state.stateful_callbacks.get("EarlyStoppingCallback", {}).get("attributes", {})
        patience = self.options.early_stopping_patience
        return bool(patience) and stopping.get("early_stopping_patience_counter", 0) >= patience

    @property
    def best_folder(self):
        return Path(self.args.output_dir) / "best"

    # Loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of a step, and their (rows, labelled things) over all processes.

        Overridden because Trainer counts labels that are not -100: no rows, over which pre-training has a loss, too.
        """
        batches = list(islice(epoch_iterator, num_batches))
        counts = torch.tensor([loss_counts(batch) for batch in batches], device=device).sum(dim=0)
        return batches, self.accelerator.reduce(counts, reduction="sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Overridden because a model's loss is the mean of its batch; in the mean of a step batches weigh by counts."""
        outputs = model(**inputs)
        sums, counts = loss_sums(outputs, inputs)
        if num_items_in_batch is not None:
            counts = num_items_in_batch
        loss = (sums / counts.clamp(min=1)).sum()
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over the processes
        return (loss, outputs) if return_outputs else loss

    def get_decay_parameter_names(self, model):
        """Matrices, and no vector. Overridden because Trainer goes by types of layers and patterns of names."""
        return [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]

    def create_scheduler(self, *args, **kwargs):
        """Overridden because a setting that a schedule does not have is a TypeError there."""
        try:
            return super().create_scheduler(*args, **kwargs)
        except TypeError as error:
            given = self.args.lr_scheduler_kwargs
            raise ValueError(f"--lr_scheduler_kwargs {given} of {self.args.lr_scheduler_type.value}: {error}") from None

    # Evaluation

    def evaluate(self, *args, **kwargs):
        """Loss and the job's own scores, of the averaged weights; what people look at; the best folder.

        Overridden because Trainer scores the current weights, and takes the mean of the batches' mean losses.
        """
        start, scores, devices = time.monotonic(), {}, [self.args.device] if self.args.device.type == "cuda" else []
        with self.average.applied_to(self.model), torch.random.fork_rng(devices):  # training draws as without it
            scores["loss"] = self.validation_loss()
            if self.evaluate_task is not None:
                task_scores, self.samples = self.evaluate_task(self.model)
                scores |= task_scores
            seconds = time.monotonic() - start
            speed = {"runtime": round(seconds, 3), "samples_per_second": round(len(self.eval_dataset) / seconds, 2)}
            metrics = {f"eval_{name}": value for name, value in (scores | speed).items()}
            self.log(metrics)
            is_best = self.is_best(scores)
            if self.args.should_save:
                unknown = self.best_name not in scores and not self.best_folder.is_dir()
                self.report(scores, is_best or unknown)
        metrics.setdefault(f"eval_{self.best_name}", self.worst)  # told by the job: that score could not be made
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if not self.state.global_step:  # of the evaluation before training Trainer notes nothing
            self.state.best_metric = metrics[f"eval_{self.best_name}"]
        return metrics

    @torch.no_grad()
    def validation_loss(self) -> float:
        """As in training a mean over all rows (or labelled tokens), here of the whole split."""
        self.model.eval()
        totals = torch.zeros(2, 2, dtype=torch.float64, device=self.args.device)
        batches = self.validation_batches()
        for batch in tqdm(batches, desc="validation", leave=False, disable=not self.is_world_process_zero()):
            batch = send_to_device(batch, self.args.device)
            with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
                _, outputs = self.compute_loss(self.model, batch, return_outputs=True)
            totals += torch.stack(loss_sums(outputs, batch))
        sums, counts = self.accelerator.reduce(totals, reduction="sum")
        return (sums / counts.clamp(min=1)).sum().item()

    def validation_batches(self):
        """The rows of this process: each is in one process, and none is repeated to fill a batch."""
        return DataLoader(
            Subset(self.eval_dataset, share_of(len(self.eval_dataset))),
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    @property
    def best_name(self) -> str:
        return self.args.metric_for_best_model.removeprefix("eval_")

    @property
    def worst(self) -> float:
        return -math.inf if self.args.greater_is_better else math.inf

    def is_best(self, scores) -> bool:
        """Whether no evaluation before was as good; `Trainer` notes the best in its state when this one is over."""
        sign = 1 if self.args.greater_is_better else -1
        best = self.worst if self.state.best_metric is None else self.state.best_metric
        return sign * scores.get(self.best_name, self.worst) > sign * best

    def report(self, scores, is_best):
        """The best folder first; of what people look at nothing ends a training."""
        folder, history = Path(self.args.output_dir), self.state.log_history
        folder.mkdir(parents=True, exist_ok=True)
        if is_best:
            card = run_card(self.task, self.model.config, self.options, self.args, self.state, scores, self.samples)
            self.save(self.best_folder, card)
        with left_out_if_it_fails("curves.png"):
            draw_curves(history, self.args.metric_for_best_model, folder / "curves.png")
        with left_out_if_it_fails("scores.md"):
            write_score_table(history, folder / "scores.md")
        with left_out_if_it_fails("samples"):
            save_samples(self.samples, folder)

    # Log and checkpoints

    def log(self, logs, start_time=None):
        """Overridden to add samples per second, since the line before, and peak memory."""
        if "loss" in logs:
            (then, step), self.last_log = self.last_log, (time.monotonic(), self.state.global_step)
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            samples = (self.state.global_step - step) * batch
            logs["samples_per_second"] = round(samples / (self.last_log[0] - then), 2)
            logs["peak_memory_gb"] = round(peak_memory() / 1e9, 2)
        super().log(logs, start_time)

    def save_model(self, *args, **kwargs):
        """Overridden because Trainer would note a checkpoint as the best, and miss it later: best/ is kept apart.

        And because a model takes its region model and code along, which nothing goes on from.
        """
        self.state.best_global_step, config = None, self.model.config
        names = ("region_model", "auto_map")
        said = {name: getattr(config, name) for name in names if hasattr(config, name)}
        for name in said:
            setattr(config, name, None)
        try:
            super().save_model(*args, **kwargs)
        finally:
            for name, value in said.items():
                setattr(config, name, value)


@contextmanager
def naming_what_is_not_written(folder):
    """Around what writes checkpoints: the writers of tensors say neither where there was no room nor, torch's, why."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if not any(said in text for said in ("os error", "PytorchStreamWriter", "inline_container", "basic_ios")):
            raise
        raise OSError(f"{folder}: a checkpoint cannot be written ({text:.200}){HINT}") from None


def recompute_without_reentering(args):
    """Activation checkpointing that several processes bear.

    `Trainer` lets DDP wait for every parameter then, and all heads here leave some without gradient, so the second step
    fails. Recomputed without torch's re-entrant way, DDP may look for them. transformers before 5.20 has only the older
    names of the flags.
    """
    wanted = [name for name in ("activation_checkpointing", "gradient_checkpointing") if getattr(args, name, None)]
    for name in wanted:
        kwargs = getattr(args, f"{name}_kwargs") or {}
        setattr(args, f"{name}_kwargs", {"use_reentrant": False} | kwargs)
    if wanted and args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = True


def steps_of(args, rows) -> int:
    """Optimiser steps of a run over so many rows."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(rows / (args.train_batch_size * args.world_size))
    return math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)


class EarlyStoppingCallback(transformers.EarlyStoppingCallback):
    """Without transformers' warning that the best weights will not be loaded: they are in best/."""

    def on_train_begin(self, args, state, control, **kwargs):
        pass  # what it asserts, `arguments.check_together` and `OscarTrainer` have seen to


class EpochOfDraws(TrainerCallback):
    """Tells the training data which epoch its draws are for, and the model how many batches it has seen.

    That is the counter behind `drop_worst_after`; in the original it began again at 0 when a run was resumed. Here it
    follows from the epoch, for instance with 4 batches per epoch and 3 gradient accumulation steps:

        batch             1   2   3     4     5   6   7      8
        optimiser step            1     2             3      4
        state.epoch              .75    1           1.75     2
        seen = epoch x 4          3     4             7      8
    """

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        getattr(model, "captioner", model).loss_calls = round(state.epoch * len(train_dataloader))

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch))


class ReusedMemory(TrainerCallback):
    """Steps work in memory that earlier ones had, and give back now and then what has grown.

    By itself glibc's malloc returns every large tensor to the system and asks for a fresh one, which the system has to
    clear: 400 MB per step at bert-base size, 5 to 7 % of its time. Kept for good it grows with batches of ever other
    shapes.
    """

    STEPS = 20

    def __init__(self):
        self.libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # others than glibc have no malloc_trim

    def on_train_begin(self, args, state, control, **kwargs):
        if hasattr(self.libc, "malloc_trim"):
            self.libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: what is smaller comes from the heap,
            self.libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: whose end stays

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.STEPS == 0 and hasattr(self.libc, "malloc_trim"):
            self.libc.malloc_trim(0)


def loss_counts(inputs) -> tuple[int, int]:
    """Rows of a batch, and what its loss is a mean over: labels that are not -100, or rows with soft labels."""
    labels = inputs["labels"]
    rows = len(labels)
    return rows, rows if labels.is_floating_point() else int((labels != -100).sum())


def loss_sums(outputs, inputs):
    """(sums, counts): what the loss adds up over (rows, labelled things) of a batch, and how many of them there are.

    Pre-training has a part over each; the other losses are over the labelled things.
    """
    counts = torch.tensor(loss_counts(inputs), device=inputs["labels"].device)
    if outputs.get("relationship_loss") is not None:
        means = torch.stack([outputs["relationship_loss"], outputs["prediction_loss"]])
    else:
        means = torch.stack([torch.zeros_like(outputs["loss"]), outputs["loss"]])
    return means * counts, counts


def share_of(total) -> range:
    """The indices of this process among `total`: of eight, the second of three processes has 1, 4 and 7."""
    return range(PartialState().process_index, total, PartialState().num_processes)


def in_order(rows) -> list:
    """[(index, row)] of this process -> the rows of all processes by index, each once."""
    return [row for _, row in sorted(dict(gather_object(rows)).items())]


def peak_memory() -> int:
    """Bytes: of the GPU's tensors where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
