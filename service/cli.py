"""The command line: parses, calls, prints; nothing else."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service import __version__, config
from service.config import Settings
from service.errors import ConfigurationError

_PRESETS = ("imagenet", "torchvision", "keras_tf", "unit", "caffe", "raw")  # the manifest's; a test holds them together


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `fovea`; returns the exit code."""
    logging.getLogger().addHandler(logging.NullHandler())  # commands print; only `serve` logs
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except ConfigurationError as error:
        print(f"fovea: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fovea", description="Serve image classifiers from a model repository.")
    parser.add_argument("--version", action="version", version=f"fovea {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the server")
    serve.add_argument("--print-settings", action="store_true", help="print the settings in force as TOML, and exit")
    _add_settings(serve)
    check = commands.add_parser("check", help="validate settings and the whole repository without serving")
    writing = check.add_mutually_exclusive_group()
    writing.add_argument(
        "--write-golden",
        action="store_true",
        help="write what each version answers now to its golden.json: to the pictures in its folder, else to made ones",
    )
    writing.add_argument(
        "--write-reference",
        type=Path,
        nargs="+",
        metavar="IMAGES",
        help="write how a version answers to these images, files or folders, to its reference.json",
    )
    check.add_argument("--model", help="the model to write for (default: all)")
    _add_settings(check)
    classify = commands.add_parser("classify", help="classify files or folders, here or through a running server")
    classify.add_argument("files", nargs="+", type=Path, metavar="FILE", help="an image, or a folder of images")
    classify.add_argument("--model", default="imagenet", help="MODEL or MODEL/VERSION (default: imagenet)")
    classify.add_argument("--url", help="a running server; without it the model is loaded here")
    classify.add_argument("--top-k", type=int, default=5, choices=range(1, 101), metavar="K", help="labels an image")
    classify.add_argument("--json", action="store_true", help="one JSON object a line")
    classify.add_argument("--output", type=Path, metavar="FILE", help="write to FILE.jsonl or FILE.csv instead")
    classify.add_argument("--resume", action="store_true", help="continue FILE: only what it has no answer for")
    _add_settings(classify)
    _add_evaluate(commands)
    _add_quantize(commands)
    _add_tune(commands)
    _add_import(
        commands.add_parser("import", help="make a model of the repository from an ONNX, Keras or PyTorch file")
    )
    return parser


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="measure a model on labelled images")
    evaluate.add_argument("model", metavar="MODEL", help="MODEL or MODEL/VERSION")
    evaluate.add_argument("data", type=Path, metavar="DIR|CSV", help="a folder a class, or a table with file,label")
    evaluate.add_argument("--url", help="a running server; without it the model is loaded here")
    evaluate.add_argument("--against", metavar="VERSION", help="compare with this version, or MODEL/VERSION")
    evaluate.add_argument("--output", type=Path, metavar="FOLDER", help="of the report (fovea-reports/evaluate-MODEL)")
    evaluate.add_argument("--resume", action="store_true", help="continue: ask only what has no answer in FOLDER")
    evaluate.add_argument(
        "--fit", action="append", default=[], choices=("temperature", "thresholds"), help="of [output]; may be repeated"
    )
    evaluate.add_argument(
        "--write-reference", action="store_true", help="write reference.json, what drift is measured against"
    )
    _add_settings(evaluate)


