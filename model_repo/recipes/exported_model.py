"""A model exported to ONNX: sealed, checked, compared with its framework, and its figures put on its card.

Owns everything that happens after a framework has written an ONNX file. Knows no framework and no data set: it sees
one file and numpy arrays.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

MODEL_REPOSITORY = Path(__file__).resolve().parent.parent
VERSION = 1
PARITY_LIMIT = 1e-5  # largest accepted difference between a probability of the framework and one of onnxruntime
BATCH_SIZE = 100
CARD_BEGIN = "<!-- figures: written by the recipe, do not edit -->"
CARD_END = "<!-- end of figures -->"


@contextmanager
def draft(name: str) -> Iterator[Path]:
    """A path to export to. Leaving the block without an error publishes the file as version `VERSION` of `name`.

    A running service watches the repository: it must see a whole, checked file or the one from before.
    """
    folder = MODEL_REPOSITORY / name
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder) as scratch:
        path = Path(scratch) / "model.onnx"
        yield path
        published = folder / str(VERSION) / path.name
        published.parent.mkdir(exist_ok=True)
        path.chmod(0o644)
        path.replace(published)


def write_labels(name: str, labels: Iterable[str]) -> None:
    """Write `labels.txt` of the model `name`, one label a line in output order."""
    (MODEL_REPOSITORY / name / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def seal(path: Path, input_name: str, output_name: str) -> None:
    """Make an exporter's file fit to publish: set its two tensor names, drop what describes the exporting machine.

    Exporters note stack traces (with local paths) and counters at every node. None of it matters for inference, and
    without it the same weights give the same bytes. The arithmetic is not touched.
    """
    model = onnx.load(path)
    graph = model.graph
    (graph_input,), (graph_output,) = graph.input, graph.output
    _rename_tensors(graph, {graph_input.name: input_name, graph_output.name: output_name})
    for value in (graph_input, graph_output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
    for described in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        described.ClearField("metadata_props")
        described.ClearField("doc_string")
    del graph.value_info[:]
    model.producer_version = model.producer_version.partition("+")[0]  # less "+cpu", PyTorch's own build
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _rename_tensors(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def predict(path: Path, inputs: FloatArray) -> FloatArray:
    """Run the file with onnxruntime on the CPU. `inputs` is float32 [n, ...]; returns float32 [n, classes]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return in_batches(lambda batch: session.run(None, {name: batch})[0], inputs)


def in_batches(function: Callable[[FloatArray], FloatArray], inputs: FloatArray) -> FloatArray:
    """Call `function` on `BATCH_SIZE` rows at a time and join what it returns."""
    return np.concatenate([function(inputs[i : i + BATCH_SIZE]) for i in range(0, len(inputs), BATCH_SIZE)])


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities of `logits`, float32 [n, classes], along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def require_accuracy(probabilities: FloatArray, truth: NDArray[np.int64], at_least: float) -> float:
    """Fraction of rows whose most probable class is the true one; ends the recipe when it is below `at_least`."""
    reached = float(np.mean(probabilities.argmax(axis=-1) == truth))
    print(f"accuracy: {reached:.2%} of {len(truth):,} images, by onnxruntime on the exported file")
    if reached < at_least:
        raise SystemExit(f"accuracy failed: {reached:.2%} is below {at_least:.2%}")
    return reached


def hardest_class(probabilities: FloatArray, truth: NDArray[np.int64], labels: Sequence[str]) -> tuple[str, float]:
    """The class of which the smallest fraction is recognised, and that fraction."""
    is_right = probabilities.argmax(axis=-1) == truth
    recalls = [float(is_right[truth == index].mean()) for index in range(len(labels))]
    hardest = int(np.argmin(recalls))
    return labels[hardest], recalls[hardest]


def require_parity(framework: FloatArray, exported: FloatArray) -> float:
    """Largest difference between two sets of probabilities; ends the recipe when it is above `PARITY_LIMIT`."""
    difference = float(np.abs(framework.astype(np.float64) - exported).max())
    print(f"parity: largest difference of {len(exported)} x {exported.shape[1]} probabilities is {difference:.1e}")
    if not difference <= PARITY_LIMIT:
        raise SystemExit(f"parity failed: {difference:.1e} is above {PARITY_LIMIT:.0e}")
    return difference


def file_figures(path: Path) -> list[tuple[str, str]]:
    """What the file itself says, as rows for the card: size, SHA-256, ONNX versions, signature."""
    content = path.read_bytes()
    model = onnx.load_from_string(content)
    signature = ", ".join(_describe(value) for value in (*model.graph.input, *model.graph.output))
    return [
        ("File", f"`{VERSION}/{path.name}`, {len(content):,} bytes"),
        ("SHA-256", f"`{hashlib.sha256(content).hexdigest()}`"),
        ("ONNX", f"IR {model.ir_version}, opset {model.opset_import[0].version}"),
        ("Tensors", signature),
    ]


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"`{value.name}` {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} [{shape}]"


def write_figures(name: str, figures: Iterable[tuple[str, str]]) -> None:
    """Put `figures` as a table between the two markers of the model's `README.md`; the rest of the card stays."""
    card = MODEL_REPOSITORY / name / "README.md"
    table = "".join(f"| {title} | {value} |\n" for title, value in figures)
    before, begin, rest = card.read_text(encoding="utf-8").partition(CARD_BEGIN)
    _, end, after = rest.partition(CARD_END)
    if not (begin and end):
        raise SystemExit(f"{card} lacks the lines {CARD_BEGIN!r} and {CARD_END!r}")
    text = f"{before}{begin}\n| figure | value |\n|---|---|\n{table}{end}{after}"
    card.write_text(text, encoding="utf-8")
    print(f"figures written to {card.relative_to(MODEL_REPOSITORY)}")
