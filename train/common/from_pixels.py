"""Region model and captioner trained as one, from pixels."""

import re

import torch

from modeling_mengzi_oscar.modeling_grid_regions import GridRegionModel
from modeling_mengzi_oscar.modeling_mengzi_oscar import MengziOscarPreTrainedModel

from .collators import PIXELS
from .report import say


def with_region_model(captioner, processor, region_model, options, training):
    """Both as one model, which works from pixels.

    Raises:
        SystemExit: the checkpoint has no region model, or one or an objective that needs stored features; or nothing
            that --tune_region_model names can learn.
    """
    if region_model is None:
        raise SystemExit(f"{options.model_name_or_path} names no region model: --features must name region features")
    if options.objective != "dense" and not training.do_predict:
        raise SystemExit(f"--objective {options.objective} works on stored features: --features is missing")
    if not isinstance(grid_of(region_model), GridRegionModel) and not training.do_predict:
        raise SystemExit(
            f"{options.model_name_or_path} has a detector alone for its region model: train on its features, made once "
            "by mengzi-oscar extract PHOTOS --model MODEL --output STORE: --features is missing"
        )
    model = CaptionerFromPixels(captioner, processor, region_model, options.tune_region_model or "^$")
    if options.tune_region_model and not training.do_predict:
        tuned = region_model.num_parameters(only_trainable=True)
        if not tuned:
            raise SystemExit(
                f"--tune_region_model {options.tune_region_model}: no parameter of that name can learn; name later "
                "stages of the backbone (docs/recipes.md)"
            )
        say(f"of the region model's {region_model.num_parameters():,} parameters {tuned:,} learn")
    return model


def grid_of(region_model):
    """The part of a region model that learns: of one with objects beside a grid its grid."""
    return getattr(region_model, "grid", region_model)


def can_learn(region_model) -> set[str]:
    """Names of the parameters that the captioner's loss may change.

    Not the detector: no loss reaches its boxes. Nor what names classes, the branch and the stages that it shares with
    the regions: tuned they forget (`ClassBranch`), and the tags would become wrong.
    """
    grid, fixed = grid_of(region_model), []
    if hasattr(region_model, "detector"):
        fixed.append(region_model.detector)
    if hasattr(grid, "tag_branch"):
        net = grid.backbone
        fixed += [grid.tag_branch, net.conv_stem, net.bn1, net.blocks[: grid.config.tag_stage]]
    fixed = {id(parameter) for part in fixed for parameter in part.parameters()}
    return {name for name, parameter in region_model.named_parameters() if id(parameter) not in fixed}


class CaptionerFromPixels(MengziOscarPreTrainedModel):
    """Region model and captioner as one, to train both; the region model stays in eval mode (fixed BN statistics).

    Args:
        processor: of the captioner; which tags it reads follows `max_tags`, how many regions `max_regions`.
        trainable: regular expression, finds the parameters of the region model that learn, of those that can.
    """

    _tied_weights_keys = {
        "captioner.cls.predictions.decoder.weight": "captioner.bert.embeddings.word_embeddings.weight"
    }

    def __init__(self, captioner, processor, region_model, trainable):
        super().__init__(captioner.config)
        self.captioner, self.processor, self.region_model = captioner, processor, region_model
        embedding, decoder = captioner.get_input_embeddings(), captioner.get_output_embeddings()
        if decoder.weight is not embedding.weight:  # as the checkpoint has them: post_init would tie them
            self._tied_weights_keys = {}
        # Words that a tag head learns; a region model whose tags are its backbone's own classes has nothing to learn.
        grid = grid_of(region_model)
        self.tag_labels = grid.config.tag_labels if hasattr(grid, "tag_classifier") else ()
        learnable = can_learn(region_model)
        for name, parameter in region_model.named_parameters():
            parameter.requires_grad_(name in learnable and re.search(trainable, name) is not None)
        self.post_init()

    def _init_weights(self, module):
        pass  # both parts come trained

    def train(self, mode=True):
        super().train(mode)
        self.region_model.eval()
        return self

    def forward(self, tag_labels, tags_dropped, labels, attention_mask, input_ids, **inputs):
        """`DenseCaptionCollator`'s batch from pixels: the sentences alone, with `attention_mask` (B, T, T)."""
        pixels = {name: inputs.pop(name) for name in PIXELS if name in inputs}
        regions = self.region_model(**pixels)
        features = regions.region_features[:, : self.processor.max_regions]
        region_mask = regions.region_attention_mask[:, : self.processor.max_regions]
        found = zip(self.region_model.tags(regions), tags_dropped.tolist(), strict=True)
        tags = self.processor(tags=[[] if dropped else words for words, dropped in found]).to(input_ids.device)
        tag_ids, tag_mask = tags["tag_input_ids"], tags["tag_attention_mask"]
        first = self.processor.tag_position_offset
        places = torch.arange(first, first + tag_ids.shape[1], device=tag_ids.device).expand_as(tag_ids)
        output = self.captioner(
            input_ids=torch.cat([input_ids, tag_ids], dim=1),
            token_type_ids=torch.cat([inputs["token_type_ids"], tag_mask], dim=1),
            position_ids=torch.cat([inputs["position_ids"], places * tag_mask], dim=1),
            labels=torch.cat([labels, torch.full_like(tag_ids, -100)], dim=1),
            attention_mask=with_context(attention_mask, torch.cat([tag_mask, region_mask], dim=1)),
            region_features=features,
        )
        if not self.tag_labels:
            return {"loss": output.loss}
        grid, cells = grid_of(self.region_model), regions.region_attention_mask.bool()
        if grid is not self.region_model:
            cells &= regions.class_ids == 0  # not the objects
        tag_logits = grid.tag_logits(regions.region_features[cells].unflatten(0, (len(cells), -1)))
        tag_loss = torch.nn.functional.binary_cross_entropy_with_logits(tag_logits.float(), tag_labels)
        return {"loss": output.loss + tag_loss}

    def optimizer(self, training, rate):
        """AdamW: no decay for biases and LayerNorms, `rate` is the learning rate of the region model."""
        groups = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                own = rate if "region_model." in name else training.learning_rate
                decay = 0.0 if parameter.dim() < 2 else training.weight_decay
                groups.setdefault((own, decay), []).append(parameter)
        groups = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
        return torch.optim.AdamW(groups, betas=(training.adam_beta1, training.adam_beta2), fused=True)


def with_context(attention_mask, context) -> torch.BoolTensor:
    """Who sees whom of sentences (B, T, T), then also of tags and regions behind them, (B, C) with 1 = there is one.

    Everybody sees those, and they see no sentence, as in `pack_captions`.
    """
    length, more = attention_mask.shape[1], context.shape[1]
    seen = torch.nn.functional.pad(context.bool(), (length, 0))
    itself = torch.eye(length + more, dtype=torch.bool, device=context.device)
    return torch.nn.functional.pad(attention_mask, (0, more, 0, more)) | seen[:, None, :] | itself
