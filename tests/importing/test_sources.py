"""Models as strangers save them, through `fovea import`."""

import json
from pathlib import Path
from typing import Any

import h5py
import keras
import pytest
import torch
from keras import layers
from torch import nn

from service import cli, manifest


@pytest.fixture
def imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Import a file with these flags: exit code, output, error, and the manifest where there is one."""
    repository = tmp_path / "repository"
    repository.mkdir()

    def run(path: Path, *flags: str) -> tuple[int, str, str, Any]:
        code = cli.main(["import", str(path), "--name", "mine", "--model-repo", str(repository), *flags])
        out, err = capsys.readouterr()
        written = manifest.read(repository / "mine") if code == 0 else None
        return code, out, err, written

    return run


def saved(network: Any, path: Path, loss: Any = None) -> Path:
    if loss is not None:
        network.compile(optimizer="adam", loss=loss)
    network.save(path)
    return path


def head(*parts: Any, shape: tuple[int | None, ...] = (24, 24, 3)) -> Any:
    return keras.Sequential([keras.Input(shape), *parts])


POOLED = (layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D())


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_rescaling_and_augmentation_inside_are_understood(imported: Any, tmp_path: Path, suffix: str) -> None:
    network = head(
        layers.RandomFlip("horizontal"), layers.RandomRotation(0.1), layers.Rescaling(1 / 255), *POOLED, layers.Dense(5)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    code, out, err, written = imported(saved(network, tmp_path / f"m{suffix}", loss), "--labels", "a,b,c,d,e")
    assert code == 0, err
    assert (written.input.preset, written.output.activation, written.input.resampler) == ("raw", "softmax", "tf")
    assert "head     ?" not in out  # the loss says what it is


@pytest.mark.parametrize(
    ("front", "preset"),
    [
        (keras.applications.mobilenet_v2.preprocess_input, "raw"),
        (keras.applications.resnet50.preprocess_input, "raw"),
        (lambda picture: layers.Rescaling(2.0, offset=-1.0)(picture), "unit"),
    ],
)
def test_preprocessing_functions_inside_are_understood(imported: Any, tmp_path: Path, front: Any, preset: str) -> None:
    picture = keras.Input((24, 24, 3))
    network = keras.Model(picture, layers.Dense(1)(POOLED[1](layers.Conv2D(4, 3)(front(picture)))))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    code, _, err, written = imported(saved(network, tmp_path / "m.keras", loss), "--labels", "cat,dog")
    assert code == 0, err
    assert (written.input.preset, written.output.task, written.output.activation) == (preset, "binary", "sigmoid")


def test_a_resizing_inside_hides_no_scaling(imported: Any, tmp_path: Path) -> None:
    picture = keras.Input((None, None, 3))
    small = layers.Rescaling(1 / 255)(layers.Resizing(16, 16)(picture))
    network = keras.Model(picture, layers.Dense(3, activation="softmax")(layers.Flatten()(layers.Conv2D(4, 3)(small))))
    code, _, err, written = imported(saved(network, tmp_path / "m.keras"), "--labels", "a,b,c", "--size", "40", "30")
    assert code == 0, err
    assert (written.input.preset, written.input.size) == ("raw", (40, 30))


def test_preprocessing_outside_is_asked_for(imported: Any, tmp_path: Path) -> None:
    path = saved(head(*POOLED, layers.Dense(3, activation="softmax")), tmp_path / "m.keras")
    code, _, err, _ = imported(path, "--labels", "a,b,c")
    assert code == 2
    assert "--preset unit" in err and "--try" in err


def test_a_dense_network_on_plain_pictures_is_served_in_gray(imported: Any, tmp_path: Path) -> None:
    path = saved(head(layers.Flatten(), layers.Dense(10), shape=(28, 28)), tmp_path / "m.keras")
    code, _, err, written = imported(path, "--labels", ",".join("0123456789"), "--preset", "unit")
    assert code == 0, err
    assert (written.input.color, written.input.size) == ("gray", (28, 28))


@pytest.mark.parametrize(
    ("network", "flags", "said"),
    [
        (lambda: head(*POOLED, layers.Dense(3), shape=(None, None, 3)), (), "--size HEIGHT WIDTH"),
        (
            lambda: head(layers.TimeDistributed(layers.Flatten()), layers.LSTM(2), shape=(None, 8, 8, 3)),
            (),
            "--frames COUNT",
        ),
        (lambda: head(layers.Lambda(lambda x: x / 255), *POOLED), (), "Lambda"),
        (lambda: head(*POOLED, layers.Dense(1)), ("--preset", "unit"), "--task binary"),
    ],
)
def test_what_a_keras_file_leaves_open_is_asked_for(
    imported: Any, tmp_path: Path, network: Any, flags: tuple[str, ...], said: str
) -> None:
    code, _, err, _ = imported(saved(network(), tmp_path / "m.keras"), *flags)
    assert code == 2
    assert said in err


def test_weights_alone_and_two_inputs_and_own_layers_are_refused(imported: Any, tmp_path: Path) -> None:
    network = head(*POOLED, layers.Dense(3))
    network.save_weights(tmp_path / "m.weights.h5")
    assert "weights without the network" in imported(tmp_path / "m.weights.h5")[2]
    left, right = keras.Input((24, 24, 3)), keras.Input((4,))
    both = keras.Model([left, right], layers.Dense(3)(layers.Concatenate()([layers.Flatten()(left), right])))
    assert "2 inputs" in imported(saved(both, tmp_path / "two.keras"))[2]

    class Mine(layers.Layer):
        def call(self, picture: Any) -> Any:
            return picture * 2

    own = imported(saved(head(Mine(), *POOLED), tmp_path / "own.keras"))[2]
    assert "layers of your own" in own and "model.export" in own


def test_a_depthwise_layer_as_older_keras_wrote_it_is_loaded(imported: Any, tmp_path: Path) -> None:
    """Teachable Machine's files have it, and labels with numbers."""
    path = saved(head(layers.DepthwiseConv2D(3), *POOLED, layers.Dense(2, activation="softmax")), tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        place = next(each for each in config["config"]["layers"] if each["class_name"] == "DepthwiseConv2D")
        place["config"]["groups"] = 1
        file.attrs["model_config"] = json.dumps(config)
    (tmp_path / "labels.txt").write_text("0 cat\n1 dog\n")
    code, _, err, written = imported(path, "--preset", "keras_tf")
    assert code == 0, err
    assert written.input.preset == "keras_tf"


def test_a_transformers_layers_are_imported_at_a_fixed_batch_and_opened(imported: Any, tmp_path: Path) -> None:
    picture = keras.Input((16, 16, 3))
    tokens = layers.Reshape((16, 8))(layers.Conv2D(8, 4, strides=4)(picture))
    tokens = layers.Add()([tokens, layers.MultiHeadAttention(2, 4)(layers.LayerNormalization()(tokens), tokens)])
    network = keras.Model(picture, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(tokens)))
    code, out, err, _ = imported(saved(network, tmp_path / "m.keras"), "--labels", "a,b,c", "--preset", "unit")
    assert code == 0, err
    assert "it is open now" in out


