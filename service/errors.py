"""What can go wrong, by name: one class per fault a caller or an operator can meet.

Owns the stable words (`code`) that clients match on and the outcome under which a request is counted.
Knows no HTTP: each front-end has its own table from code to status.
"""

from enum import StrEnum
from typing import ClassVar


class Outcome(StrEnum):
    """How a request ended, as the metric `fovea_requests_total` counts it."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    REJECTED = "rejected"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    ERROR = "error"


class FoveaError(Exception):
    """Base of all faults that a caller is told about. `str(error)` is safe to show: no path, no internals."""

    code: ClassVar[str] = "internal_error"
    outcome: ClassVar[Outcome] = Outcome.ERROR


# What the caller sent


class MalformedRequest(FoveaError):
    """The body cannot be parsed as what it says it is."""

    code = "malformed_request"
    outcome = Outcome.CLIENT_ERROR


class EmptyBody(MalformedRequest):
    code = "empty_body"


class InvalidParameter(FoveaError):
    """A parameter was understood and is out of range, of the wrong type, or given twice."""

    code = "invalid_parameter"
    outcome = Outcome.CLIENT_ERROR


class PayloadTooLarge(FoveaError):
    """More bytes, parts or images than the limits allow."""

    code = "payload_too_large"
    outcome = Outcome.CLIENT_ERROR


class BodyTimeout(FoveaError):
    """The body did not arrive in time."""

    code = "body_timeout"
    outcome = Outcome.CLIENT_ERROR


class UnsupportedMediaType(FoveaError):
    """The content type, content encoding or image format is not one this service takes."""

    code = "unsupported_media_type"
    outcome = Outcome.CLIENT_ERROR


class UnsupportedContentEncoding(UnsupportedMediaType):
    """The body is compressed in a way that is not taken."""


class MediaTypeMismatch(UnsupportedMediaType):
    """The bytes are an image of another format than the declared one."""

    code = "media_type_mismatch"


class InvalidImage(FoveaError):
    """The image does not decode, or breaks a limit on pixels or sides."""

    code = "invalid_image"
    outcome = Outcome.CLIENT_ERROR


class ImageTooLarge(InvalidImage):
    """The header announces more pixels or a longer side than the limits allow; nothing was decoded."""

    code = "image_too_large"


class InvalidTensor(FoveaError):
    """A tensor that the model does not take: its name, type, shape or values, or an image in its place."""

    code = "invalid_tensor"
    outcome = Outcome.CLIENT_ERROR


class NonFiniteOutput(FoveaError):
    """The answer holds NaN or an infinity, which the asked-for form cannot say."""

    code = "non_finite_output"
    outcome = Outcome.CLIENT_ERROR


class ClientDisconnected(FoveaError):
    """The caller left before the answer."""

    code = "client_disconnected"
    outcome = Outcome.CANCELLED


# Which model was asked for


class ModelNotFound(FoveaError):
    """No model of that name, or no such version of it."""

    code = "model_not_found"
    outcome = Outcome.CLIENT_ERROR


class NoModelCard(FoveaError):
    """The model is there, and no card to read."""

    code = "no_model_card"
    outcome = Outcome.CLIENT_ERROR


class NoImageSignature(FoveaError):
    """The model has no preprocessing in its manifest: it takes tensors, not images."""

    code = "no_image_signature"
    outcome = Outcome.CLIENT_ERROR


class ModelNotReady(FoveaError):
    """The model is in the repository and cannot serve now."""

    code = "model_not_ready"
    outcome = Outcome.REJECTED


# Who may ask, and who may change the server


class AdminDisabled(FoveaError):
    """Admin calls are off: no token is configured."""

    code = "admin_disabled"
    outcome = Outcome.CLIENT_ERROR


class Unauthorized(FoveaError):
    """The credential is missing or wrong."""

    code = "unauthorized"
    outcome = Outcome.CLIENT_ERROR


class Forbidden(FoveaError):
    """The credential is known, and not for this."""

    code = "forbidden"
    outcome = Outcome.CLIENT_ERROR


class LoadRefused(FoveaError):
    """A model that was asked for did not come up; the message has the reason."""

    code = "load_refused"
    outcome = Outcome.CLIENT_ERROR


class RolloutRefused(FoveaError):
    """A version cannot take the role that was asked for; what served goes on."""

    code = "rollout_refused"
    outcome = Outcome.CLIENT_ERROR


# What the server cannot do now


class Overloaded(FoveaError):
    """Refused or dropped to keep the queue short.

    `reason` is one of a closed set (a metric label); `retry_after_seconds` is 1 to 3, from the backlog.
    """

    code = "overloaded"
    outcome = Outcome.REJECTED

    def __init__(self, message: str, *, reason: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Draining(Overloaded):
    """The server is shutting down and takes no new work."""

    code = "draining"

    def __init__(self) -> None:
        super().__init__("The server is shutting down.", reason="draining", retry_after_seconds=1)


class OutOfMemory(Overloaded):
    """An allocation failed while this request was worked on."""

    code = "out_of_memory"

    def __init__(self) -> None:
        super().__init__("Not enough memory for this request now.", reason="out_of_memory", retry_after_seconds=2)


class DeadlineExceeded(FoveaError):
    """The request's own deadline passed before the answer was there."""

    code = "deadline_exceeded"
    outcome = Outcome.TIMEOUT


class EngineFailed(FoveaError):
    """The model could not be run, or gave an output that is no answer."""

    code = "engine_error"


class EngineRefusedInput(EngineFailed):
    """The engine says that it is the input that is at fault."""


class InternalError(FoveaError):
    """A bug of ours."""


# What the operator wrote


class ConfigurationError(FoveaError):
    """A setting, a manifest or a model folder is wrong.

    The message names place, field, value, reason and remedy; it is for operators, not for callers.
    """

    code = "configuration_error"


class ModelLoadError(ConfigurationError):
    """A version that cannot be served, and why. `gate` is which check it failed: a metric label, of GATES."""

    code = "model_load_error"

    def __init__(self, message: str, *, gate: str = "manifest") -> None:
        super().__init__(message)
        self.gate = gate


# What a version has to pass before it serves, in order
GATES = (
    "files",  # missing, a link, unreadable
    "size",  # bytes, nodes, tensors over their caps
    "checksum",
    "manifest",
    "operators",  # of a foreign domain, or reading files
    "external_data",
    "engine",  # ONNX Runtime refuses it
    "signature",  # graph and manifest do not fit
    "labels",
    "warm_up",
    "golden",
    "time_out",
    "internal",  # a bug of ours
)


def all_codes() -> dict[str, type[FoveaError]]:
    """Every code that can reach a caller, with its class: front-ends must have a row for each."""
    found: dict[str, type[FoveaError]] = {}
    pending: list[type[FoveaError]] = [FoveaError]
    while pending:
        cls = pending.pop()
        found.setdefault(cls.code, cls)
        pending.extend(cls.__subclasses__())
    return found
