"""The type of numbers that models compute in at inference: what the processor is good at, unless one is asked for.

bfloat16 keeps the range of float32 and 8 of its 24 digits. Matrix units (AMX, GPUs from Ampere on) multiply it several
times as fast; CPUs without them gain nothing. docs/speed.md says what it changes in the results.
"""

import warnings

import torch

from .modeling_regions import RegionModel
from .quantization import quantize


def fast_dtype(device="cpu") -> torch.dtype:
    """What "auto" means on a device: bfloat16 where it has matrix units for it, else float32. Never 8 bits."""
    kind = torch.device(device).type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = getattr(torch.cpu, "get_capabilities", dict)  # a torch before 2.11 cannot say
        fast = kind == "cpu" and features().get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def chosen_dtype(dtype="auto", device="cpu") -> torch.dtype:
    """
    Args:
        dtype: "auto" (None is the same), "float32", "bfloat16", "int8"; other floating types of torch, too.

    Raises:
        ValueError: it is something else.
    """
    if dtype in (None, "auto"):
        return fast_dtype(device)
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    computes = isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1  # 8 bits only store
    if not computes and found != torch.int8:
        raise ValueError(f"dtype is {dtype!r}; there are 'auto', 'float32', 'bfloat16' and 'int8'")
    return found


def region_dtype(dtype="auto", device="cpu") -> torch.dtype:
    """What a region model computes in beside a captioner in `dtype`: bfloat16 and int8 with it, else float32."""
    dtype = chosen_dtype(dtype, device)
    return dtype if dtype in (torch.bfloat16, torch.int8) else torch.float32


def another_precision(features, dtype="auto", device="cpu") -> str | None:
    """What to say of stored features that were not computed in what the region model would compute in here.

    Args:
        features: the store's `precision`, None where it does not say. dtype, device: of the model that reads them.
    """
    own = str(region_dtype(dtype, device)).removeprefix("torch.")
    if features in (None, own) or (features, own) == ("float32", "int8"):  # most region models have no 8 bits
        return None
    return f"its features were computed in {features}, here they would be in {own}: results may differ a little"


def compute_in(dtype, model, device="cpu"):
    """Moves a model to a device, computing in `dtype` there (as `chosen_dtype` takes it), and returns it.

    For inference: the weights are rounded in place. A region model without 8 bits stays in float32 under "int8", and a
    warning says what it lacks where it could have them.

    Raises:
        ValueError: another dtype; int8 on another device than a CPU, or with a torch that lacks it.
    """
    dtype = chosen_dtype(dtype, device)
    if dtype == torch.int8:
        model = model.to(device, torch.float32)
        return region_model_in_8_bits(model) if isinstance(model, RegionModel) else quantize(model)
    if hasattr(model, "fold_norms") and dtype != torch.float32:
        model.fold_norms()  # before rounding, see VinVLModel
    return model.to(device, dtype)


def region_model_in_8_bits(model: RegionModel) -> RegionModel:
    from .openvino_networks import compute_in_8_bits, why_in_float32

    if model.config.model_type != "vinvl":  # nothing is gained (docs/log.md)
        return model
    if reason := why_in_float32(model):
        warnings.warn(f"{reason}; until then regions are found in float32", stacklevel=3)
        return model
    return compute_in_8_bits(model)
