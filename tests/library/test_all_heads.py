"""What transformers expects of a model, checked for every head on tiny random weights."""

import importlib.util

import pytest
import torch
from conftest import tiny_config
from packaging.version import Version
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForVisualQuestionAnswering,
)

from modeling_mengzi_oscar import (
    MengziOscarForImageCaptioning,
    MengziOscarForImageTextRetrieval,
    MengziOscarForPreTraining,
    MengziOscarForVisualQuestionAnswering,
    MengziOscarForVisualReasoning,
    MengziOscarModel,
)

BATCH, TEXT, REGIONS, WIDTH = 3, 7, 4, 22
HEADS = {
    MengziOscarModel: {},
    MengziOscarForPreTraining: {"num_contrast_classes": 3},
    MengziOscarForImageCaptioning: {"tie_weights": True, "label_smoothing": 0.1},
    MengziOscarForImageTextRetrieval: {},
    MengziOscarForVisualQuestionAnswering: {"num_labels": 5, "classifier": "mlp", "loss_type": "bce"},
    MengziOscarForVisualReasoning: {"classifier": "mlp"},
}
LANGUAGE_MODELS = [MengziOscarForPreTraining, MengziOscarForImageCaptioning]
every_head = pytest.mark.parametrize("model_class", HEADS, ids=lambda c: c.__name__)


def build(model_class, **changes):
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **HEADS[model_class] | changes)
    return model_class(config).eval()


def inputs(model_class, labels=False):
    generator = torch.Generator().manual_seed(1)
    images = (BATCH, 2) if model_class is MengziOscarForVisualReasoning else (BATCH,)
    mask = torch.ones(*images, TEXT, dtype=torch.long)
    mask[1, ..., 5:] = 0
    region_mask = torch.ones(*images, REGIONS, dtype=torch.long)
    region_mask[2, ..., 1:] = 0
    ids = torch.randint(5, 30, (*images, TEXT), generator=generator)
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.tensor([0, 0, 0, 0, 1, 1, 1]).expand_as(ids),
        "region_features": torch.randn(*images, REGIONS, WIDTH, generator=generator),
        "region_attention_mask": region_mask,
    }
    if labels and model_class is MengziOscarForVisualQuestionAnswering:
        batch["labels"] = torch.rand(BATCH, 5, generator=generator)
    elif labels and model_class in LANGUAGE_MODELS:
        batch["labels"] = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.6, -100)
        if model_class is MengziOscarForPreTraining:
            batch["next_sentence_label"] = torch.tensor([0, 2, 1])
    elif labels and model_class is not MengziOscarModel:
        batch["labels"] = torch.tensor([0, 1, 1])
    return batch


def first(output):
    """The main tensor of any head's output, on the text slots that are not padding."""
    tensor = next(output[name] for name in ("last_hidden_state", "prediction_logits", "logits") if name in output)
    if tensor.dim() < 3:
        return tensor
    return tensor[:, :TEXT][inputs(MengziOscarModel)["attention_mask"].bool()]


@every_head
def test_saving_keeps_every_bit(model_class, tmp_path):
    model = build(model_class)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    loaded_state = loaded.state_dict()
    assert loaded_state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded_state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(first(loaded.eval()(**inputs(model_class))), first(model(**inputs(model_class))))
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()


@every_head
def test_sdpa_equals_eager(model_class):
    model = build(model_class)
    outputs = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        outputs.append(first(model(**inputs(model_class))))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


@every_head
def test_hidden_states_and_attentions(model_class):
    model = build(model_class)
    model.set_attn_implementation("eager")
    output = model(**inputs(model_class), output_hidden_states=True, output_attentions=True)
    rows, slots = BATCH * (2 if model_class is MengziOscarForVisualReasoning else 1), TEXT + REGIONS
    assert [state.shape for state in output.hidden_states] == [(rows, slots, 32)] * 3
    assert [weights.shape for weights in output.attentions] == [(rows, 4, slots, slots)] * 2
    valid = inputs(model_class)["region_attention_mask"].reshape(rows, -1).bool()
    to_regions = output.attentions[0][:, :, 0, TEXT:].amax(dim=1)
    assert to_regions[~valid].max() == 0  # padding regions get no attention
    assert model(**inputs(model_class)).hidden_states is None


