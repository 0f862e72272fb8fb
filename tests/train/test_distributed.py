"""Two processes are one with twice the batch, a dead one ends the job, and a killed run goes on to the same weights."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import fields

import caption
import numpy as np
import pretrain
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from common.trainer import OscarTrainer
from conftest import CHARACTERS, REPOSITORY
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainingArguments

from modeling_mengzi_oscar import MengziOscarPipeline, RegionFeatureStore
from modeling_mengzi_oscar.modeling_mengzi_oscar import MengziOscarPreTrainedModel

CONFIGS = REPOSITORY / "train" / "accelerate"
SCRIPTS = {"caption": caption, "pretrain": pretrain}
JOB = """
import atexit, json, os, signal, sys
from pathlib import Path
@atexit.register  # before train/common/arguments.py's, so it runs after it
def write_threads(path=Path(__file__).with_name("threads" + os.environ["RANK"])):
    path.write_text("".join(task.read_text() for task in Path("/proc/self/task").glob("*/comm")))
sys.path.insert(0, {train!r})
import caption, pretrain
from common.trainer import OscarTrainer
step = OscarTrainer.training_step
def training_step(self, *args, **kwargs):
    if (self.args.process_index, self.state.global_step) == (1, {dies_at}):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
OscarTrainer.training_step = training_step
for script, arguments in json.loads({runs!r}):
    {{"caption": caption, "pretrain": pretrain}}[script].main(arguments)
"""


@pytest.fixture(scope="module")
def data(tiny_checkpoint, tmp_path_factory):
    """Eighteen photos in Flickr8k-CN's layout with sentences of very different lengths, features, a tiny start."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    draws, sentences, ids = random.Random(0), [], [f"photo{number}" for number in range(18)]
    noise = np.random.default_rng(0)
    with RegionFeatureStore.writer(folder / "store") as writer:
        for name in ids:
            Image.new("RGB", (8, 8)).save(folder / "images" / f"{name}.jpg")
            features = noise.standard_normal((draws.randint(1, 6), 262)).astype(np.float32)
            tags = {"tag_ids": np.array([draws.randint(1, 3)]), "tag_scores": np.ones(1, np.float32)}
            writer.add(name, {"region_features": features} | tags)
            for number in range(3):
                words = draws.choices(CHARACTERS[:30], k=draws.randint(1, 14))
                sentences.append(f"{name}.jpg#zhc#{number} {''.join(words)}")
    (folder / "flickr8kzhc.caption.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    for split, members in {"train": ids[:12], "val": ids[12:17], "test": ids[17:]}.items():
        (folder / f"flickr8k{split}.txt").write_text("\n".join(members) + "\n", encoding="utf-8")
    start = folder / "start"
    shutil.copytree(tiny_checkpoint, start)
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"attention_probs_dropout_prob": 0.0}))
    return folder


def flags(data, output, **settings):
    settings = {
        "do_train": True,
        "model_name_or_path": data / "start",
        "dataset": "flickr8k_cn",
        "data_dir": data,
        "features": data / "store",
        "output_dir": output,
        "max_steps": 5,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "optim": "sgd",  # Adam would hide a loss that is too large
        "drop_out": 0.0,
        "logging_steps": 1,
        "save_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "per_device_eval_batch_size": 2,
        "seed": 3,
        "report_to": "none",
        "use_cpu": True,
    } | settings
    return [f"--{name}={value}" for name, value in settings.items()]


SCORES = ("eval_loss", "eval_char_rouge_l", "eval_char_cider_d", "eval_masked_accuracy", "eval_contrast_accuracy")
OBJECTIVES = {
    "dense": ("caption", {"objective": "dense", "corruption": 0.3, "num_beams": 1, "max_gen_length": 6}),
    "masked": ("caption", {"objective": "masked", "add_od_labels": True, "num_beams": 1, "max_gen_length": 6}),
    "pretrain": (
        "pretrain",
        {"texta_false_prob": 0.25, "textb_sample_mode": 1, "ddp_find_unused_parameters": False},
    ),
}


