"""Region model and captioner trained as one, from pixels."""

import re

import torch

from modeling_mengzi_oscar.modeling_mengzi_oscar import MengziOscarPreTrainedModel


def with_region_model(captioner, region_model, options, training):
    """Both as one model, which works from pixels.

    Raises:
        SystemExit: the checkpoint has no region model, or one or an objective that needs stored features.
    """
    if region_model is None:
        raise SystemExit(f"{options.model_name_or_path} names no region model: --features must name region features")
    if options.objective != "dense" and not training.do_predict:
        raise SystemExit(f"--objective {options.objective} works on stored features: --features is missing")
    if not hasattr(region_model.config, "grid_size") and not training.do_predict:
        raise SystemExit(
            f"{options.model_name_or_path} has a detector for its region model: train on its features, made once by "
            "mengzi-oscar extract PHOTOS --model MODEL --output STORE: --features is missing"
        )
    return CaptionerFromPixels(captioner, region_model, options.tune_region_model or "^$")


class CaptionerFromPixels(MengziOscarPreTrainedModel):
    """Region model and captioner as one, to train both; the region model stays in eval mode (fixed BN statistics)."""

    _tied_weights_keys = {
        "captioner.cls.predictions.decoder.weight": "captioner.bert.embeddings.word_embeddings.weight"
    }

    def __init__(self, captioner, region_model, trainable):
        super().__init__(captioner.config)
        self.captioner, self.region_model = captioner, region_model
        embedding, decoder = captioner.get_input_embeddings(), captioner.get_output_embeddings()
        if decoder.weight is not embedding.weight:  # as the checkpoint has them: post_init would tie them
            self._tied_weights_keys = {}
        # Words that a tag head learns; a region model whose tags are its backbone's own classes has nothing to learn.
        self.tag_labels = region_model.config.tag_labels if hasattr(region_model, "tag_classifier") else ()
        grid_size = getattr(region_model.config, "grid_size", None)
        self.num_regions = grid_size and grid_size**2  # None: a detector finds as many as there are
        for name, parameter in region_model.named_parameters():
            parameter.requires_grad_(re.search(trainable, name) is not None)
        self.post_init()

    def _init_weights(self, module):
        pass  # both parts come trained

    def train(self, mode=True):
        super().train(mode)
        self.region_model.eval()
        return self

    def forward(self, pixel_values, original_sizes, tag_labels, **inputs):
        regions = self.region_model(pixel_values, original_sizes)
        output = self.captioner(region_features=regions.region_features, **inputs)
        if not self.tag_labels:
            return {"loss": output.loss}
        tag_logits = self.region_model.tag_logits(regions.region_features)
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
