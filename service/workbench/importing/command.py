"""`fovea import`: the order of the steps, and what is printed."""

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import __version__
from service import manifest as manifests
from service.errors import ConfigurationError, ModelLoadError
from service.loading import MODEL_FILE
from service.workbench.asking import expand
from service.workbench.importing import beside, decisions, evidence, graph, sources, trial, writing
from service.workbench.importing.decisions import Flags, Report
from service.workbench.importing.graph import Fitted
from service.workbench.importing.sources import Source
from service.workbench.importing.trial import Parity, Trial

Table = dict[str, Any]

_GOLDEN_PICTURES = 3
_SENT_AS = (".jpg", ".jpeg", ".png", ".webp")  # what every server takes
_NAME = re.compile(r"(?!stats$)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be imported, as which version of which model; `images` are files or folders to try it on."""

    source: Path
    name: str
    version: int
    images: tuple[Path, ...]
    flags: Flags


@dataclass(frozen=True, slots=True)
class Understood:
    """All that is needed to write the model. While they are asked for, `input` has no scaling and `labels` is None."""

    fitted: Fitted
    input: Table
    output: Table
    labels: tuple[str, ...] | None
    numbers: tuple[str, ...]  # in the place of labels, to try it without
    scales_itself: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """An import that may be written: how it was understood, and what the checks of it found."""

    source: Source
    understood: Understood
    report: Report
    parities: Sequence[tuple[str, Parity]]
    tried: Trial
    images: Sequence[tuple[Path, bytes]]


def import_model(order: Order, repository: Path) -> int:
    """Import, print what was found out, and return 0. Raises ConfigurationError with what to say or to change."""
    if not _NAME.fullmatch(order.name):
        raise ConfigurationError(
            f"--name {order.name}: a name has letters, digits, '.', '_' and '-', and begins with a letter or a digit"
        )
    folder = writing.place_for(repository, order.name, order.version)
    files = list(expand(order.images))
    with tempfile.TemporaryDirectory(prefix="fovea-import-") as scratch_name:
        scratch = Path(scratch_name)
        for name in ("source", "fitted", "part"):
            (scratch / name).mkdir()
        report = Report()
        source, understood = _understand(order, scratch, report)
        _print_report(report, source, understood.fitted)
        tried = Trial(understood.fitted, understood.output, understood.labels or understood.numbers)
        if files:
            ways = list(trial.variants(understood.input, scaling_is_known=understood.scales_itself))
            print("\n".join(trial.show(tried, ways, files, understood.labels or ())))
        if report.questions:
            raise ConfigurationError(
                "not imported yet:\n" + "\n".join(f"  - {question}" for question in report.questions)
            )
        images = tried.readable(understood.input, files)
        parities = _parities(tried, source, understood.input, [data for _, data in images])
        _require_apart(tried, understood.input)
        _write(order, folder, Checked(source, understood, report, parities, tried, images))
    _print_next(order, folder)
    return 0


def _understand(order: Order, scratch: Path, report: Report) -> tuple[Source, Understood]:
    source = sources.read(order.source, scratch / "source", sources.Open(order.flags.size, order.flags.frames))
    lying = beside.read(order.source, source.properties)
    flags = decisions.with_size(order.flags, lying)
    fitted = graph.fit(source.model, scratch / "fitted", flags.size)
    picture = decisions.picture_of(fitted.input, evidence.convolved_channels(fitted), order.flags, lying, report)
    scaling = evidence.scaling_in(fitted, picture.shape, scratch / "part")
    table = decisions.input_table(fitted.input, picture, order.flags, lying, scaling, source.geometry, report)
    for unclear in lying.unclear:
        report.found("unclear", unclear, "beside the model", "--resize")
    head = evidence.head_of(fitted, picture.shape, order.flags.output)
    labels = decisions.labels_of(order.source, head.units, order.flags, lying, report)
    output = decisions.output_table(head, order.flags, lying, source.loss, len(labels) if labels else None, report)
    numbers = tuple(str(index) for index in range(2 if head.units == 1 else head.units))
    scales_itself = scaling is not None and scaling.takes is not None
    return source, Understood(fitted, table, output, labels, numbers, scales_itself)


def _require_apart(tried: Trial, table: Table) -> None:
    """Images of several requests run as one batch. Raises ConfigurationError where they change each other's answers."""
    moved = tried.mixing(tried.noise(table))
    if moved <= trial.PARITY_LIMIT:
        return
    said = f"an image's numbers move by {moved:.1e} of their size with the images that are answered beside it"
    if not tried.quantizes_batches:
        raise ConfigurationError(
            f"not imported: {said}, and the server puts those of several requests together: something in the network "
            "works across the batch, such as a softmax over dimension 0 or a transformer that takes batches second "
            "(batch_first=True); have it work on each image, and export it again"
        )
    print(f"together ? {said}: the graph quantizes whole batches   ([batching] max_batch_size = 1 keeps them apart)")


def _parities(tried: Trial, source: Source, table: Table, images: Sequence[bytes]) -> list[tuple[str, Parity]]:
    """On random pixels and on the images given. Raises ConfigurationError where the graph is not the network."""
    if source.is_onnx and not tried.was_changed:
        print("parity     the graph is served as it is in the file")
        return []
    found = [("random pictures", tried.parity(source, tried.noise(table)))]
    if images:
        found.append(("real pictures", tried.parity(source, tried.tensors(table, images))))
    for what, parity in found:
        print(f"parity     with {source.framework}: {parity.difference:.1e} at most, on {parity.rows} {what}")
        if not parity.worst <= trial.PARITY_LIMIT:
            raise ConfigurationError(
                f"not imported: the exported graph answers differently from {source.framework}, by "
                f"{parity.difference:.1e} on {what}; export it with another version of the framework, as ONNX"
            )
    return found


def _write(order: Order, folder: Path, checked: Checked) -> None:
    """The whole model beside its place, then renamed into it."""
    understood = checked.understood
    assert understood.labels is not None
    origin = {
        "imported_from": order.source.name,
        "framework": checked.source.framework,
        "source_sha256": sources.checksum(order.source),
    }
    title = f"{order.name}: imported from {order.source.name} by fovea {__version__}"
    with writing.draft_folder(folder.parent) as draft_name:
        draft = Path(draft_name) / order.name
        version = draft / str(order.version)
        version.mkdir(parents=True)
        shutil.copyfile(understood.fitted.file, version / MODEL_FILE)
        texts = {
            manifests.MANIFEST_NAME: writing.manifest_text(title, understood.input, understood.output, origin),
            "labels.txt": "".join(f"{label}\n" for label in understood.labels),
            "README.md": writing.card_text(order.name, _figures(origin, checked), _rows(checked.report)),
        }
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8")
        _write_golden(version, checked)
        if folder.exists():
            _require_same_beside(folder, draft, order.version, checked)
        writing.publish(draft, folder, order.version)


def _figures(origin: dict[str, str], checked: Checked) -> list[tuple[str, str]]:
    made_from = [(key.replace("_", " "), f"`{value}`") for key, value in origin.items()]
    return made_from + [(f"parity on {each.rows} {what}", f"{each.difference:.1e}") for what, each in checked.parities]


def _rows(report: Report) -> list[tuple[str, str, str]]:
    return [
        (each.what, each.value, f"a guess: {each.origin} ({each.flag})" if each.is_guess else each.origin)
        for each in report.findings
    ]


def _write_golden(folder: Path, checked: Checked) -> None:
    """Pictures with what the version answers to them now: the first of those tried, else made ones."""
    understood, tried = checked.understood, checked.tried
    sent = [(file.suffix.lower(), data) for file, data in checked.images if file.suffix.lower() in _SENT_AS]
    pictures = [(f"golden-{n}{suffix}", data) for n, (suffix, data) in enumerate(sent[:_GOLDEN_PICTURES], start=1)]
    pictures = pictures or [(f"golden-{n}.png", trial.made_picture(n)) for n in range(1, 1 + _GOLDEN_PICTURES)]
    cases = []
    for name, data in pictures:
        (folder / name).write_bytes(data)
        (scores,) = tried.scores(understood.input, tried.tensors(understood.input, [data]))
        cases.append((name, scores))
    (folder / "golden.json").write_text(writing.golden_text(cases, understood.labels or ()), encoding="utf-8")


def _require_same_beside(folder: Path, draft: Path, version: int, checked: Checked) -> None:
    """A version's manifest is laid over the model's: what comes out must be what was decided here."""
    with tempfile.TemporaryDirectory() as name:
        merged = Path(name) / folder.name
        (merged / str(version)).mkdir(parents=True)
        for file in (manifests.MANIFEST_NAME, "labels.txt"):
            if (folder / file).is_file():
                shutil.copyfile(folder / file, merged / file)
            shutil.copyfile(draft / file, merged / str(version) / file)
        fitted, spec = checked.understood.fitted, checked.tried.spec(checked.understood.input)
        try:
            manifest = manifests.read(merged, version)
            labels = manifests.read_labels(merged, version, manifest)
            both = manifests.resolve(manifest, labels, fitted.engine.inputs, fitted.engine.outputs, "cpu")
        except ModelLoadError as error:
            raise ConfigurationError(
                f"{folder.name} has a manifest that this version does not go with ({error}): give another --name"
            ) from None
    if (both.input, both.task) != (spec.input, spec.task):
        raise ConfigurationError(
            f"{folder.name}/model.toml has keys that this version does not share: give another --name"
        )


def _print_report(report: Report, source: Source, fitted: Fitted) -> None:
    print(f"read       {source.framework}")
    for note in fitted.notes:
        print(f"changed    {note}")
    for finding in report.findings:
        if finding.is_guess:
            print(f"{finding.what:8} ? {finding.value}   (a guess: {finding.origin}; otherwise {finding.flag})")
        else:
            print(f"{finding.what:10} {finding.value}   ({finding.origin})")
    if any(finding.is_guess for finding in report.findings):
        print(
            "           ? is what no file says; --try IMAGE... or a FOLDER of class folders shows what others would do"
        )


def _print_next(order: Order, folder: Path) -> None:
    print(f"imported   {folder}/{order.version}")
    print(f"next       fovea classify IMAGE --model {order.name} --model-repo {folder.parent}")