def _add_quantize(commands: Any) -> None:
    quantize = commands.add_parser("quantize", help="an int8 or fp16 copy, if it still answers as well")
    quantize.add_argument("model", metavar="MODEL", help="MODEL or MODEL/VERSION")
    quantize.add_argument(
        "--images", type=Path, required=True, metavar="DIR|CSV", help="to calibrate with; labelled or not"
    )
    quantize.add_argument(
        "--gate", type=Path, metavar="DIR|CSV", help="to judge by; else a part of --images kept apart"
    )
    quantize.add_argument("--precision", choices=("int8", "fp16"), default="int8", help="int8 for CPUs, fp16 for GPUs")
    quantize.add_argument("--name", help="of the new model (MODEL-int8)")
    quantize.add_argument("--as-version", action="store_true", help="a new version of MODEL instead of a new model")
    quantize.add_argument("--replace", action="store_true", help="put it in the place of the model of that name")
    quantize.add_argument(
        "--max-drop", type=float, default=0.5, metavar="POINTS", help="of top-1 on labelled images (default: 0.5)"
    )
    quantize.add_argument(
        "--min-agreement", type=float, default=0.98, metavar="SHARE", help="of top-1 without labels (default: 0.98)"
    )
    _add_settings(quantize)


def _add_tune(commands: Any) -> None:
    tune = commands.add_parser("tune", help="find the most throughput within a latency on this machine")
    tune.add_argument("model", metavar="MODEL", help="MODEL or MODEL/VERSION")
    tune.add_argument(
        "--p99-ms", type=float, default=50.0, metavar="MS", help="what 99 of 100 answers keep (default: 50)"
    )
    tune.add_argument(
        "--budget-s", type=float, default=90.0, metavar="S", help="seconds the search may take (default: 90)"
    )
    tune.add_argument(
        "--images", type=Path, metavar="DIR", help="what to send; else pictures made for the model's input"
    )
    tune.add_argument("--output", type=Path, metavar="FOLDER", help="of the report (fovea-reports/tune-MODEL)")
    tune.add_argument("--dry-run", action="store_true", help="show the manifest's new keys and leave it as it is")
    _add_settings(tune)


class _Numbers(argparse.Action):
    """Numbers as people write them: `104 117 123`, `104,117,123`, and for whole ones `224x224`."""

    def __init__(self, kind: type[int] | type[float], **rest: Any) -> None:
        super().__init__(**rest)
        self._kind = kind

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        numbers: list[int | float] = []
        for value in values:
            parts = value.replace("x", ",").split(",") if self._kind is int else value.split(",")
            try:
                numbers += [self._kind(part) for part in parts if part.strip()]
            except ValueError:
                raise argparse.ArgumentError(self, f"{value!r} is no number") from None
        if not numbers:
            raise argparse.ArgumentError(self, f"{' '.join(values)!r} is no number")
        setattr(namespace, self.dest, numbers)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help=".onnx, .keras, .h5, or .pt2 (torch.export.save)")
    parser.add_argument("--name", required=True, help="the model's name in the repository")
    parser.add_argument("--version", type=int, default=1, metavar="N", help="its version (default: 1)")
    parser.add_argument("--model-repo", metavar="PATH", help="the repository (default: model_repo)")
    parser.add_argument(
        "--try",
        dest="images",
        nargs="+",
        type=Path,
        default=[],
        metavar="IMAGE",
        help="show the answers for images, or folders, under each plausible preprocessing",
    )
    says = parser.add_argument_group("what the file does not say", "asked for, or guessed and reported, where needed")
    says.add_argument("--labels", metavar="LABELS", help="a file (one a line), a folder of class folders, or a,b,c")
    says.add_argument("--preset", choices=_PRESETS, help="how pixels are scaled")
    for name in ("scale", "mean", "std"):
        formula = "(pixel * scale - mean) / std"
        says.add_argument(f"--{name}", nargs="+", action=_Numbers, kind=float, metavar="X", help=formula)
    sides = "height and width, or one for both"
    says.add_argument("--size", nargs="+", action=_Numbers, kind=int, metavar="PIXELS", help=sides)
    says.add_argument("--color", choices=("rgb", "bgr", "gray"), help="bgr where training read with OpenCV")
    says.add_argument("--layout", choices=("nchw", "nhwc"), help="where the channels stand")
    says.add_argument("--frames", type=int, metavar="T", help="frames of a clip")
    says.add_argument(
        "--resize", choices=("stretch", "shortest_side", "letterbox"), help="how a picture comes to the size"
    )
    says.add_argument("--resize-to", type=int, metavar="PIXELS", help="shortest side before the crop")
    says.add_argument("--interpolation", choices=("nearest", "bilinear", "bicubic", "area", "lanczos"))
    says.add_argument("--resampler", choices=("pil", "opencv", "tf"), help="whose arithmetic")
    says.add_argument("--antialias", action=argparse.BooleanOptionalAction, default=None, help="for --resampler tf")
    says.add_argument("--task", choices=("multiclass", "multilabel", "binary"))
    says.add_argument("--activation", choices=("softmax", "sigmoid", "none"), help="what the server applies")
    says.add_argument("--output", metavar="NAME", help="the output that classifies, where there are several")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings", "flags > environment FOVEA_<SECTION>__<FIELD> > file > default")
    group.add_argument("--config", type=Path, metavar="FILE", help="a settings file (TOML)")
    group.add_argument("--model-repo", metavar="PATH", help="short for --repository.path")
    for section, name, field in config.fields():
        described = (field.description or "").replace("%", "%%")
        group.add_argument(
            config.flag(section, name),
            dest=f"{section}.{name}",
            metavar=config.type_name(field.annotation).upper(),
            help=described,
        )


