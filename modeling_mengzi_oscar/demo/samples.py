"""Photos that scikit-image and scikit-learn carry: something to look at where no other photo is at hand."""

import importlib.util
from pathlib import Path

SAMPLES = {  # name -> package, file, credit
    "cat": ("skimage", "data/chelsea.png", "CC0, Stefan van der Walt"),
    "coffee": ("skimage", "data/coffee.png", "CC0, Rachel Michetti"),
    "astronaut": ("skimage", "data/astronaut.png", "public domain, NASA"),
    "rocket": ("skimage", "data/rocket.jpg", "public domain, SpaceX"),
    "palace": ("sklearn", "datasets/images/china.jpg", "CC BY 2.0, danielbuechele (Flickr)"),
    "flower": ("sklearn", "datasets/images/flower.jpg", "CC BY 2.0, vultilion (Flickr)"),
}
MORE_SAMPLES = {  # what the mini knows: people
    "photographer": ("skimage", "data/camera.png", "CC0, Lav Varshney"),
    "motorcycle": ("skimage", "data/motorcycle_left.png", "free to publish, Scharstein et al., Middlebury Stereo 2014"),
}


def sample_photos(samples=SAMPLES) -> dict[str, tuple[Path, str]]:
    """{name: (path, credit)}.

    Raises:
        ModuleNotFoundError: scikit-image or scikit-learn is not installed.
    """
    photos = {}
    for name, (package, file, credit) in samples.items():
        found = importlib.util.find_spec(package)  # the path only: importing them takes seconds
        if found is None:
            raise ModuleNotFoundError("the sample photos are missing: pip install scikit-image scikit-learn")
        photos[name] = (Path(found.origin).parent / file, credit)
    return photos
