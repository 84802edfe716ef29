"""Settings: one frozen tree, one section a component, documented at the field.

Owns where values come from (flags > environment > file > default) and that a wrong or unknown one stops the start
and names itself. Of the environment only `FOVEA_<SECTION>__<FIELD>` is read, so that what Kubernetes injects for a
Service named `fovea` (`FOVEA_PORT`, `FOVEA_SERVICE_HOST`, ...) does no harm.
Knows nothing of what the values do.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from service.errors import ConfigurationError

MIB = 1024 * 1024


def _split(value: object) -> object:
    """`a,b` from a flag or the environment is a list; a list from a file is one already."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _prefix(path: str) -> str:
    """A URL prefix without its final slash. Refuses what could be one of the service's own paths."""
    path = path.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path):
        raise ValueError("must be a path such as /vision")
    if OWN_PATHS.intersection(path.split("/")[1:2]):
        raise ValueError("begins like a path of the service itself, so the two could not be told apart")
    return path


# First parts of our own paths
OWN_PATHS = frozenset(
    {"api", "docs", "docs-assets", "livez", "metrics", "openapi.json", "readyz", "startupz", "static", "v1", "v2"}
)


def _given(value: object) -> object:
    """A variable that is set to nothing was meant to hold a secret: without one the service would be open."""
    given = value if isinstance(value, list) else [value]
    if any(isinstance(one, str) and not one.strip() for one in given):
        raise ValueError("is empty; give a token, or leave the setting out")
    return value


Prefix = Annotated[str, AfterValidator(_prefix)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Secret = Annotated[SecretStr | None, BeforeValidator(_given)]
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_split), BeforeValidator(_given)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServerSettings(_Section):
    """The listener and the process's end."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one and logs it.")
    root_path: Prefix = Field(
        "", description="Prefix under which a proxy publishes the service, like /vision; taken off or passed on."
    )
    tls_certificate: Path | None = Field(None, description="PEM file of certificate and chain; plain HTTP without.")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key.")
    cors_origins: Names = Field((), description="Origins that browsers may call from; none by default.")
    drain_delay_s: float = Field(
        5.0, ge=0, description="Seconds between SIGTERM and closing the listener: load balancers notice in them."
    )
    grace_s: float = Field(
        30.0, gt=0, description="Seconds that accepted requests may take after the listener has closed."
    )
    keep_alive_s: float = Field(
        75.0, gt=0, description="Idle seconds before a kept-alive connection is closed: longer than a proxy's 60."
    )
    backlog: int = Field(1024, ge=1, description="Connections the kernel queues before they are accepted.")


class RepositorySettings(_Section):
    """Where models are and how they are watched."""

    path: Path = Field(Path("model_repo"), description="The model repository.")
    poll_interval_s: float = Field(5.0, ge=0, description="Seconds between looks at the repository; 0 = only once.")
    required: Names = Field((), description="Models without which the server is not ready; none by default.")
    require_checksums: bool = Field(False, description="Refuse versions without SHA256SUMS.")
    max_version_bytes: int = Field(2048 * MIB, ge=1, description="Largest version, all its files together.")
    load_timeout_s: float = Field(120.0, gt=0, description="Seconds that loading a version may take.")


class AdminSettings(_Section):
    """Calls that change the server."""

    token: Secret = Field(None, description="Bearer token of admin calls; they are off without one.")
    token_file: Path | None = Field(
        None, description="File of further admin tokens, one a line; read again when it changes."
    )


class AuthSettings(_Section):
    """Who may ask for predictions."""

    tokens: Secrets = Field((), description="Bearer tokens accepted for inference; open when there are none.")
    tokens_file: Path | None = Field(
        None, description="File of further tokens for inference, one a line; read again when it changes."
    )


class LimitSettings(_Section):
    """Bounds on what one request, and all of them together, may take."""

    body_bytes: int = Field(20 * MIB, ge=1, description="Largest raw or multipart body.")
    json_body_bytes: int = Field(28 * MIB, ge=1, description="Largest JSON body: 20 MiB of image in base64.")
    tensor_body_bytes: int = Field(
        32 * MIB, ge=1, description="Largest body of /v2 and /v1, inflated: 32 float32 images of 224 x 224 are 19 MiB."
    )
    image_bytes: int = Field(20 * MIB, ge=1, description="Largest single encoded image.")
    max_images: int = Field(16, ge=1, description="Images in one request.")
    max_rows: int = Field(64, ge=1, description="Tensor rows in one request.")
    source_pixels: int = Field(100_000_000, ge=1, description="Pixels of a JPEG before DCT scaling.")
    decoded_pixels: int = Field(25_000_000, ge=1, description="Pixels of any image as decoded.")
    image_side: int = Field(16_384, ge=1, description="Longest side of an image in pixels.")
    decode_bytes: int = Field(256 * MIB, ge=1, description="Bytes of pixels being decoded at once.")
    image_formats: Names = Field(
        ("jpeg", "png", "webp"), description="Formats taken; gif, bmp, tiff and avif can be added."
    )
    timeout_ms: int = Field(5_000, ge=1, description="Deadline of a request; callers may only shorten it.")
    inflight_requests: int = Field(1_024, ge=1, description="Requests in flight before new ones are refused.")
    inflight_bytes: int = Field(512 * MIB, ge=1, description="Bytes of bodies in flight before new ones are refused.")
    connections: int = Field(
        2_048, ge=1, description="Connections held open; then idle ones make room: twice inflight_requests, for probes."
    )
    uri_bytes: int = Field(4_096, ge=1, description="Longest request target.")
    header_bytes: int = Field(16_384, ge=1, description="Largest head of a request.")
    header_fields: int = Field(100, ge=1, description="Header fields of a request.")
    header_timeout_s: float = Field(5.0, gt=0, description="Seconds that a head may take; a TLS handshake, too.")
    body_grace_s: float = Field(
        10.0, gt=0, description="Seconds a body may take to arrive; one more for every 256 KiB that have come."
    )
    body_timeout_s: float = Field(30.0, gt=0, description="Seconds a body may take to arrive, however large.")
    write_timeout_s: float = Field(30.0, gt=0, description="Seconds a client may leave its answer unread.")


class ExecutionSettings(_Section):
    """The threads that decode, run and finish."""

    threads: int = Field(0, ge=0, description="Execution threads; 0 = the CPUs usable under affinity and cgroup quota.")
    hang_s: float = Field(
        15.0, gt=0, description="Seconds after which an execution is ended: three times the longest deadline."
    )


class DriftSettings(_Section):
    """Predictions against a version's reference.json."""

    window_images: int = Field(2000, ge=200, description="Images that the drift gauges look back on.")