def launch(folder, runs, dies_at=None, timeout=240):
    """The scripts one after another in the same two processes; an error if they are still there after `timeout`."""
    job = JOB.format(train=str(REPOSITORY / "train"), runs=json.dumps(runs), dies_at=dies_at)
    (folder / "job.py").write_text(job, encoding="utf-8")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command = [*launcher, "--config_file", CONFIGS / "cpu_two_processes.yaml", folder / "job.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, **pipes) as process:
        try:
            _, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"still running after {timeout} seconds")
    return process.returncode, errors


@pytest.fixture(scope="module")
def two_processes(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    checkpointing = {"activation_checkpointing": True}  # which changes no number; before 5.20 by its older name
    if "activation_checkpointing" not in {known.name for known in fields(TrainingArguments)}:
        checkpointing = {"gradient_checkpointing": True}
    scst = {"objective": "scst", "sc_train_sample_n": 2, "num_beams": 1, "max_gen_length": 6, "max_steps": 2}
    runs = [
        (script, flags(data, folder / name, per_device_train_batch_size=2, **settings | checkpointing))
        for name, (script, settings) in (OBJECTIVES | {"scst": ("caption", scst)}).items()
    ]
    code, errors = launch(folder, runs)
    assert code == 0, errors[-12000:]  # the launcher's own summary alone is over 3,000
    return folder


def test_no_thread_of_gloo_is_left_at_the_end(two_processes):
    """One that is can abort the interpreter while it ends, once in a hundred runs."""
    for rank in range(2):
        threads = (two_processes / f"threads{rank}").read_text()
        assert "python" in threads
        assert "gloo" not in threads


def history(folder, step=5):
    return json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]


def evaluations(entries):
    """The one before training and the one after it."""
    found = [entry for entry in entries if "eval_loss" in entry]
    assert [entry["step"] for entry in found] == [0, 5]
    return found


@pytest.mark.parametrize(("name", "accumulation"), [("dense", 1), ("masked", 1), ("pretrain", 1), ("pretrain", 2)])
def test_two_processes_are_one_with_twice_the_batch(data, two_processes, tmp_path, name, accumulation):
    script, settings = OBJECTIVES[name]
    batch = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    SCRIPTS[script].main(flags(data, tmp_path, **settings, **batch))
    one, two = history(tmp_path), history(two_processes / name)
    losses = [[entry["loss"] for entry in entries if "loss" in entry] for entries in (one, two)]
    assert len(losses[0]) == 5
    assert losses[1] == pytest.approx(losses[0], abs=1e-5, rel=1e-5)
    weights = [load_file(folder / "checkpoint-5" / "model.safetensors") for folder in (tmp_path, two_processes / name)]
    before = load_file(data / "start" / "model.safetensors")
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, atol=1e-5, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
    moved = [(weights[0][key] - before[key]).abs().max().item() for key in before if key in weights[0]]
    assert max(moved) > 1e-3
    # five validation photos over two processes, and in batches of two: each counted once
    for entry, other in zip(evaluations(one), evaluations(two), strict=True):
        scores = {name: entry[name] for name in entry if name in SCORES}
        assert len(scores) > 1
        assert {name: other[name] for name in scores} == pytest.approx(scores, abs=1e-5)


def test_a_process_that_dies_ends_the_job(data, tmp_path):
    """With an error, at once, and not when the other one's patience ends."""
    script, settings = OBJECTIVES["dense"]
    code, errors = launch(tmp_path, [(script, flags(data, tmp_path / "run", **settings))], dies_at=2)
    assert code != 0
    assert "SIGKILL" in errors
    assert not (tmp_path / "run" / "checkpoint-5").exists()


RESUMED = {
    "dense": ("caption", {"corruption": 0.3, "drop_worst_ratio": 0.3, "drop_worst_after": 4, "ema_decay": 0.9}),
    "masked": (
        "caption",
        {
            "objective": "masked",
            "add_od_labels": True,
            "gradient_accumulation_steps": 3,
            "train_sampling_strategy": "group_by_length",
        },
    ),
    "pretrain": ("pretrain", {"texta_false_prob": 0.25, "textb_sample_mode": 1, "dataloader_num_workers": 1}),
}