@every_head
def test_tuples(model_class):
    model = build(model_class)
    output, plain = model(**inputs(model_class)), model(**inputs(model_class), return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], output[0])


@every_head
def test_gradient_checkpointing(model_class):
    if model_class is MengziOscarModel:
        pytest.skip("has no loss of its own")
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build(model_class).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**inputs(model_class, labels=True)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert "bert.img_embedding.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision(model_class, dtype):
    model = build(model_class, initializer_range=0.1)
    expected = first(model(**inputs(model_class)))
    output = first(model.to(dtype)(**inputs(model_class)))
    assert output.dtype == dtype
    assert torch.nn.functional.cosine_similarity(output.float().flatten(), expected.flatten(), dim=0) > 0.995


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"),
    reason="the compiler of torch 2.6 stops in transformers's decorators",
)
@every_head
@pytest.mark.parametrize("labels", [False, True], ids=["inference", "loss"])
def test_compiles_without_graph_breaks(model_class, labels):
    if labels and model_class in LANGUAGE_MODELS:
        pytest.skip("the number of labelled rows is known to the data only: a graph break by design")
    model = build(model_class)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        first(compiled(**inputs(model_class, labels))),
        first(model(**inputs(model_class, labels))),
        atol=1e-5,
        rtol=1e-4,
    )


@every_head
def test_device_map(model_class, tmp_path):
    pytest.importorskip("accelerate")
    model = build(model_class)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, device_map="auto").eval()
    output = first(loaded(**inputs(model_class))).cpu()
    torch.testing.assert_close(output, first(model(**inputs(model_class))), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("change", [5, -3])
def test_resizing_the_vocabulary(model_class, change, tmp_path):
    model = build(model_class)
    before = first(model(**inputs(model_class)))
    size = model.config.vocab_size + change
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    batch = inputs(model_class)
    batch["input_ids"] = batch["input_ids"].clamp(max=size - 1)
    after = first(model(**batch))
    assert after.shape[-1] == size
    if change > 0:
        torch.testing.assert_close(after[..., : before.shape[-1]], before, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(first(model_class.from_pretrained(tmp_path).eval()(**batch)), after)


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS, ids=lambda c: c.__name__)
def test_tied_weights_are_one_tensor_in_the_file(model_class, tmp_path):
    from safetensors.torch import load_file

    model = build(model_class)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert len({"cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"} & stored.keys()) == 1


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, MengziOscarModel),
        (AutoModelForPreTraining, MengziOscarForPreTraining),
        (AutoModelForImageTextToText, MengziOscarForImageCaptioning),
        (AutoModelForSequenceClassification, MengziOscarForImageTextRetrieval),
        (AutoModelForVisualQuestionAnswering, MengziOscarForVisualQuestionAnswering),
        (AutoModelForMultipleChoice, MengziOscarForVisualReasoning),
    ],
    ids=lambda c: c.__name__,
)
def test_auto_classes_know_ours(auto_class, model_class, tmp_path):
    """Where the package is installed, without code from the folder."""
    build(model_class).save_pretrained(tmp_path)
    assert type(auto_class.from_pretrained(tmp_path)) is model_class


@every_head
def test_text_alone(model_class):
    batch = {name: tensor for name, tensor in inputs(model_class).items() if "region" not in name}
    assert first(build(model_class)(**batch)).isfinite().all()


@every_head
def test_errors_name_what_is_wrong(model_class):
    model, batch = build(model_class), inputs(model_class)
    with pytest.raises(ValueError, match="21 wide, this model was trained on 22"):
        model(**batch | {"region_features": batch["region_features"][..., :21]})
    with pytest.raises(ValueError, match="the vocabulary has 39 tokens"):
        model(**batch | {"input_ids": batch["input_ids"] + 1000})
    all_masked = batch | {"region_attention_mask": torch.zeros_like(batch["region_attention_mask"])}
    assert first(model(**all_masked)).isfinite().all()


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed")
def test_flash_attention():
    model = build(MengziOscarForImageTextRetrieval).cuda().half()
    batch = {name: tensor.cuda() for name, tensor in inputs(MengziOscarForImageTextRetrieval).items()}
    expected = model(**batch).logits
    model.set_attn_implementation("flash_attention_2")
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-2, rtol=1e-2)
