"""Real photographs, from the test dependency scikit-image: none is fetched, and none is kept in this repository."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image

_FOLDER = Path(skimage.data.__file__).parent

PHOTOS: dict[str, Path] = {
    path.stem: path
    for path in (
        _FOLDER / "astronaut.png",
        _FOLDER / "camera.png",  # gray
        _FOLDER / "chelsea.png",  # a cat
        _FOLDER / "coffee.png",
        _FOLDER / "hubble_deep_field.jpg",
        _FOLDER / "motorcycle_left.png",
        _FOLDER / "motorcycle_right.png",
        _FOLDER / "retina.jpg",
        _FOLDER / "rocket.jpg",
    )
}


@lru_cache(maxsize=len(PHOTOS))
def pixels(name: str) -> npt.NDArray[np.uint8]:
    """The photograph as RGB, uint8 (height, width, 3); shared by all callers, so read-only."""
    with Image.open(PHOTOS[name]) as image:
        array = np.array(image.convert("RGB"))
    array.flags.writeable = False
    return array


def photo(name: str, width: int | None = None, height: int | None = None) -> Image.Image:
    """The photograph as a Pillow image in RGB, stretched to `width` x `height` where given."""
    image = Image.fromarray(pixels(name))
    if width is None or height is None:
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)