@pytest.mark.parametrize("name", RESUMED)
def test_killed_at_any_step_and_resumed_ends_in_the_same_weights(data, tmp_path, monkeypatch, name):
    """`kill -9`, and the same command again: bit for bit what one run gives, over the end of an epoch, with dropout."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process must not use the pool of threads that it finds
    script, settings = RESUMED[name]
    settings |= {"max_steps": 9, "save_steps": 3, "save_total_limit": 1, "optim": "adamw_torch", "drop_out": 0.2}
    settings |= {"lr_scheduler_type": "linear", "learning_rate": 1e-3, "eval_strategy": "no"}
    settings |= {"per_device_train_batch_size": 2} | (
        {"max_gen_length": 6, "num_beams": 1} if script == "caption" else {}
    )
    main, steps = SCRIPTS[script].main, []
    main(flags(data, tmp_path / "whole", **settings))

    killed_at, step = random.randrange(1, 9), OscarTrainer.training_step

    def training_step(self, *args, **kwargs):
        if multiprocessing.parent_process() is not None and self.state.global_step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(OscarTrainer, "training_step", training_step)
    arguments = flags(data, tmp_path / "killed", **settings)
    process = multiprocessing.get_context("fork").Process(target=main, args=(arguments,))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    main(arguments)
    torch.set_num_threads(threads)
    assert steps[0] == killed_at // 3 * 3  # it went on from the last checkpoint
    files = sorted(file.name for file in (tmp_path / "whole" / "checkpoint-9").glob("*.safetensors"))
    assert len(files) == 1 + ("ema_decay" in settings)
    for file in files:
        whole, resumed = (load_file(tmp_path / run / "checkpoint-9" / file) for run in ("whole", "killed"))
        assert whole.keys() == resumed.keys()
        different = [key for key, tensor in whole.items() if not torch.equal(resumed[key], tensor)]
        assert not different, f"killed at step {killed_at}: {different[:3]}"


def test_captions_are_tuned_from_what_was_pretrained(data, tmp_path):
    """The pair layout becomes the captions': tags at their own positions, a generation config, room for 70 tokens."""
    script, settings = OBJECTIVES["pretrain"]
    quick = {"max_steps": 1, "per_device_train_batch_size": 2}
    pretrain.main(flags(data, tmp_path / "pretrained", **settings | quick))
    start = {"model_name_or_path": tmp_path / "pretrained" / "best", "tie_weights": True}
    caption.main(flags(data, tmp_path / "tuned", **OBJECTIVES["masked"][1] | quick | start))
    pipeline = MengziOscarPipeline.from_pretrained(tmp_path / "tuned" / "best")
    assert (pipeline.processor.layout, pipeline.processor.max_length) == ("caption", 70)
    assert pipeline.processor.tag_ids(["狗", "猫"])[-1] == pipeline.processor.tokenizer.sep_token_id
    assert pipeline.captioner.generation_config.early_stopping == "never"
    assert isinstance(pipeline.caption(str(data / "images" / "photo0.jpg"))["caption"], str)


CONFIG_TYPES = {
    "one_gpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "multi_machine": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "cpu_two_processes": DistributedType.MULTI_GPU,
}


def test_launch_configurations_are_what_accelerate_reads():
    configs = {path.stem: load_config_from_file(str(path)) for path in CONFIGS.glob("*.yaml")}
    assert {name: config.distributed_type for name, config in configs.items()} == CONFIG_TYPES
    assert configs["multi_machine"].num_machines == 2
    assert configs["fsdp2"].fsdp_config["fsdp_version"] == 2
    wrapped = configs["fsdp2"].fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    assert wrapped in MengziOscarPreTrainedModel._no_split_modules
    assert configs["deepspeed_zero2"].deepspeed_config["zero_stage"] == 2
    for path in CONFIGS.glob("*.yaml"):  # each says in its head whether it has been run
        assert "ntested" in path.read_text() or "Tested" in path.read_text()
