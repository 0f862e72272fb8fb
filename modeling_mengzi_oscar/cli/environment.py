"""`mengzi-oscar environment`: versions, device and dtype, the table that a bug report needs."""

import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__
from .checkpoint import bundled_checkpoint

LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "huggingface_hub", "safetensors", "timm")
LIBRARIES += ("pillow", "numpy", "datasets", "accelerate", "gradio", "openvino")
# Instructions that speed and rounding depend on.
PROCESSOR_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def add_arguments(parser):
    """It takes none."""


def run(options) -> int:
    rows = environment()
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
    return 0


def environment() -> dict[str, str]:
    """Versions, device and dtype, name by name. Never fails: what is missing or broken is said in its place."""
    rows = {"mengzi-oscar": __version__, "python": platform.python_version(), "platform": platform.platform()}
    rows |= {name: installed_version(name) for name in LIBRARIES}
    rows["processor"] = processor()
    rows["threads, GPU"] = said_or_error(threads_and_gpu)
    rows["runs on"] = said_or_error(device_and_dtype)
    checkpoint = bundled_checkpoint()
    rows["mini"] = short(checkpoint) if checkpoint.is_dir() else "not here"
    return rows


def installed_version(name) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def said_or_error(say) -> str:
    try:
        return say()
    except Exception as error:  # a broken library is what the report is about
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())}"


def processor() -> str:
    """Architecture, and which of the instructions that matter here the processor has, where Linux tells."""
    try:
        words = set(Path("/proc/cpuinfo").read_text("utf-8").split())
    except OSError:
        return platform.machine()
    return " ".join([platform.machine(), *(flag for flag in PROCESSOR_FLAGS if flag in words)])


def threads_and_gpu() -> str:
    torch = import_module("torch")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    build = torch.version.cuda and f"CUDA {torch.version.cuda}" or torch.version.hip and f"ROCm {torch.version.hip}"
    return f"{torch.get_num_threads()} threads, {gpu}, torch built for {build or 'CPUs'}"


def device_and_dtype() -> str:
    """Where the commands compute and in what, with the imports that they make."""
    torch = import_module("torch")
    import_module("..pipeline_mengzi_oscar", __package__)
    fast_dtype = import_module("..precision", __package__).fast_dtype
    device = "cuda" if torch.cuda.is_available() else "cpu"
    said = [f"{name} in {str(fast_dtype(name)).removeprefix('torch.')}" for name in ("cpu", device)]
    return f"{said[0]}; extract: {said[1]}"


def short(path) -> str:
    """Without the name of the user, since reports are public."""
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)