# PyTorch


class Small(nn.Module):
    def __init__(self, *end: nn.Module, channels: int = 3) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 3), *end,
        )  # fmt: skip

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.network(picture)


class Normalised(nn.Module):
    """As torchvision's pipelines inside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.inner((picture - self.mean) / self.std)


def program(network: nn.Module, path: Path, rows: int = 2, *, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim.AUTO},) if dynamic else None
    picture = torch.zeros(rows, 3, 32, 32)
    torch.export.save(torch.export.export(network, (picture,), dynamic_shapes=shapes), path)
    return path


@pytest.mark.parametrize(
    ("end", "activation"), [((), "softmax"), ((nn.Softmax(1),), "none"), ((nn.LogSoftmax(1),), "softmax")]
)
@pytest.mark.parametrize(("rows", "dynamic"), [(2, True), (1, False), (4, False)])
def test_exported_programs_of_every_head_and_batch_are_imported(
    imported: Any, tmp_path: Path, end: tuple[nn.Module, ...], activation: str, rows: int, dynamic: bool
) -> None:
    path = program(Small(*end).eval(), tmp_path / "m.pt2", rows, dynamic=dynamic)
    code, out, err, written = imported(path, "--labels", "a,b,c", "--preset", "imagenet")
    assert code == 0, err
    assert written.output.activation == activation
    assert "parity     with PyTorch" in out


def test_a_normalisation_inside_is_found_and_not_done_twice(imported: Any, tmp_path: Path) -> None:
    path = program(Normalised().eval(), tmp_path / "m.pt2")
    code, _, err, _ = imported(path, "--labels", "a,b,c", "--preset", "imagenet")
    assert code == 2 and "twice" in err and "--preset unit" in err
    code, _, err, written = imported(path, "--labels", "a,b,c")
    assert code == 0, err
    assert written.input.preset == "unit"


def test_a_network_in_training_mode_is_refused(imported: Any, tmp_path: Path) -> None:
    class Dropping(Small):
        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(self.network(picture), 0.5, training=True)

    path = program(Dropping().eval(), tmp_path / "m.pt2")
    code, _, err, _ = imported(path, "--labels", "a,b,c", "--preset", "unit")
    assert code == 2
    assert "model.eval()" in err


def test_a_forgotten_eval_is_named(imported: Any, tmp_path: Path) -> None:
    code, _, err, _ = imported(program(Small(), tmp_path / "m.pt2"), "--labels", "a,b,c", "--preset", "unit")
    assert code == 2
    assert "training mode (batch_norm)" in err and "model.eval()" in err


def test_weights_and_torchscript_are_told_how_to_be_exported(imported: Any, tmp_path: Path) -> None:
    network = Small().eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    assert "without the network" in imported(tmp_path / "w.pth")[2]
    torch.jit.trace(network, torch.zeros(1, 3, 32, 32)).save(tmp_path / "t.pt")
    assert "TorchScript" in imported(tmp_path / "t.pt")[2]


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_of_both_exporters_of_pytorch_with_a_fixed_batch_is_opened(
    imported: Any, tmp_path: Path, dynamo: bool
) -> None:
    path = tmp_path / "m.onnx"
    torch.onnx.export(Small().eval(), (torch.zeros(1, 3, 32, 32),), path, dynamo=dynamo, verbose=False)
    code, out, err, _ = imported(path, "--labels", "a,b,c", "--preset", "unit")
    assert code == 0, err
    assert "it is open now" in out


def test_clips_with_channels_first_are_turned(imported: Any, tmp_path: Path) -> None:
    class Volumes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.over_time, self.head = nn.Conv3d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.over_time(clip)).mean((2, 3, 4)))

    path = tmp_path / "m.onnx"
    torch.onnx.export(Volumes().eval(), (torch.zeros(1, 3, 8, 16, 16),), path, dynamo=False)
    code, _, err, written = imported(path, "--labels", "a,b", "--preset", "unit")
    assert code == 0, err
    assert (written.input.layout, written.input.frames) == ("nthwc", 8)