def _settings(arguments: argparse.Namespace) -> Settings:
    given = {
        (section, name): value
        for section, name, _ in config.fields()
        if (value := getattr(arguments, f"{section}.{name}")) is not None
    }
    if arguments.model_repo is not None:
        given["repository", "path"] = arguments.model_repo
    return config.load(given, os.environ, arguments.config)


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    if arguments.print_settings:
        print(config.as_toml(settings), end="")
        return 0
    from service.rest.run import serve  # late: `fovea --help` should not load onnxruntime

    return serve(settings)


def _check(arguments: argparse.Namespace) -> int:
    from service.workbench import baseline
    from service.workbench.check import check_repository

    settings = _settings(arguments)
    if arguments.write_golden:
        return baseline.write_golden(settings, arguments.model)
    if arguments.write_reference:
        return baseline.write_reference(settings, arguments.model, arguments.write_reference)
    return check_repository(settings)


def _classify(arguments: argparse.Namespace) -> int:
    from service.workbench.classify import classify_files

    return classify_files(
        arguments.files,
        _settings(arguments),
        arguments.model,
        arguments.url,
        arguments.top_k,
        as_json=arguments.json,
        output=arguments.output,
        resume=arguments.resume,
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from service.workbench.evaluate import Options, evaluate

    options = Options(
        arguments.model,
        arguments.data,
        arguments.url,
        arguments.against,
        arguments.output,
        arguments.resume,
        tuple(arguments.fit),
        arguments.write_reference,
    )
    return evaluate(_settings(arguments), options)


def _quantize(arguments: argparse.Namespace) -> int:
    from service.workbench.quantize import Options, quantize

    options = Options(
        arguments.model,
        arguments.images,
        arguments.precision,
        arguments.gate,
        arguments.name,
        arguments.as_version,
        arguments.replace,
        arguments.max_drop,
        arguments.min_agreement,
    )
    return quantize(_settings(arguments), options)


def _tune(arguments: argparse.Namespace) -> int:
    from service.workbench.tune import Options, tune

    write = not arguments.dry_run
    options = Options(arguments.model, arguments.p99_ms, arguments.budget_s, arguments.images, arguments.output, write)
    return tune(_settings(arguments), options)


def _import(arguments: argparse.Namespace) -> int:
    from service.workbench.importing import run

    given = {} if arguments.model_repo is None else {("repository", "path"): arguments.model_repo}
    return run(vars(arguments), config.load(given, os.environ, None).repository.path)


_COMMANDS = {
    "serve": _serve,
    "check": _check,
    "classify": _classify,
    "evaluate": _evaluate,
    "quantize": _quantize,
    "tune": _tune,
    "import": _import,
}
