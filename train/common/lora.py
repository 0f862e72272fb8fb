"""Low-rank adapters (LoRA, Hu et al. 2021) by peft: small matrices beside the encoder's, which alone are trained."""

import copy

LAYERS = r"bert\.encoder\..*\.(query|key|value|dense)"  # attention and feed-forward


def with_adapters(model, rank):
    """Puts adapters into a model, and freezes all else. Checkpoints of the run hold both, as those of any model.

    Returns:
        A function to a copy of the model with the adapters added to its weights: a checkpoint like the one it was.

    Raises:
        SystemExit: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise SystemExit("--lora_r needs peft: pip install -c constraints.txt peft") from None
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LAYERS))
    return lambda: copy.deepcopy(adapted).merge_and_unload()
