"""What every training shares: transformers' `Trainer`, and where ours differs from it.

* A loss is a mean over all rows (or labelled tokens) of an optimiser step, whatever process or accumulated batch they
  are in: two processes give the same weights as one with twice the batch.
* What is drawn for a row comes from seed, epoch and row (`collators.py`), so a run that was killed ends as if it had
  not been. A checkpoint counts when it is whole; `run` goes on from the newest that is.
* Evaluation uses the averaged weights, adds the job's own scores to the loss, and keeps the best as <output_dir>/best,
  a Hub repo with a model card that the run wrote.
* Speed and peak memory stand in every line of the log; `report.py` draws the curves and ten samples.
"""

import ctypes
import json
import resource
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from report import draw_curves, run_card, save_samples, write_score_table
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput
from weight_averaging import WeightAverage

from modeling_mengzi_oscar.hub import push


class OscarTrainer(Trainer):
    """
    Args:
        options: `arguments.RunArguments` of the script.
        task: a key of `model_card.TASKS`. best_metric: what the best evaluation is chosen by.
        evaluate_task: model -> (scores, samples): numbers to log beside the loss, and what `report.save_samples` takes.
            Every process calls it; `in_order` brings their shares together.
        save: (folder, card) -> None, writes the model as a Hub repo.
        The others as `Trainer` takes them.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the counts of the whole step

    def __init__(self, *, args, options, task, best_metric, save, evaluate_task=None, callbacks=(), **kwargs):
        args.remove_unused_columns = False  # the collators make the inputs
        args.prediction_loss_only = True  # scores are made by evaluate_task
        args.label_names = args.label_names or ["labels"]
        args.metric_for_best_model = args.metric_for_best_model or best_metric
        args.restore_callback_states_from_checkpoint = True  # LossCalls, and the patience of early stopping
        args.greater_is_better = not args.metric_for_best_model.endswith("loss")
        self.push_at_the_end, args.push_to_hub = args.push_to_hub, False  # the best folder, not every checkpoint
        self.options, self.task, self.save, self.evaluate_task = options, task, save, evaluate_task
        self.average = WeightAverage(options.ema_decay)
        self.samples = []
        callbacks = [*callbacks, self.average, LossCalls(), EpochOfDraws(), FreedMemory()]
        if options.early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(options.early_stopping_patience))
        super().__init__(args=args, callbacks=callbacks, **kwargs)

    def run(self):
        """Trains, from the newest whole checkpoint if there is one; evaluates at the end; pushes if asked."""
        checkpoint = newest_checkpoint(self.args.output_dir)
        self.last_log = time.monotonic(), int(checkpoint.rpartition("-")[2]) if checkpoint else 0
        self.train(resume_from_checkpoint=checkpoint)
        last = self.state.global_step
        if not any("eval_loss" in entry and entry["step"] == last for entry in self.state.log_history):
            self._determine_best_metric(self.evaluate(), None)
        if self.push_at_the_end and self.args.should_save:
            name = self.args.hub_model_id or Path(self.args.output_dir).name
            print(push(self.best_folder, name, private=bool(self.args.hub_private_repo)))

    @property
    def best_folder(self):
        return Path(self.args.output_dir) / "best"

    # Loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """(rows, labelled things) of a step, over its accumulated batches and all processes."""
        counts = torch.tensor([loss_counts(batch) for batch in batch_samples], device=device).sum(dim=0)
        return self.accelerator.reduce(counts, reduction="sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        sums, counts = loss_sums(outputs, inputs)
        if num_items_in_batch is not None:
            counts = num_items_in_batch
        loss = (sums / counts.clamp(min=1)).sum()
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over the processes
        return (loss, outputs) if return_outputs else loss

    def get_decay_parameter_names(self, model):
        """Matrices; no decay for biases and LayerNorms, the one inside a `Sequential` included."""
        return [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]

    def _get_train_sampler(self, train_dataset=None):
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if self.args.train_sampling_strategy == "group_by_length" and hasattr(dataset, "lengths"):
            size = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return LengthGroupedSampler(size, lengths=dataset.lengths)
        return super()._get_train_sampler(train_dataset)

    # Evaluation

    def get_eval_dataloader(self, eval_dataset=None):
        """The rows of this process: each is in one process, and none is repeated to fill a batch."""
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        return DataLoader(
            Subset(dataset, share_of(len(dataset))),
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs):
        with self.average.applied_to(self.model):
            scores = {"loss": self.validation_loss(dataloader, description)}
            if self.evaluate_task is not None:
                task_scores, self.samples = self.evaluate_task(self.model)
                scores |= task_scores
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        rows = len(dataloader.dataset.dataset)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=rows)

    @torch.no_grad()
    def validation_loss(self, dataloader, description) -> float:
        """As in training a mean over all rows (or labelled tokens), here of the whole split."""
        self.model.eval()
        totals = torch.zeros(2, 2, dtype=torch.float64, device=self.args.device)
        for batch in tqdm(dataloader, desc=description, leave=False, disable=not self.is_world_process_zero()):
            batch = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                _, outputs = self.compute_loss(self.model, batch, return_outputs=True)
            totals += torch.stack(loss_sums(outputs, batch))
        sums, counts = self.accelerator.reduce(totals, reduction="sum")
        return (sums / counts.clamp(min=1)).sum().item()

    def _determine_best_metric(self, metrics, trial):
        is_best = super()._determine_best_metric(metrics, trial)
        self.state.best_global_step = None  # best/ is kept apart: rotation shall keep the newest checkpoints
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            draw_curves(self.state.log_history, self.args.metric_for_best_model, folder / "curves.png")
            write_score_table(self.state.log_history, folder / "scores.md")
            save_samples(self.samples, folder)
            if is_best:
                scores = {name.removeprefix("eval_"): value for name, value in metrics.items()}
                card = run_card(self.task, self.model.config, self.options, self.args, self.state, scores)
                with self.average.applied_to(self.model):
                    self.save(self.best_folder, card)
        return is_best

    # Log and checkpoints

    def log(self, logs, start_time=None):
        if "loss" in logs:
            (then, step), self.last_log = self.last_log, (time.monotonic(), self.state.global_step)
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            samples = (self.state.global_step - step) * batch
            logs["samples_per_second"] = round(samples / (self.last_log[0] - then), 2)
            logs["peak_memory_gb"] = round(peak_memory() / 1e9, 2)
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir):
        """Everything that resuming needs is there before trainer_state.json, which makes a checkpoint whole."""
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            self.average.save(output_dir)
        self.accelerator.wait_for_everyone()


class LossCalls(TrainerCallback, ExportableState):
    """Carries the counter behind `drop_worst_after` through checkpoints; the original began again at 0."""

    loss_calls = 0
    model = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.model = getattr(model, "captioner", model)
        if state.global_step and hasattr(self.model, "loss_calls"):
            self.model.loss_calls = self.loss_calls

    def state(self):
        return {"args": {}, "attributes": {"loss_calls": getattr(self.model, "loss_calls", 0)}}


class EpochOfDraws(TrainerCallback):
    """Tells the training data which epoch its draws are for."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch or 0))


class FreedMemory(TrainerCallback):
    """Gives freed memory back to the system now and then: batches of ever other shapes make glibc's malloc keep it."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % 20 == 0 and sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
            if trim is not None:
                trim(0)


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
    """The indices of this process among `total`."""
    return range(PartialState().process_index, total, PartialState().num_processes)


def in_order(rows) -> list:
    """[(index, row)] of this process -> the rows of all processes by index, each once."""
    return [row for _, row in sorted(dict(gather_object(rows)).items())]


def newest_checkpoint(output_dir) -> str | None:
    """The newest whole checkpoint: its state is written last, and one that cannot be read was interrupted."""
    folders = sorted(Path(output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for folder in reversed(folders):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            return str(folder)
        except (OSError, ValueError):
            continue
    return None


def peak_memory() -> int:
    """Bytes: of the GPU's tensors where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
