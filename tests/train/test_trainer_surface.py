"""What train/ relies on in transformers: nothing private, and the installed release calls each method it overrides."""

import ast
import inspect
import shutil
import sys
from collections import Counter

import pytest
import torch
import transformers
from common import trainer
from common.arguments import RunArguments, parse_arguments
from common.checkpoints import whole_checkpoints
from common.collators import LikeLengths, SeededRows
from common.self_critical import SelfCriticalTrainer
from common.trainer import OscarTrainer, steps_of
from common.weight_averaging import WeightAverage
from conftest import REPOSITORY, newest_checkpoint, tiny_captioner
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

SOURCES = sorted((REPOSITORY / "train").rglob("*.py"))
PRIVATE = {}  # what train/ uses of others that is not public -> why; empty, and to be kept so

# What OscarTrainer overrides, and who of transformers has to call it
HOOKS = {"compute_loss", "create_scheduler", "evaluate", "get_batch_samples", "get_decay_parameter_names", "log"}
HOOKS |= {"save_model"}
EVENTS = {
    "WeightAverage": {"on_train_begin", "on_step_end"},
    "WholeCheckpoints": {"on_step_end", "on_epoch_end", "on_save"},
    "EarlyStoppingCallback": {"on_train_begin"},
    "EpochOfDraws": {"on_train_begin", "on_epoch_begin"},
    "ReusedMemory": {"on_train_begin", "on_step_end"},
}


class Sentences(SeededRows):
    """Eight captions of two to five tokens over one region each."""

    lengths = [2, 5, 3, 4, 2, 5, 3, 4]

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        ids = torch.tensor([2, *range(5, 5 + self.lengths[index])])
        inputs = {"input_ids": ids, "labels": ids, "region_features": torch.full((1, 22), float(index))}
        return {"index": index} | inputs


def collate(items):
    batch = {"region_features": torch.stack([item["region_features"] for item in items])}
    for name, fill in {"input_ids": 0, "labels": -100}.items():
        rows = [item[name] for item in items]
        batch[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
    return batch


def make_trainer(folder, patience=9, best_metric="loss", evaluate_task=None, decay=0.0, **settings):
    settings = {
        "max_steps": 6,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "logging_steps": 1,
    } | settings
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=2, use_cpu=True, report_to="none", disable_tqdm=True, **settings
    )
    return OscarTrainer(
        model=tiny_captioner(),
        args=args,
        options=RunArguments(
            model_name_or_path="start", dataset="sentences", early_stopping_patience=patience, ema_decay=decay
        ),
        task="caption",
        best_metric=best_metric,
        evaluate_task=evaluate_task,
        save=lambda folder, card: (folder.mkdir(exist_ok=True), (folder / "README.md").write_text(card)),
        data_collator=collate,
        train_dataset=Sentences(),
        eval_dataset=Sentences(),
    )


def own_methods(kind) -> set:
    return {name for name, value in vars(kind).items() if inspect.isfunction(value) and name != "__init__"}


def test_only_public_methods_are_overridden():
    overridden = {
        name for kind in (OscarTrainer, SelfCriticalTrainer) for name in own_methods(kind) if hasattr(Trainer, name)
    }
    assert overridden == HOOKS
    callbacks = {name: kind for name, kind in vars(trainer).items() if inspect.isclass(kind)}
    callbacks = {name: kind for name, kind in callbacks.items() if issubclass(kind, TrainerCallback)}
    ours = {name: kind for name, kind in callbacks.items() if not kind.__module__.startswith("transformers")}
    events = {name: own_methods(kind) & own_methods(TrainerCallback) for name, kind in ours.items()}
    assert {name: names for name, names in events.items() if names} == EVENTS


@pytest.mark.parametrize("name", sorted(HOOKS) + sorted(f"{kind}.{event}" for kind in EVENTS for event in EVENTS[kind]))
def test_the_installed_trainer_calls_what_is_overridden(name, calls):
    assert calls[name] > 0


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """How often code of transformers called each of our methods in a training with evaluations and checkpoints."""
    counts = Counter()

    def counted(name, method):
        def wrapper(*args, **kwargs):
            counts[name] += sys._getframe(1).f_globals["__name__"].startswith("transformers.")
            return method(*args, **kwargs)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in HOOKS:
            patch.setattr(OscarTrainer, name, counted(name, getattr(OscarTrainer, name)))
        for kind, events in EVENTS.items():
            for event in events:
                callback = getattr(trainer, kind)
                patch.setattr(callback, event, counted(f"{kind}.{event}", getattr(callback, event)))
        make_trainer(tmp_path_factory.mktemp("run")).run()
    return counts


