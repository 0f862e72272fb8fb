"""Numbers of the original Oscar code, reproduced by our models from the original folders.

Calls with `head_mask` or `encoder_history_states` have no counterpart in our API; of the decoding calls those with
constrained beam search are out of scope. Both are skipped by name, so that they show in the list of tests.
"""

import json

import pytest
import torch
from conftest import shared_path
from goldens import caption_labels, load_case, load_original, our_arguments, pretraining_labels

from modeling_mengzi_oscar import (
    MengziOscarConfig,
    MengziOscarForImageCaptioning,
    MengziOscarForImageTextRetrieval,
    MengziOscarForPreTraining,
    MengziOscarForVisualQuestionAnswering,
    MengziOscarForVisualReasoning,
    MengziOscarModel,
)

ENCODER_CALLS = {
    "bert_img_ln": [
        *("mask2d", "mask3d", "text_only", "ids_only_defaults", "position_ids"),
        *("head_mask_1d", "head_mask_2d", "history_step"),
    ],
    "bert_img_ln_bigeps": ["mask2d"],
    "bert_img_noln": ["mask2d"],
    "bert_img_2054": ["mask2d"],
}
LOSS_CASES = ["caption_loss_ls_drop_tied", "caption_loss_plain_untied"]
PRETRAINING_CASES = ["pretrain_c3_ln", "pretrain_c2_noln"]
CLASSIFIERS = {
    "vqa_bce_mlp": MengziOscarForVisualQuestionAnswering,
    "vqa_bce_linear": MengziOscarForVisualQuestionAnswering,
    "vqa_kl_3129": MengziOscarForVisualQuestionAnswering,
    "gqa_xe_linear": MengziOscarForVisualQuestionAnswering,
    "retrieval_2way": MengziOscarForImageTextRetrieval,
    "retrieval_regression": MengziOscarForImageTextRetrieval,
    "nlvr2_mlp_ln_xe": MengziOscarForVisualReasoning,
    "nlvr2_mlp_noln_bce": MengziOscarForVisualReasoning,
    "nlvr2_linear_xe": MengziOscarForVisualReasoning,
}
DECODE_CASES = ["caption_decode_od", "caption_decode_no_od"]
PLAIN_CALLS = ["A_greedy", "A_beam2", "A_beam5", "B_greedy", "B_beam2", "B_beam5"]
OTHER_CALLS = [
    *("A_beam5_keep3", "A_beam5_lp06", "A_greedy_rep2", "A_greedy_numret2", "B_beam5_keep3_lp06", "A_sample_seed4321"),
    *("A_beam2_keep3_lp06", "A_beam3_rep15"),
]
NOT_THE_SAME_SEARCH = {  # oscar_facts, trap 12
    "A_beam2_keep3_lp06": "keeps more captions than beams, which transformers cannot express",
    "A_beam3_rep15": "repetition penalty with beams acts after the log-softmax in transformers",
}
MANIFESTS = {
    "BertImgModel": (MengziOscarModel, {}),
    "BertImgForPreTraining": (MengziOscarForPreTraining, {"num_contrast_classes": 3}),
    "BertForImageCaptioning": (MengziOscarForImageCaptioning, {}),
    "ImageBertForSequenceClassification": (MengziOscarForImageTextRetrieval, {}),
    "ImageBertForSequenceClassification_vqa_linear": (MengziOscarForVisualQuestionAnswering, {"num_labels": 3129}),
    "ImageBertForSequenceClassification_vqa_mlp": (
        MengziOscarForVisualQuestionAnswering,
        {"num_labels": 3129, "classifier": "mlp", "cls_hidden_scale": 3},
    ),
    "ImageBertForSequenceClassification_gqa_linear": (MengziOscarForVisualQuestionAnswering, {"num_labels": 1853}),
    "ImageBertForMultipleChoice": (MengziOscarForVisualReasoning, {"classifier": "mlp", "cls_hidden_scale": 3}),
}


def close(ours, theirs, atol=1e-4):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "call_name"), [(n, c) for n, calls in ENCODER_CALLS.items() for c in calls])
def test_encoder(name, call_name, attention):
    folder, calls = load_case(name)
    call = calls[call_name]
    if no_counterpart := {"head_mask", "encoder_history_states"} & call["inputs"].keys():
        pytest.skip(f"{no_counterpart.pop()} has no counterpart in our API")
    model = load_original(MengziOscarModel, folder, attention)
    with torch.no_grad():
        options = {"output_hidden_states": True, "output_attentions": attention == "eager"}
        output = model(**our_arguments(call["inputs"]), **options)
    golden, valid = call["golden"], call["golden"]["valid_rows"].bool()
    close(output.last_hidden_state[valid], golden["sequence_output"][valid])
    close(output.pooler_output, golden["pooled_output"])
    if "hidden_states" in golden:
        close(torch.stack(output.hidden_states)[:, valid], golden["hidden_states"][:, valid])
    if "attentions" in golden and attention == "eager":
        ours, theirs = torch.stack(output.attentions).transpose(2, 3), golden["attentions"].transpose(2, 3)
        close(ours[:, valid], theirs[:, valid])


