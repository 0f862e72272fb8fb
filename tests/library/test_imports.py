"""What an import costs and needs: nothing that the job does not use, and no package that may be missing."""

import subprocess
import sys

from conftest import REPOSITORY as ROOT

HEAVY = ("accelerate", "datasets", "evaluate", "gradio", "matplotlib", "pandas", "pyarrow", "skimage", "sklearn")


def loaded_after(code, wanted) -> set:
    """Which of the modules `wanted` a fresh interpreter has after `code`."""
    code += f"\nimport sys\nprint('loaded:', *(name for name in {wanted!r} if sys.modules.get(name)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("loaded:", 1)[1].split())


def test_help_needs_the_standard_library_only():
    code = "from modeling_mengzi_oscar import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass"
    assert loaded_after(code, ("torch", "transformers", "numpy", "PIL", "tqdm", *HEAVY)) == set()


def test_region_models_bring_nothing_of_their_own_but_timm():
    """transformers from 5.5 on imports torchvision, scipy and accelerate by itself: not ours to forbid."""
    base = "import torch\nfrom transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel\n"
    detector = (
        "from modeling_mengzi_oscar.modeling_vinvl import VinVLModel\n"
        "from modeling_mengzi_oscar.image_processing_vinvl import VinVLImageProcessor"
    )
    grid = "from modeling_mengzi_oscar.modeling_grid_regions import GridRegionImageProcessor, GridRegionModel"
    wanted = ("torchvision", "timm", "scipy", "torch._dynamo", *HEAVY)
    before = loaded_after(base, wanted)
    assert before.isdisjoint({"datasets", "gradio", "matplotlib", "pandas", "pyarrow", "skimage", "sklearn"})
    assert loaded_after(base + detector, wanted) == before
    assert loaded_after(base + grid, wanted) <= before | {"timm", "torchvision", "torch._dynamo"}  # timm needs these


def test_region_models_load_without_timm_and_torchvision():
    """Every repo of a captioner carries their files, and transformers looks at the imports of all of them."""
    code = """
import sys
sys.modules["torchvision"] = sys.modules["timm"] = None
from transformers.dynamic_module_utils import check_imports
from modeling_mengzi_oscar import configuration_vinvl, image_processing_vinvl, modeling_grid_regions, modeling_vinvl
for module in (configuration_vinvl, image_processing_vinvl, modeling_grid_regions, modeling_vinvl):
    check_imports(module.__file__)
for model, config in (
    (modeling_grid_regions.GridRegionModel, modeling_grid_regions.GridRegionConfig()),
    (modeling_vinvl.VinVLModel, configuration_vinvl.VinVLConfig()),
):
    try:
        model(config)
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "GridRegionModel needs timm: pip install timm",
        "VinVLModel needs torchvision: pip install torchvision",
    ], done.stderr
