"""PyTorch exported programs (.pt2, by torch.export.save) to ONNX, by PyTorch's own exporter."""

from pathlib import Path
from typing import Any

import torch

from service.errors import ConfigurationError
from service.workbench.importing import graph
from service.workbench.importing.graph import Array
from service.workbench.importing.quiet import silence
from service.workbench.importing.sources import TORCH_GEOMETRY, Source, in_steps

_OPSET = 20


def read(path: Path, scratch: Path) -> Source:
    """Load and export. Raises ConfigurationError with what to do."""
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise ConfigurationError(
            f"{path.name} is not a program that torch.export.save wrote ({' '.join(str(error).split())[:200]}); "
            f"PyTorch {torch.__version__} reads it"
        ) from None
    _require_eval(program, path.name)
    network = program.module()

    def answer(rows: Array) -> list[Array]:
        def run(part: Array) -> list[Array]:
            return [tensor.numpy() for tensor in _flat(network(torch.from_numpy(part.copy())))]

        with torch.inference_mode():
            return in_steps(run, rows, _fixed_rows(program))

    model = _to_onnx(program, scratch / "pytorch.onnx", path.name)
    return Source(f"PyTorch {torch.__version__.partition('+')[0]}", model, answer, TORCH_GEOMETRY)


def _require_eval(program: Any, name: str) -> None:
    """Refuse a network in training mode: PyTorch's exporter leaves that mode out, and then the answers differ."""
    training = {
        node.target.__name__.partition(".")[0]
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False)
        if argument.name in ("train", "training") and value is True
    }
    if training:
        raise ConfigurationError(
            f"{name} was exported in training mode ({', '.join(sorted(training))}): call model.eval() before "
            "torch.export.export"
        )


def _to_onnx(program: Any, target: Path, name: str) -> Any:
    try:
        with silence():
            torch.onnx.export(
                program, (), target, dynamo=True, external_data=False, opset_version=_OPSET, verbose=False
            )
    except Exception as error:
        raise ConfigurationError(
            f"{name}: PyTorch cannot export it to ONNX: {' '.join(str(error).split())[:400]}; replace what is named "
            "with standard operations"
        ) from None
    return graph.load(target)


def _flat(found: Any) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    return (
        list(found.values()) if isinstance(found, dict) else [each for each in found if isinstance(each, torch.Tensor)]
    )


def _fixed_rows(program: Any) -> int:
    """The batch size that the program was exported for; 0 where it takes any."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            rows = node.meta["val"].shape[0]
            return rows if isinstance(rows, int) else 0
    return 0