def gradients_of(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_gradients(model, golden, prefix, total_norm=None):
    gradients = gradients_of(model)
    if total_norm is not None:
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
        assert norm == pytest.approx(total_norm, rel=1e-4)
    for key, expected in golden.items():
        if key.startswith(prefix):
            ours = gradients[key.removeprefix(prefix).replace("__", ".")]
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", LOSS_CASES)
def test_caption_loss(name, attention):
    folder, calls = load_case(name)
    model = load_original(MengziOscarForImageCaptioning, folder, attention)
    for call in calls.values():  # in order: the loss counts its calls
        inputs, golden = call["inputs"], call["golden"]
        if not call["scalar_inputs"]["is_training"]:
            valid = golden["valid_rows"].bool()
            close(model(**our_arguments(inputs)).logits[valid], golden["class_logits"][valid])
            continue
        model.zero_grad()
        output = model(**our_arguments(inputs), labels=caption_labels(inputs))
        output.loss.backward()
        close(output.logits, golden["class_logits"])
        assert output.loss.item() == pytest.approx(call["expect"]["loss"], abs=2e-5)
        assert not set(call.get("params_without_grad", [])) & gradients_of(model).keys()
        check_gradients(model, golden, "grad__", call["expect"]["total_grad_norm"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PRETRAINING_CASES)
def test_pretraining(name, attention):
    folder, calls = load_case(name)
    model = load_original(MengziOscarForPreTraining, folder, attention)
    call = calls["with_labels"]
    inputs, golden, expect = call["inputs"], call["golden"], call["expect"]
    labels, valid = pretraining_labels(inputs), golden["valid_rows"].bool()
    output = model(**our_arguments(inputs), **labels)
    close(output.prediction_logits[valid], golden["prediction_scores"][valid])
    close(output.seq_relationship_logits, golden["seq_relationship_score"])
    assert output.loss.item() == pytest.approx(expect["loss"], abs=2e-5)
    only_masked = model(**our_arguments(inputs), labels=labels["labels"]).loss
    assert only_masked.item() == pytest.approx(expect["masked_lm_loss"], abs=2e-5)
    only_contrast = model(**our_arguments(inputs), next_sentence_label=labels["next_sentence_label"]).loss
    assert only_contrast.item() == pytest.approx(expect["next_sentence_loss"], abs=2e-5)

    without = calls["no_labels"]
    output = model(**our_arguments(without["inputs"]))
    assert output.loss is None
    close(output.seq_relationship_logits, without["golden"]["seq_relationship_score"])

    call = calls["gradients"]
    model.train()  # the fast road: masked rows only
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model(**our_arguments(call["inputs"]), **pretraining_labels(call["inputs"])).loss.backward()
    check_gradients(model, call["golden"], "", call["expect"]["total_grad_norm"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name, attention):
    folder, calls = load_case(name)
    model = load_original(CLASSIFIERS[name], folder, attention)
    [call] = calls.values()
    inputs, golden, expect = call["inputs"], call["golden"], call["expect"]
    output = model(**our_arguments(inputs), labels=inputs["labels"])
    output.loss.backward()
    close(output.logits, golden["logits"])
    assert output.loss.item() == pytest.approx(expect["loss"], abs=2e-5)
    check_gradients(model, golden, "grad__", expect.get("total_grad_norm"))
    if "match_probability" in golden:
        close(model.score(our_arguments(inputs), batch_size=3), golden["match_probability"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_keys(name):
    """Key for key, shape for shape, both ways, at the size of the released models."""
    expected = json.loads(shared_path(f"parity/oscar/keys_{name}.json").read_text())
    model_class, settings = MANIFESTS[name]
    with torch.device("meta"):
        model = model_class(MengziOscarConfig(use_img_layernorm=1, **settings))
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == expected


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


def decode(model, call, inputs, **options):
    original, beams = call["scalar_inputs"], call["scalar_inputs"]["num_beams"]
    returned = 1  # transformers returns one caption of a greedy search
    if beams > 1:
        options |= {"length_penalty": original["length_penalty"]}
        returned = original["num_keep_best"]
    if original["do_sample"]:
        returned = original["num_return_sequences"]
        options |= {key: original[key] for key in ("do_sample", "temperature", "top_k", "top_p")}
    return model.generate(
        **inputs,
        num_beams=beams,
        max_length=original["max_length"],
        num_return_sequences=returned,
        repetition_penalty=float(original["repetition_penalty"]),
        bos_token_id=original["bos_token_id"],
        eos_token_id=original["eos_token_ids"],
        pad_token_id=original["pad_token_id"],
        mask_token_id=original["mask_token_id"],
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def compare(model, call, output, ranks_compared):
    """Ids equal for every caption that ends, up to its last token where the limit cut it; scores where it ends."""
    options, [sep] = call["scalar_inputs"], call["scalar_inputs"]["eos_token_ids"]
    beams = options["num_beams"]
    repeats = options["num_return_sequences"]  # greedy: the original returns the same caption several times
    golden, scores = call["golden"]["decoded"][::repeats], call["golden"]["logprobs"][::repeats]
    our_scores = output.sequences_scores if beams > 1 else mean_log_probs(model, output, sep)
    images = golden.shape[0]
    for row, (ours, score) in enumerate(
        zip(output.sequences.unflatten(0, (images, -1)), our_scores.unflatten(0, (images, -1)), strict=True)
    ):
        for rank in range(ranks_compared):
            ids, expected = until(ours[rank].tolist(), sep), until(golden[row, rank].tolist(), sep)
            if len(expected) == options["max_length"]:
                assert ids[: len(expected) - 1] == expected[:-1]
            else:
                assert ids == expected
                assert score[rank].item() == pytest.approx(scores[row, rank].item(), abs=2e-5)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "recompute"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("call_name", PLAIN_CALLS)
@pytest.mark.parametrize("name", DECODE_CASES)
def test_decoding(name, call_name, attention, use_cache):
    folder, calls = load_case(name)
    model = load_original(MengziOscarForImageCaptioning, folder, attention)
    call = calls[call_name]
    output = decode(model, call, decode_inputs(calls[call["inputs_from"]]), use_cache=use_cache)
    compare(model, call, output, ranks_compared=1)


@pytest.mark.parametrize("call_name", OTHER_CALLS)
@pytest.mark.parametrize("name", DECODE_CASES)
def test_decoding_options(name, call_name):
    """Several captions, length penalty, repetition penalty, repeats, sampling."""
    if reason := NOT_THE_SAME_SEARCH.get(call_name):
        pytest.skip(reason)
    folder, calls = load_case(name)
    model = load_original(MengziOscarForImageCaptioning, folder)
    call = calls[call_name]
    inputs = decode_inputs(calls[call["inputs_from"]])
    options = call["scalar_inputs"]
    if options["do_sample"]:
        torch.manual_seed(4321)
    output = decode(model, call, inputs)
    if options["do_sample"]:
        [sep] = options["eos_token_ids"]
        golden = [until(ids, sep) for ids in call["golden"]["decoded"].flatten(0, 1).tolist()]
        ours = [until(ids, sep) for ids in output.sequences.tolist()]
        ended = [len(ids) < options["max_length"] for ids in golden]
        assert [a for a, keep in zip(ours, ended, strict=True) if keep] == [
            b for b, keep in zip(golden, ended, strict=True) if keep
        ]
        return
    ranks = options["num_keep_best"]
    if (name, call_name) == ("caption_decode_od", "B_beam5_keep3_lp06"):
        ranks = 2  # its third-best hypothesis differs (oscar_facts, trap 12)
    compare(model, call, output, ranks)


@pytest.mark.parametrize("call_name", ["k3", "p06", "k5p08", "p01", "off"])
def test_top_k_and_top_p(call_name):
    """transformers' own filters remove what the original's filter removes.

    Not so with a least number of tokens to keep (`p02_keep2`): the original keeps one more. Only its beam sampling,
    which mixes up the beams, asks for that.
    """
    from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

    _, calls = load_case("top_k_top_p")
    call = calls[call_name]
    options, filters = call["scalar_inputs"], LogitsProcessorList()
    if options["top_k"] > 0:
        filters.append(TopKLogitsWarper(options["top_k"]))
    if options["top_p"] < 1:
        filters.append(TopPLogitsWarper(options["top_p"]))
    close(filters(None, call["inputs"]["logits"]), call["golden"]["filtered"])


def until(ids, sep):
    return ids[: ids.index(sep) + 1] if sep in ids else ids


def mean_log_probs(model, output, sep):
    """Mean log-probability of the generated tokens, [SEP] included, as the original reports it."""
    steps = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    generated = output.sequences[:, 1:]
    before_end = (generated == sep).cumsum(dim=1) - (generated == sep).long() == 0
    return (steps * before_end).sum(dim=1) / before_end.sum(dim=1)
