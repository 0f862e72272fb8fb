"""Images for the VinVL detector: Pillow's bilinear resize on 8-bit RGB, then BGR 0..255 minus the mean, no scaling.

Unlike transformers' usual processors the longer side is truncated, small images are enlarged, and any other resize
(tensor, bicubic, OpenCV) shifts the scores measurably. Nothing is padded to a multiple of 32. The EXIF orientation is
not looked at, as in the original; whoever opens a photo turns it upright first.
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature

from .modeling_regions import as_pictures, picture_name
from .photos import PhotoError

if TYPE_CHECKING:  # transformers before 5.10 brings only the files that the file of a class names itself
    from .supported_transformers import OLDEST  # noqa: F401


class VinVLImageProcessor(BaseImageProcessor):
    """Photos to the tensors that `VinVLModel` takes.

    Args:
        shortest_edge: the shorter side becomes this many pixels ...
        longest_edge: ... unless the longer side would then exceed this.
        image_mean: subtracted from the 0..255 values, in the order blue, green, red.
    """

    model_input_names = ["pixel_values", "original_sizes", "reshaped_input_sizes"]

    def __init__(self, shortest_edge=600, longest_edge=1000, image_mean=(103.53, 116.28, 123.675), **kwargs):
        super().__init__(**kwargs)
        self.shortest_edge = shortest_edge
        self.longest_edge = longest_edge
        self.image_mean = list(image_mean)

    def resized_size(self, height: int, width: int, name: str = "an image") -> tuple[int, int]:
        """Height and width after resizing. A capped image may end one pixel short of `longest_edge`.

        Raises:
            PhotoError: the image is so thin that nothing of it would be left.
        """
        shorter, longer = min(height, width), max(height, width)
        size = self.shortest_edge
        if longer / shorter * size > self.longest_edge:
            size = int(round(self.longest_edge * shorter / longer))
        if size < 1:
            raise PhotoError(
                f"{name}: {width} x {height} pixels are too thin for the detector, nothing would be left; crop it first"
            )
        if shorter == size:
            return height, width
        if height <= width:
            return size, int(size * width / height)
        return int(size * height / width), size

    def preprocess(self, images, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """Resize, normalise and, where sizes differ, pad with zeros on the right and at the bottom.

        Padding changes what the detector finds (its convolutions see it), so batch images of equal resized size.

        Args:
            images: a PIL image, a uint8 array or tensor, or several, as `as_pictures` takes them.
            return_tensors: "pt" (default) or "np".

        Returns:
            pixel_values (B, 3, H, W) float32, original_sizes (B, 2) and reshaped_input_sizes (B, 2), both height and
            width in pixels, before resizing and after it (without padding).

        Raises:
            ValueError: no image, or one that `as_pictures` does not take.
            PhotoError: an image that is too thin.
        """
        pictures = as_pictures(images)
        names = [picture_name(picture, number) for number, picture in enumerate(pictures)]
        pictures = [picture.convert("RGB") for picture in pictures]
        original_sizes = [(picture.height, picture.width) for picture in pictures]
        sizes = [self.resized_size(*size, name) for size, name in zip(original_sizes, names, strict=True)]
        mean = np.array(self.image_mean, dtype=np.float32)
        height, width = (max(side) for side in zip(*sizes, strict=True))
        pixel_values = np.zeros((len(pictures), 3, height, width), dtype=np.float32)
        for row, picture, (h, w) in zip(pixel_values, pictures, sizes, strict=True):
            if (picture.height, picture.width) != (h, w):
                picture = picture.resize((w, h), Image.Resampling.BILINEAR)
            bgr = np.asarray(picture)[:, :, ::-1].astype(np.float32) - mean  # (h, w, 3)
            row[:, :h, :w] = bgr.transpose(2, 0, 1)
        data = {
            "pixel_values": pixel_values,
            "original_sizes": np.array(original_sizes, dtype=np.int64),
            "reshaped_input_sizes": np.array(sizes, dtype=np.int64),
        }
        return BatchFeature(data=data, tensor_type=return_tensors)
