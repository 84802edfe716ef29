"""Fovea: a model repository in, a batching image-classification service out."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fovea")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"
