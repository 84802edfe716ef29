"""New versions that must never serve: each made from a good one, with the check that keeps it out.

`make(good, bad)` copies the folder of the good version to `bad`, which does not exist yet, and spoils it.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, MutableSequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Make = Callable[[Path, Path], None]


class BadVersion(NamedTuple):
    """`gate` is the check it fails; `says` is part of the reason."""

    make: Make
    gate: str
    says: str


def write_sums(version: Path) -> None:
    """SHA256SUMS of everything in a version's folder, as `sha256sum *` writes it."""
    files = sorted(path for path in version.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (version / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _file(spoil: Callable[[Path], Any]) -> Make:
    def make(good: Path, bad: Path) -> None:
        shutil.copytree(good, bad)
        spoil(bad / "model.onnx")

    return make


def _graph(spoil: Callable[[onnx.ModelProto], Any]) -> Make:
    def rewrite(file: Path) -> None:
        model = onnx.load_model_from_string(file.read_bytes())
        spoil(model)
        file.write_bytes(model.SerializeToString())

    return _file(rewrite)


def _link(file: Path) -> None:
    elsewhere = file.parents[2] / f"elsewhere-{file.parent.name}.onnx"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def _hard_link(file: Path) -> None:
    os.link(file, file.parents[2] / f"other-name-{file.parent.name}.onnx")


def _link_of_folder(good: Path, bad: Path) -> None:
    bad.symlink_to(good, target_is_directory=True)


def _wrong_sum(file: Path) -> None:
    write_sums(file.parent)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _half_copied(file: Path) -> None:
    (file.parent / "zz.bin").write_bytes(b"the last file")
    write_sums(file.parent)
    (file.parent / "zz.bin").unlink()


def _renamed(names: MutableSequence[str], old: str, new: str) -> None:
    names[:] = [new if name == old else name for name in names]


def _rename_inputs(model: onnx.ModelProto) -> None:
    old = model.graph.input[0].name
    model.graph.input[0].name = "renamed"
    for node in model.graph.node:
        _renamed(node.input, old, "renamed")


def _other_rank(model: onnx.ModelProto) -> None:
    """The input gets two dimensions more, which a new first node takes off again. One more could be a clip's."""
    tensor = model.graph.input[0]
    inner = f"{tensor.name}_squeezed"
    for node in model.graph.node:
        _renamed(node.input, tensor.name, inner)
    for _ in range(2):
        tensor.type.tensor_type.shape.dim.add().dim_value = 1
    axes = numpy_helper.from_array(np.array([-2, -1], np.int64), "last_axes")
    model.graph.initializer.append(axes)
    model.graph.node.insert(0, helper.make_node("Squeeze", [tensor.name, "last_axes"], [inner]))


def _fewer_classes(model: onnx.ModelProto) -> None:
    """The output is cut by one class."""
    output = model.graph.output[0]
    whole = f"{output.name}_whole"
    for node in model.graph.node:
        _renamed(node.output, output.name, whole)
    classes = output.type.tensor_type.shape.dim[1].dim_value
    cut = {"from": [0], "to": [classes - 1], "axis": [1]}
    for name, value in cut.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"cut_{name}"))
    model.graph.node.append(helper.make_node("Slice", [whole, "cut_from", "cut_to", "cut_axis"], [output.name]))
    output.type.tensor_type.shape.dim[1].dim_value = classes - 1


def _not_a_number(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            spoiled = np.full_like(numpy_helper.to_array(tensor), np.nan)
            tensor.CopyFrom(numpy_helper.from_array(spoiled, tensor.name))


def _unknown_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def _custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-1].domain = "com.example.plugins"
    model.opset_import.append(helper.make_opsetid("com.example.plugins", 1))


def _external(location: str, **more: str) -> Callable[[onnx.ModelProto], None]:
    def spoil(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=value)

    return spoil


def _giant(model: onnx.ModelProto) -> None:
    """A terabyte of zeros, made while loading."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 38], np.int64), "giant_shape"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["giant_shape"], ["giant"]))
    model.graph.output.append(helper.make_tensor_value_info("giant", TensorProto.FLOAT, [1 << 38]))


BAD: dict[str, BadVersion] = {
    "truncated": BadVersion(_file(lambda file: os.truncate(file, file.stat().st_size // 2)), "files", "damaged"),
    "empty": BadVersion(_file(lambda file: os.truncate(file, 0)), "files", "empty"),
    "garbage": BadVersion(_file(lambda file: file.write_bytes(b"\x00garbage" * 1000)), "files", "damaged"),
    "missing": BadVersion(_file(lambda file: file.unlink()), "files", "missing"),
    "checksum": BadVersion(_file(_wrong_sum), "checksum", "SHA256SUMS"),
    "half copied": BadVersion(_file(_half_copied), "checksum", "is missing"),
    "signature": BadVersion(_graph(_other_rank), "signature", "dimensions"),
    "classes": BadVersion(_graph(_fewer_classes), "labels", "classes"),
    "renamed": BadVersion(_graph(_rename_inputs), "signature", "is not in the graph"),
    "external outside": BadVersion(_graph(_external("../../../etc/passwd")), "external_data", "plain file name"),
    "external missing": BadVersion(_graph(_external("weights.bin")), "external_data", "is missing"),
    "external beyond": BadVersion(
        _graph(_external("model.onnx", offset="0", length="99999999999")), "external_data", "reaches to"
    ),
    "link": BadVersion(_file(_link), "files", "link"),
    "hard link": BadVersion(_file(_hard_link), "files", "link"),
    "link of folder": BadVersion(_link_of_folder, "files", "link"),
    "not a number": BadVersion(_graph(_not_a_number), "warm_up", "not a finite number"),
    "opset": BadVersion(_graph(_unknown_opset), "engine", "opset"),
    "custom operator": BadVersion(_graph(_custom_operator), "operators", "com.example.plugins"),
    "giant": BadVersion(_graph(_giant), "size", "allowed"),
}