def test_nothing_private_is_imported_or_touched():
    """Names that transformers does not export, attributes with an underscore that this repository does not define."""
    texts = [
        path.read_text(encoding="utf-8") for path in [*SOURCES, *(REPOSITORY / "modeling_mengzi_oscar").glob("*.py")]
    ]
    trees = [ast.parse(text) for text in texts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    found = set()
    for node in (node for tree in trees[: len(SOURCES)] for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "transformers":
            public = dir(transformers) if node.module == "transformers" else ()
            found |= {alias.name for alias in node.names if alias.name not in public}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if alias.name.startswith("_") and alias.name not in own}
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            found |= {node.attr} - own
    assert found == set(PRIVATE)


def test_a_resumed_run_goes_on_with_what_is_counted_and_kept(tmp_path):
    """The counter of batches behind `drop_worst_after`, the patience of early stopping, the newest checkpoints only."""
    first = make_trainer(tmp_path, max_steps=4, gradient_accumulation_steps=3, save_total_limit=1)
    first.run()
    batches = first.model.loss_calls
    assert batches == 4 + 4  # four batches an epoch: steps of three and one
    assert [folder.name for folder in whole_checkpoints(tmp_path)] == ["checkpoint-4"]
    second = make_trainer(tmp_path, max_steps=5, gradient_accumulation_steps=3, save_total_limit=1)
    second.run()
    assert second.model.loss_calls == batches + 3
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert second.state.best_metric <= first.state.best_metric
    assert second.state.best_model_checkpoint is None
    assert (tmp_path / "best" / "README.md").is_file()


@pytest.mark.parametrize("written_last", [(TrainerState, "save_to_json"), (WeightAverage, "save")])
def test_killed_before_a_checkpoint_is_whole_the_older_one_is_still_there(tmp_path, monkeypatch, written_last):
    def killed(*args, **kwargs):
        if (tmp_path / "checkpoint-4").exists():
            raise KeyboardInterrupt
        return write(*args, **kwargs)

    write = getattr(*written_last)
    monkeypatch.setattr(*written_last, killed)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, save_total_limit=1).run()
    assert (tmp_path / "checkpoint-4" / "optimizer.pt").is_file()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_a_metric_that_is_not_there_is_said(tmp_path):
    with pytest.raises(SystemExit, match="--metric_for_best_model rouge: an evaluation gives loss"):
        make_trainer(tmp_path, metric_for_best_model="rouge").run()


def test_like_lengths_meet_in_an_order_of_seed_and_epoch():
    rows = Sentences(seed=7)
    rows.lengths = [index * 37 % 101 for index in range(101)]
    ordered = LikeLengths(rows, step_size=1)  # chunks of 50
    orders = []
    for epoch in (0, 1, 0):
        torch.manual_seed(len(orders))  # what else was drawn does not matter
        ordered.set_epoch(epoch)
        ordered[0]
        orders.append(ordered.order)
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(101))
    lengths = [rows.lengths[index] for index in orders[0]]
    assert lengths[0] == 100
    assert sum(later > earlier for earlier, later in zip(lengths, lengths[1:], strict=False)) <= 2  # chunk to chunk


def test_a_run_that_is_over_trains_no_more(tmp_path):
    """Also where its last checkpoint lies within an epoch: Trainer looks at the limit after a step only."""
    for _ in range(3):
        trainer = make_trainer(tmp_path, max_steps=6, eval_steps=2)
        trainer.run()
        assert trainer.state.global_step == 6
    assert not (tmp_path / "checkpoint-7").exists()
    assert (tmp_path / "best" / "README.md").exists()


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    steps = []
    for _ in range(2):
        settings = {"max_steps": 40, "eval_steps": 2, "best_metric": "worth"}
        trainer = make_trainer(tmp_path, patience=2, evaluate_task=lambda model: ({"worth": 0.0}, []), **settings)
        trainer.run()
        steps.append(trainer.state.global_step)
    assert steps[0] < 40
    assert steps[1] == steps[0]


def test_the_evaluation_before_training_may_be_the_best(tmp_path):
    worths = iter([9.0, 1.0, 2.0, 3.0, 4.0])
    saved = []
    settings = {"eval_on_start": True, "eval_steps": 2, "max_steps": 4, "best_metric": "worth"}
    trainer = make_trainer(tmp_path, evaluate_task=lambda model: ({"worth": next(worths)}, []), **settings)
    trainer.save = lambda folder, card: saved.append(trainer.state.global_step)
    trainer.run()
    assert saved == [0]


def test_copies_of_checkpoints_are_somebodys_own(tmp_path):
    make_trainer(tmp_path, max_steps=4).run()
    for name in ("checkpoint-4-kept", "checkpoint-best", "checkpoint-2-copy-9"):
        shutil.copytree(tmp_path / "checkpoint-4", tmp_path / name)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def rows_of(folder):
    """Steps of scores.md, first to last."""
    return [line.split("|")[1].strip() for line in (folder / "scores.md").read_text().splitlines()[2:]]


