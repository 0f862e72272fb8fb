"""Numbers of the original Oscar code (shared/parity/oscar), reproduced by our model from the original folders."""

import json

import pytest
import torch
from conftest import shared_path
from safetensors.torch import load_file

from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarModel

ENCODER_CASES = ["bert_img_ln", "bert_img_ln_bigeps", "bert_img_noln", "bert_img_2054"]
LOSS_CASES = ["caption_loss_ls_drop_tied", "caption_loss_plain_untied"]
DECODE_CASES = ["caption_decode_od", "caption_decode_no_od"]
DECODE_CALLS = ["A_greedy", "A_beam2", "A_beam5", "B_greedy", "B_beam2", "B_beam5"]
OUR_NAMES = {"img_feats": "region_features"}
NO_COUNTERPART = {"head_mask", "encoder_history_states"}  # arguments that our API does not have


def load_case(name):
    """case.json and the tensors of every call, inputs cast to the type the original was called with."""
    folder = shared_path(f"parity/oscar/{name}")
    case = json.loads((folder / "case.json").read_text())
    inputs, outputs = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    calls = {}
    for call in case["calls"]:
        name = call["name"]
        call["inputs"] = {
            key: inputs[f"{name}/{key}"].to(getattr(torch, spec["dtype"]))
            for key, spec in call["tensor_inputs"].items()
        }
        call["golden"] = {key: outputs[f"{name}/{key}"] for key in call["outputs"]}
        calls[name] = call
    return folder, calls


def load(model_class, folder, attention="sdpa"):
    model, info = model_class.from_pretrained(folder, attn_implementation=attention, output_loading_info=True)
    assert not any(info.values()), info  # no key missing, left over or of another shape
    return model.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ENCODER_CASES)
def test_encoder(name, attention):
    folder, calls = load_case(name)
    model = load(MengziOscarModel, folder, attention)
    for call in calls.values():
        if NO_COUNTERPART & call["inputs"].keys():
            continue
        arguments = {OUR_NAMES.get(key, key): tensor for key, tensor in call["inputs"].items()}
        with torch.no_grad():
            output = model(**arguments, output_hidden_states=True, output_attentions=attention == "eager")
        golden, valid = call["golden"], call["golden"]["valid_rows"].bool()
        torch.testing.assert_close(output.last_hidden_state[valid], golden["sequence_output"][valid], atol=1e-4, rtol=0)
        torch.testing.assert_close(output.pooler_output, golden["pooled_output"], atol=1e-4, rtol=0)
        if "hidden_states" in golden:
            states = torch.stack(output.hidden_states)
            torch.testing.assert_close(states[:, valid], golden["hidden_states"][:, valid], atol=1e-4, rtol=0)
        if "attentions" in golden and attention == "eager":
            weights, expected = torch.stack(output.attentions).transpose(2, 3), golden["attentions"].transpose(2, 3)
            torch.testing.assert_close(weights[:, valid], expected[:, valid], atol=1e-4, rtol=0)


def labels_of(inputs):
    """The original's masked_pos (B, T) and masked_ids (B, 3, padded with 0) as labels (B, T)."""
    labels = torch.full_like(inputs["masked_pos"], -100, dtype=torch.long)
    labels[inputs["masked_pos"] == 1] = inputs["masked_ids"][inputs["masked_ids"] != 0]
    return labels


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", LOSS_CASES)
def test_caption_loss(name, attention):
    folder, calls = load_case(name)
    model = load(MengziOscarForImageCaptioning, folder, attention)
    for call in calls.values():  # in order: the loss counts its calls
        inputs, golden = call["inputs"], call["golden"]
        arguments = {OUR_NAMES.get(k, k): t for k, t in inputs.items() if not k.startswith("masked")}
        if not call["scalar_inputs"]["is_training"]:
            logits = model(**arguments).logits
            valid = golden["valid_rows"].bool()
            torch.testing.assert_close(logits[valid], golden["class_logits"][valid], atol=1e-4, rtol=0)
            continue
        model.zero_grad()
        output = model(**arguments, labels=labels_of(inputs))
        output.loss.backward()
        torch.testing.assert_close(output.logits, golden["class_logits"], atol=1e-4, rtol=0)
        assert output.loss.item() == pytest.approx(call["expect"]["loss"], abs=2e-5)
        parameters = dict(model.named_parameters())
        gradients = {key: parameter.grad for key, parameter in parameters.items() if parameter.grad is not None}
        for key in call.get("params_without_grad", []):
            assert key not in gradients
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
        assert norm == pytest.approx(call["expect"]["total_grad_norm"], rel=1e-4)
        for key in golden:
            if key.startswith("grad__"):
                gradient = gradients[key.removeprefix("grad__").replace("__", ".")]
                torch.testing.assert_close(gradient, golden[key], atol=1e-4, rtol=1e-4)


def decode_inputs(call):
    """The original's inference tensors ([CLS] [MASK]... [SEP] tags | regions) as arguments of our `generate`."""
    inputs, caption = call["inputs"], call["scalar_inputs"]["max_gen_length"]
    seen_by_cls = inputs["attention_mask"][:, 0]  # itself, tags and regions
    text = inputs["input_ids"].shape[1]
    return {
        "region_features": inputs["img_feats"],
        "region_attention_mask": seen_by_cls[:, text:],
        "tag_input_ids": inputs["input_ids"][:, caption:],
        "tag_attention_mask": seen_by_cls[:, caption:text],
    }


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "recompute"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("call_name", DECODE_CALLS)
@pytest.mark.parametrize("name", DECODE_CASES)
def test_decoding(name, call_name, attention, use_cache):
    folder, calls = load_case(name)
    model = load(MengziOscarForImageCaptioning, folder, attention)
    call = calls[call_name]
    options, sep = call["scalar_inputs"], call["scalar_inputs"]["eos_token_ids"][0]
    output = model.generate(
        **decode_inputs(calls[call["inputs_from"]]),
        num_beams=options["num_beams"],
        max_length=options["max_length"],
        length_penalty=options["length_penalty"],
        bos_token_id=options["bos_token_id"],
        eos_token_id=sep,
        pad_token_id=options["pad_token_id"],
        mask_token_id=options["mask_token_id"],
        early_stopping="never" if options["num_beams"] > 1 else None,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = output.sequences_scores if options["num_beams"] > 1 else greedy_scores(model, output, sep)
    for ids, score, expected, expected_score in zip(
        output.sequences, scores, call["golden"]["decoded"][:, 0], call["golden"]["logprobs"][:, 0], strict=True
    ):
        ours, theirs = until(ids.tolist(), sep), until(expected.tolist(), sep)
        if len(theirs) == options["max_length"]:  # cut by the limit: the original puts [SEP] over its last token
            assert ours[: len(theirs) - 1] == theirs[:-1]
        else:
            assert ours == theirs
            assert score.item() == pytest.approx(expected_score.item(), abs=2e-5)


def until(ids, sep):
    return ids[: ids.index(sep) + 1] if sep in ids else ids


def greedy_scores(model, output, sep):
    """Mean log-probability of the generated tokens, [SEP] included, as the original reports it."""
    steps = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    generated = output.sequences[:, 1:]
    before_end = (generated == sep).cumsum(dim=1) - (generated == sep).long() == 0
    return (steps * before_end).sum(dim=1) / before_end.sum(dim=1)
