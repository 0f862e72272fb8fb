"""8-bit products for CPUs: torch's dynamic quantisation, two to three times as fast as float32 at bert-base size.

The weights of the encoder's layers and of the vocabulary head become 8-bit integers, a scale per output; what meets
them is rounded to 8 bits in each product, with one scale. Embeddings, regions, LayerNorms, attention and softmax stay
in float32. docs/speed.md says what it brings and what it costs.
"""

import warnings

import torch


def quantize(model):
    """Makes a model of ours multiply in 8 bits, in place, and returns it; for inference on a CPU, not to be saved.

    Raises:
        ValueError: the model is not in float32 on a CPU, or this torch has no 8-bit products.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        dtype = str(model.dtype).removeprefix("torch.")
        raise ValueError(f"int8 starts from float32 on a CPU, this model is in {dtype} on {model.device}")
    parts = [part for part in (model.bert.encoder, getattr(model, "cls", None)) if part is not None]
    with warnings.catch_warnings():
        # torch announces since 2.10 that this module and its tensors will go, naming torchao, which is slower than
        # float32 here. We know: when they are gone, the error below says so.
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning)
        try:
            from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

            for part in parts:
                quantize_dynamic(part, {torch.nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
        except (ImportError, RuntimeError) as error:
            raise ValueError(
                f"torch {torch.__version__} cannot multiply in 8 bits here ({error}): leave out int8"
            ) from None
    return model
