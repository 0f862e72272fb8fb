"""Configuration of Mengzi-Oscar: BERT's fields, the fields of Oscar's released config.json, and four of our own.

The Oscar fields keep their original names and their defaults when absent, so an original config.json reads as it is.
"""

from transformers import AutoConfig
from transformers.models.bert.configuration_bert import BertConfig


class MengziOscarConfig(BertConfig):
    """Sizes and training options of a Mengzi-Oscar checkpoint.

    Args:
        img_feature_dim: length of a region feature row: appearance + 6 numbers of box geometry (VinVL: 2,054).
        img_feature_type: free text of the original; every value means "float rows through one Linear" here.
        use_img_layernorm: LayerNorm after that Linear. Off when absent: it must survive from checkpoint to checkpoint.
        img_layer_norm_eps: epsilon of that LayerNorm, separate from BERT's.
        num_contrast_classes: image-text contrast of pre-training, 2 or 3 ways.
        loss_type: "bce", "kl" or anything else for cross entropy, in the classifying heads.
        classifier: "linear" or "mlp" (hidden size x `cls_hidden_scale`) in the classifying heads.
        num_choice: images per question in visual reasoning.
        tie_weights: captioning: the decoder is the word embedding (the pre-training head always ties).
        freeze_embedding: captioning: the word embedding is not trained.
        label_smoothing, drop_worst_ratio, drop_worst_after: captioning loss, see `caption_loss`.
        tag_position_offset: position of the first tag in captioning (the `max_seq_a_length` of the training).
        mask_token_id: the id that asks for a word.
        region_model: Hub id with revision or subfolder of the region model this checkpoint was trained with.
        regions_read_text: retrieval and question answering: regions attend to the text, as published. False: they
            attend to one another only, so that their states serve every text of an image (matching.py).
    """

    model_type = "mengzi_oscar"

    vocab_size: int = 21128
    bos_token_id: int | None = 101
    eos_token_id: int | list[int] | None = 102
    mask_token_id: int = 103
    img_feature_dim: int = 2054
    img_feature_type: str = "frcnn"
    use_img_layernorm: bool | int | None = False
    img_layer_norm_eps: float = 1e-12
    num_contrast_classes: int = 2
    loss_type: str = "sfmx"
    classifier: str = "linear"
    cls_hidden_scale: int = 2
    num_choice: int = 2
    tie_weights: bool = False
    freeze_embedding: bool = False
    label_smoothing: float | int = 0.0
    drop_worst_ratio: float | int = 0.0
    drop_worst_after: int = 0
    tag_position_offset: int = 40
    region_model: str | None = None
    regions_read_text: bool = True


if not __name__.startswith("transformers_modules"):  # as code of a Hub repo it must not stand in for other repos
    AutoConfig.register(MengziOscarConfig.model_type, MengziOscarConfig, exist_ok=True)
