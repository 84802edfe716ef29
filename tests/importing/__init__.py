"""Importing with the real frameworks: `make test-import`."""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before anything here imports Keras
