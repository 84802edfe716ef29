"""Where the pixels of a tensor come from in the image. Pure arithmetic on sizes and boxes.

A box is (left, top, right, bottom) in source pixels, as floats; pixel i covers [i, i + 1).
"""

from typing import NamedTuple

from service.imaging.spec import InputSpec

Box = tuple[float, float, float, float]


class Placement(NamedTuple):
    """How an image of a given size becomes the tensor's picture.

    Resize the whole to `whole` (width, height), then take the `content` (width, height) at `crop` (left, top) of it and
    put it at `paste` (left, top) of the output. `box` is that content's place in the source.
    """

    whole: tuple[int, int]
    crop: tuple[int, int]
    content: tuple[int, int]
    paste: tuple[int, int]
    box: Box

    @property
    def scale(self) -> float:
        """Source pixels to one output pixel, in the direction that shrinks least."""
        left, top, right, bottom = self.box
        return min((right - left) / self.content[0], (bottom - top) / self.content[1])

    def shrunk(self, factor: float) -> "Placement":
        """The same placement on a source that was already made smaller by `factor` (0..1]."""
        left, top, right, bottom = self.box
        box = (left * factor, top * factor, right * factor, bottom * factor)
        return Placement(self.whole, self.crop, self.content, self.paste, box)


def place(width: int, height: int, spec: InputSpec) -> Placement:
    """The placement of a `width` x `height` image.

    `shortest_side` follows torchvision's Resize and CenterCrop: the long side is truncated, the offset rounded.
    """
    out_height, out_width = spec.size
    if spec.resize == "stretch":
        whole = content = (out_width, out_height)
        return Placement(whole, (0, 0), content, (0, 0), (0.0, 0.0, float(width), float(height)))
    if spec.resize == "letterbox":
        ratio = min(out_width / width, out_height / height)
        whole = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        paste = ((out_width - whole[0]) // 2, (out_height - whole[1]) // 2)
        return Placement(whole, (0, 0), whole, paste, (0.0, 0.0, float(width), float(height)))
    short = min(width, height)
    whole = (int(spec.resize_to * width / short), int(spec.resize_to * height / short))
    left, top = (round((whole[0] - out_width) / 2.0), round((whole[1] - out_height) / 2.0))
    step_x, step_y = width / whole[0], height / whole[1]
    box = (left * step_x, top * step_y, (left + out_width) * step_x, (top + out_height) * step_y)
    return Placement(whole, (left, top), (out_width, out_height), (0, 0), box)


def box_before_orientation(box: Box, orientation: int, width: int, height: int) -> Box:
    """A box given on the displayed image, on the `width` x `height` image as stored."""
    left, top, right, bottom = box
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (left, top, right, bottom)
