import pytest
import torch
from conftest import tiny_captioner, tiny_config
from torch.nn import functional as F

from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarModel
from modeling_mengzi_oscar.modeling_mengzi_oscar import smoothed_token_loss

TEXT, REGIONS = 7, 4


def inputs():
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(2, TEXT, dtype=torch.long)
    mask[1, 5:] = 0
    return {
        "input_ids": torch.randint(5, 30, (2, TEXT), generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.tensor([[0, 0, 0, 0, 1, 1, 1]] * 2),
        "region_features": torch.randn(2, REGIONS, 22, generator=generator),
        "region_attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }


@pytest.mark.parametrize("model_class", [MengziOscarModel, MengziOscarForImageCaptioning])
def test_sdpa_equals_eager_and_saving_keeps_every_bit(model_class, tmp_path):
    model = model_class(tiny_config(tie_weights=True)).eval()
    model.save_pretrained(tmp_path)
    outputs = []
    for attention in ("sdpa", "eager"):
        loaded = model_class.from_pretrained(tmp_path, attn_implementation=attention).eval()
        for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name
        outputs.append(loaded(**inputs())[0])
    mask = torch.cat([inputs()["attention_mask"], inputs()["region_attention_mask"]], dim=1).bool()
    mask = mask[:, : outputs[0].shape[1]]
    torch.testing.assert_close(outputs[0][mask], outputs[1][mask], atol=1e-4, rtol=1e-4)


def test_joint_mask_equals_two_masks():
    model, batch = MengziOscarModel(tiny_config()).eval(), inputs()
    joint = batch | {"attention_mask": torch.cat([batch["attention_mask"], batch["region_attention_mask"]], dim=1)}
    joint.pop("region_attention_mask")
    per_query = joint | {"attention_mask": joint["attention_mask"][:, None].expand(-1, TEXT + REGIONS, -1)}
    expected = model(**batch).last_hidden_state
    for form in (joint, per_query):
        torch.testing.assert_close(model(**form).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="attention_mask has 9 slots; 7 text slots and 4 regions need 7 or 11"):
        model(**batch | {"attention_mask": torch.ones(2, 9)})


def test_padding_regions_and_padding_text_change_nothing():
    model, batch = tiny_captioner(), inputs()
    together = model(**batch).logits[1, :5]
    alone = {name: tensor[1:2] for name, tensor in batch.items()}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        alone[name] = alone[name][:, :5]
    for name in ("region_features", "region_attention_mask"):
        alone[name] = alone[name][:, :2]
    torch.testing.assert_close(model(**alone).logits[0], together, atol=1e-4, rtol=1e-4)


def test_caption_attention():
    """The caption sees its past, tags and regions; tags and regions do not see the caption."""
    model, batch = tiny_captioner(), inputs()

    def states(**changes):
        output = model(**batch | changes, output_hidden_states=True)
        return output.hidden_states[-1][0]

    before = states()
    other = batch["input_ids"].clone()
    other[0, 2] = 31  # a token in the middle of the caption
    changed = (states(input_ids=other) - before).abs().amax(dim=-1) > 1e-6
    assert changed.tolist() == [False, False, True, True] + [False] * 7
    other = batch["region_features"].clone()
    other[0, 0] += 1
    assert ((states(region_features=other) - before).abs().amax(dim=-1) > 1e-6).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
def test_smoothed_loss_is_the_divergence_from_the_smoothed_target(label_smoothing):
    logits, targets = torch.randn(6, 9, dtype=torch.float64), torch.tensor([0, 1, 8, 3, 3, 5])
    target = torch.full((6, 9), label_smoothing / 8, dtype=torch.float64)
    target[torch.arange(6), targets] = 1 - label_smoothing
    expected = F.kl_div(logits.log_softmax(-1), target, reduction="none").sum(dim=-1)
    torch.testing.assert_close(smoothed_token_loss(logits, targets, label_smoothing), expected, atol=1e-6, rtol=0)


def test_worst_tokens_are_dropped_after_some_calls():
    model = tiny_captioner(drop_worst_ratio=0.4, drop_worst_after=2)
    logits, targets = torch.randn(5, 9), torch.arange(5)
    losses = F.cross_entropy(logits, targets, reduction="none")
    with torch.no_grad():
        assert model.caption_loss(logits, targets).item() == pytest.approx(losses.mean().item())
    assert model.loss_calls == 0  # evaluation does not count
    expected = [losses.mean(), losses.mean(), losses.sort().values[:3].mean()]
    for value in expected:
        assert model.caption_loss(logits, targets).item() == pytest.approx(value.item())


def test_no_label_gives_a_loss_of_zero():
    labels = torch.full((2, TEXT), -100)
    loss = tiny_captioner()(**inputs(), labels=labels).loss
    loss.backward()
    assert loss.item() == 0


def test_ties_and_frozen_embedding(tmp_path):
    tied = tiny_captioner(tie_weights=True, freeze_embedding=True)
    tied.save_pretrained(tmp_path)
    for model in (tied, MengziOscarForImageCaptioning.from_pretrained(tmp_path)):
        embedding = model.get_input_embeddings().weight
        assert model.get_output_embeddings().weight is embedding
        assert not embedding.requires_grad
    assert tiny_captioner().get_output_embeddings().weight.requires_grad


def test_an_empty_row_of_a_mask_stays_finite():
    model, batch = tiny_captioner(), inputs()
    batch["attention_mask"] = torch.zeros(2, TEXT + REGIONS, TEXT + REGIONS, dtype=torch.long)
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        assert model(**batch).logits.isfinite().all()