def test_the_scores_begin_before_training_and_the_last_lines_say_how_it_ended(tmp_path, capsys):
    """Once, also when a run goes on; that nothing was better than the start is said, and what is left to do."""
    worths = iter([9.0, 1.0, 2.0, 10.0])
    settings = {"eval_on_start": True, "eval_steps": 2, "best_metric": "worth"}
    told = []
    for steps in (4, 6, 6):
        trainer = make_trainer(tmp_path, evaluate_task=lambda model: ({"worth": next(worths)}, []), **settings)
        trainer.args.max_steps = steps
        trainer.run()
        told.append(capsys.readouterr().err.splitlines())
        assert rows_of(tmp_path) == ["0 (before training)", *"246"[: steps // 2]]
    best = tmp_path / "best"
    never_better, better, over = told
    assert never_better[-2].startswith("training made nothing better: worth 9 before it, at best 2 at step 4, epoch 1.")
    assert f"{best} holds the weights of the start" in never_better[-2]
    assert f"resuming from {tmp_path / 'checkpoint-4'}" in better
    assert not [line for lines in told for line in lines if "missing keys" in line or "pin_memory" in line]
    assert better[-2] == over[-2] == f"{best}: the best weights, worth 9 before training, 10 at step 6, epoch 1.5"
    assert over[0].startswith(f"there is nothing left to train: {tmp_path / 'checkpoint-6'} is the end of this run")
    assert all(lines[-1].startswith("use it: python train/caption.py --do_predict") for lines in told)
    assert f"--model_name_or_path {best}" in over[-1]
    card = (best / "README.md").read_text()
    assert "started from: start (worth 9 before training)" in card
    assert "; weights of step 6" in card


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"max_steps": -1, "num_train_epochs": 0}])
def test_a_run_without_steps_evaluates_the_start(tmp_path, capsys, settings):
    trainer = make_trainer(tmp_path, eval_on_start=True, **settings)
    trainer.run()
    assert trainer.state.global_step == 0
    assert rows_of(tmp_path) == ["0 (before training)"]
    [line, _] = capsys.readouterr().err.splitlines()[-2:]
    assert line.startswith(f"nothing was trained: {tmp_path / 'best'} holds the weights of the start, loss ")
    assert (tmp_path / "best").is_dir()


def test_scores_of_a_resumed_run_have_their_columns_in_the_same_order(tmp_path):
    scores = {"worth": 1.0, "distinct": 2}
    for steps in (2, 4):
        make_trainer(tmp_path, max_steps=steps, best_metric="worth", evaluate_task=lambda model: (scores, [])).run()
    assert (tmp_path / "scores.md").read_text().startswith("| step | epoch | loss | distinct | worth |")


def test_a_run_of_epochs_that_is_over_trains_no_more(tmp_path, capsys):
    for _ in range(2):
        trainer = make_trainer(tmp_path, max_steps=-1, num_train_epochs=1, eval_strategy="epoch")
        trainer.run()
    assert "there is nothing left to train" in capsys.readouterr().err
    assert trainer.state.global_step == 4


def test_what_a_run_does_not_say(tmp_path, caplog):
    """transformers', of best weights that are not loaded at the end, reads like a failure."""
    make_trainer(tmp_path, patience=2, max_steps=2, eval_steps=2).run()
    assert "best model" not in caplog.text


@pytest.mark.parametrize(("given", "logged"), [([], [1, 2, 3, 4, 5, 6]), (["--logging_steps=3"], [3, 6])])
def test_short_runs_show_their_loss(tmp_path, given, logged):
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "--eval_strategy", "steps", *given]
    [args] = parse_arguments(TrainingArguments, description="", arguments=arguments)
    assert (args.eval_on_start, args.save_total_limit) == (True, 2)
    trainer = make_trainer(tmp_path, logging_steps=args.logging_steps, eval_steps=args.eval_steps)
    assert trainer.args.eval_steps == (3 if given else 2)  # transformers takes --logging_steps; else where it is saved
    trainer.run()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == logged


def test_steps_of_a_run():
    for settings, steps in (({"max_steps": 7}, 7), ({"num_train_epochs": 1.5}, 8), ({}, 15)):
        args = TrainingArguments("x", use_cpu=True, per_device_train_batch_size=2, **settings)
        assert steps_of(args, 9) == steps
    args = TrainingArguments("x", use_cpu=True, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert steps_of(args, 9) == 6


def test_checkpoints_hold_what_is_gone_on_from_and_no_more(tmp_path):
    """An average where there is one; neither region model nor code; a run may begin to average later."""
    folder = tmp_path / "came from" / "region_model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for decay, steps, has in ((0.0, 2, "no_weight_average"), (0.5, 4, "weight_average.safetensors")):
        trainer = make_trainer(tmp_path / "run", decay=decay, max_steps=steps)
        config = trainer.model.config
        config.region_model, config.auto_map, config.name_or_path = "region_model", {}, str(folder.parent)
        trainer.run()
        assert config.region_model == "region_model"
        files = {file.name for file in (tmp_path / "run" / f"checkpoint-{steps}").iterdir()}
        assert files & {"no_weight_average", "weight_average.safetensors"} == {has}
        assert not files & {"region_model", "modeling_mengzi_oscar.py"}
    assert [folder.name for folder in whole_checkpoints(tmp_path / "run")] == ["checkpoint-2", "checkpoint-4"]
