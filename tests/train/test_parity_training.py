"""The training loops of 2019, written plainly, over our models: they end at the weights the original ended at.

`Trainer` differs in the ways docs/from_oscar.md lists; this loop is where the original's own way stands, and is tested.
"""

import pytest
import torch
from goldens import caption_labels, load_case, load_original, our_arguments, pretraining_labels

from modeling_mengzi_oscar import (
    MengziOscarForImageCaptioning,
    MengziOscarForImageTextRetrieval,
    MengziOscarForPreTraining,
)


def adamw_2019(parameters, state, lr, eps, weight_decay, betas=(0.9, 0.999)):
    """pytorch_transformers' AdamW: eps joins sqrt(v) before the bias correction, the decay follows the update."""
    for parameter in parameters:
        if parameter.grad is None:  # neither update nor decay
            continue
        momentum = state.setdefault(parameter, {"step": 0, "m": 0.0, "v": 0.0})
        momentum["step"] += 1
        momentum["m"] = betas[0] * momentum["m"] + (1 - betas[0]) * parameter.grad
        momentum["v"] = betas[1] * momentum["v"] + (1 - betas[1]) * parameter.grad**2
        correction = (1 - betas[1] ** momentum["step"]) ** 0.5 / (1 - betas[0] ** momentum["step"])
        parameter.data -= lr * correction * momentum["m"] / (momentum["v"].sqrt() + eps)
        parameter.data -= lr * weight_decay * parameter.data


def multiplier(step, warmup, total):
    """Linear warm-up, then linear to 0 (constant without `total`), after `step` scheduler steps."""
    if step < warmup:
        return step / warmup
    return 1.0 if total is None else max(0.0, (total - step) / max(1, total - warmup))


def is_decayed(name):
    """The original's substring test."""
    return not any(part in name for part in ("bias", "LayerNorm.weight"))


CASES = {
    "train_caption": (MengziOscarForImageCaptioning, lambda inputs: {"labels": caption_labels(inputs)}),
    "train_retrieval": (MengziOscarForImageTextRetrieval, lambda inputs: {"labels": inputs["labels"]}),
    "train_pretrain": (MengziOscarForPreTraining, pretraining_labels),
}


@pytest.mark.parametrize("name", CASES)
def test_training_trace(name):
    model_class, labels_of = CASES[name]
    folder, calls = load_case(name)
    model = load_original(model_class, folder)
    run = calls.pop("run")
    settings, expect = run["scalar_inputs"], run["expect"]
    fine_tuning = name != "train_pretrain"
    accumulation, total = settings["gradient_accumulation_steps"], settings.get("t_total") or expect["t_total"]
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    decay = {key for key, parameter in trained.items() if is_decayed(key)}
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    assert decay == set(expect["decay"]) - frozen
    assert trained.keys() - decay == set(expect["no_decay"])

    state, losses, rates, norms, step = {}, [], [], [], 0
    for number, call in enumerate(calls.values(), start=1):
        loss = model(**our_arguments(call["inputs"]), **labels_of(call["inputs"])).loss
        losses.append(loss.item())
        (loss / accumulation).backward()
        if fine_tuning:  # after every micro-batch, on what has been accumulated
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])
        if number % accumulation == 0:
            if not fine_tuning:
                norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"]).item())
            # Fine-tuning steps the scheduler first, so that its last update has the rate 0; pre-training afterwards.
            rate = settings["learning_rate"] * multiplier(step + fine_tuning, settings["warmup_steps"], total)
            step += 1
            rates.append(rate)
            for key, parameter in trained.items():
                weight_decay = settings["weight_decay"] if key in decay else 0.0
                adamw_2019([parameter], state, rate, settings["adam_epsilon"], weight_decay)
            model.zero_grad()

    if "micro_losses_divided" in expect:
        assert [loss / accumulation for loss in losses] == pytest.approx(expect["micro_losses_divided"], abs=2e-5)
    else:
        assert losses == pytest.approx(expect.get("micro_losses") or expect["losses"], abs=2e-5)
    assert rates == pytest.approx(expect["lr_used_per_step"])
    assert norms == pytest.approx(expect.get("grad_norm_before_clip", []), rel=1e-4)
    final = model.state_dict()
    compared = 0
    for key, expected in run["golden"].items():
        # A key's bias shifts all scores of a query alike: its gradient is rounding noise, which Adam makes into steps.
        if key.startswith("final__") and not key.endswith("self__key__bias"):
            ours = final[key.removeprefix("final__").replace("__", ".")]
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
            compared += 1
    assert compared > 40


def test_optimiser_trace():
    _, calls = load_case("schedules")
    call = calls["adamw_trace"]
    settings = call["scalar_inputs"]
    parameter, state = torch.nn.Parameter(call["inputs"]["initial"].clone()), {}
    for gradient, expected in zip(call["inputs"]["grads"], call["golden"]["params"], strict=True):
        parameter.grad = gradient
        adamw_2019([parameter], state, settings["lr"], settings["eps"], settings["weight_decay"], settings["betas"])
        torch.testing.assert_close(parameter.data, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "warmup", "total"),
    [("linear_w0_t10", 0, 10), ("linear_w3_t10", 3, 10), ("constant_w3", 3, None), ("linear_w0_t3", 0, 3)],
)
def test_schedules(name, warmup, total):
    _, calls = load_case("schedules")
    expected = calls["multipliers"]["expect"][name]
    assert [multiplier(step, warmup, total) for step in range(len(expected))] == pytest.approx(expected)
