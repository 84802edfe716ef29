"""The command line: parses, calls, prints; nothing else."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from service import __version__, config
from service.config import Settings
from service.errors import ConfigurationError


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
    classify.add_argument("--model", default="imagenet", help="model to ask (default: imagenet)")
    classify.add_argument("--url", help="a running server; without it the model is loaded here")
    classify.add_argument("--top-k", type=int, default=5, choices=range(1, 101), metavar="K", help="labels an image")
    classify.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_settings(classify)
    return parser


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
        arguments.files, _settings(arguments), arguments.model, arguments.url, arguments.top_k, as_json=arguments.json
    )


_COMMANDS = {"serve": _serve, "check": _check, "classify": _classify}
