"""Mengzi-Oscar for transformers. Names are imported on first use, so `import modeling_mengzi_oscar` costs nothing."""

from importlib import import_module

__version__ = "0.1.0"

_MODULE_OF = {
    "MengziOscarConfig": "configuration_mengzi_oscar",
    "MengziOscarModel": "modeling_mengzi_oscar",
    "MengziOscarForPreTraining": "modeling_mengzi_oscar",
    "MengziOscarForImageCaptioning": "modeling_mengzi_oscar",
    "MengziOscarForImageTextRetrieval": "modeling_mengzi_oscar",
    "MengziOscarForVisualQuestionAnswering": "modeling_mengzi_oscar",
    "MengziOscarForVisualReasoning": "modeling_mengzi_oscar",
    "MengziOscarProcessor": "processing_mengzi_oscar",
    "MengziOscarPipeline": "pipeline_mengzi_oscar",
    "GridRegionConfig": "modeling_grid_regions",
    "GridRegionImageProcessor": "modeling_grid_regions",
    "GridRegionModel": "modeling_grid_regions",
    "NanoDetConfig": "modeling_nanodet",
    "NanoDetForObjectDetection": "modeling_nanodet",
    "ObjectRegionConfig": "modeling_object_regions",
    "ObjectRegionImageProcessor": "modeling_object_regions",
    "ObjectRegionModel": "modeling_object_regions",
    "VinVLConfig": "configuration_vinvl",
    "VinVLImageProcessor": "image_processing_vinvl",
    "VinVLModel": "modeling_vinvl",
    "RegionModelOutput": "modeling_regions",
    "RegionFeatureStore": "features.store",
    "bundled_checkpoint": "cli.checkpoint",
    "import_tsv": "features.oscar_tsv",
    "export_tsv": "features.oscar_tsv",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return __all__