class LogSettings(_Section):
    """JSON lines on stdout."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level written.")
    success_sample: float = Field(1.0, ge=0, le=1, description="Share of successful requests that are logged.")
    slow_ms: float = Field(1_000.0, gt=0, description="A request slower than this is always logged.")


class Settings(_Section):
    """The whole tree."""

    server: ServerSettings = ServerSettings()
    repository: RepositorySettings = RepositorySettings()
    admin: AdminSettings = AdminSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    execution: ExecutionSettings = ExecutionSettings()
    drift: DriftSettings = DriftSettings()
    log: LogSettings = LogSettings()


_SECRETS = {("admin", "token"), ("auth", "tokens")}
_Tree = dict[str, dict[str, Any]]
_VARIABLE = re.compile(r"FOVEA_([A-Z]+)__([A-Z0-9_]+)")


def fields() -> Iterable[tuple[str, str, FieldInfo]]:
    """Every setting as (section, field, its description): the reference, the flags and the checks come from here."""
    for section, info in Settings.model_fields.items():
        annotation = info.annotation
        assert isinstance(annotation, type) and issubclass(annotation, _Section)
        for name, field in annotation.model_fields.items():
            yield section, name, field


def type_name(annotation: Any) -> str:
    """A field's type as a person would say it: `int`, `list`, `path`, ..."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, UnionType):
        return type_name(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return "list"
    return {Path: "path", SecretStr: "secret"}.get(annotation, getattr(annotation, "__name__", "str"))


def flag(section: str, name: str) -> str:
    """`--repository.poll-interval-s` for the field `poll_interval_s` of `repository`."""
    return f"--{section}.{name.replace('_', '-')}"


def load(
    flags: Mapping[tuple[str, str], str] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Merge the sources, validate, and freeze. Raises ConfigurationError that names the setting and its source."""
    sources: list[tuple[str, _Tree]] = [
        (f"file {file}", _from_file(file) if file else {}),
        ("environment", _from_environment(environment or {})),
        ("flag", _from_flags(flags or {})),
    ]
    merged: _Tree = {}
    origin: dict[tuple[str, str], str] = {}
    for source, tree in sources:
        for section, values in tree.items():
            for name, value in values.items():
                merged.setdefault(section, {})[name] = value
                origin[section, name] = source
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, origin)) from None


def _from_file(path: Path) -> _Tree:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"settings file {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"settings file {path}: {error}") from None
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise ConfigurationError(f"settings file {path}: {section!r} is not a [section]")
    return tree


def _from_environment(environment: Mapping[str, str]) -> _Tree:
    tree: _Tree = {}
    for variable, value in environment.items():
        if match := _VARIABLE.fullmatch(variable):
            tree.setdefault(match[1].lower(), {})[match[2].lower()] = value
    return tree


def _from_flags(flags: Mapping[tuple[str, str], str]) -> _Tree:
    tree: _Tree = {}
    for (section, name), value in flags.items():
        tree.setdefault(section, {})[name] = value
    return tree


def _explain(error: ValidationError, origin: Mapping[tuple[str, str], str]) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        place = tuple(str(part) for part in problem["loc"][:2])
        source = origin.get((place[0], place[1])) if len(place) == 2 else None
        source = source or next((known for (section, _), known in origin.items() if section == place[0]), "settings")
        named = _as_written(place, source)
        if problem["type"] == "extra_forbidden":
            lines.append(f"{named}: there is no such setting; `fovea serve --print-settings` lists them all")
        else:
            got = "a secret" if place in _SECRETS else repr(problem["input"])
            lines.append(f"{named}: {problem['msg']} (got {got})")
    return "; ".join(lines)


def _as_written(place: Sequence[str], source: str) -> str:
    if source == "environment":
        return "environment FOVEA_" + "__".join(part.upper() for part in place)
    if source == "flag" and len(place) == 2:
        return flag(place[0], place[1])
    return f"{source}: {'.'.join(place)}"


def as_toml(settings: Settings) -> str:
    """The tree as a settings file, each field with its description; secrets are masked."""
    lines: list[str] = []
    current = ""
    for section, name, field in fields():
        if section != current:
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
            current = section
        value = getattr(getattr(settings, section), name)
        lines.append(f"# {field.description}")
        lines.append(f"{'# ' if value is None else ''}{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's
