"""Region model and captioner trained as one, from pixels."""

import re

import torch

from modeling_mengzi_oscar.modeling_mengzi_oscar import MengziOscarPreTrainedModel


class CaptionerFromPixels(MengziOscarPreTrainedModel):
    """Region model and captioner as one, to train both; the region model stays in eval mode (fixed BN statistics)."""

    _tied_weights_keys = {
        "captioner.cls.predictions.decoder.weight": "captioner.bert.embeddings.word_embeddings.weight"
    }

    def __init__(self, captioner, region_model, trainable):
        super().__init__(captioner.config)
        self.captioner, self.region_model = captioner, region_model
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
