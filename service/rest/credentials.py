"""Who may ask for what: bearer tokens in front of every route, looked at before any of the body is read.

Deny by default: a path that is neither public nor admin's needs a token for inference as soon as there are any, whether
there is such a route or not. Holds digests, not tokens. Knows no protocol's bodies.
"""

import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable
from enum import Enum
from hashlib import sha256
from pathlib import Path

from pydantic import SecretStr
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.config import Settings
from service.errors import AdminDisabled, ConfigurationError, Forbidden, FoveaError, Unauthorized
from service.metrics import Metrics
from service.rest import errors
from service.rest.context import route_path

logger = logging.getLogger("fovea.credentials")

_LOOK_SECONDS = 1.0  # a token taken out of a file is refused this much later
_WEAK_CHARACTERS = 16  # fewer cannot hold 128 bits of chance

# Probes, metrics, page and docs: open to everyone, always
PUBLIC = frozenset(
    {
        "",  # a prefix without its final slash, which sends on to the page
        "/",
        "/livez",
        "/readyz",
        "/startupz",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
PUBLIC_FOLDERS = ("/docs-assets/", "/static/")
ADMIN = re.compile(r"/v2/repository/models/[^/]+/(load|unload)|/api/v1/models/[^/]+/rollout")


class Access(Enum):
    """What a path asks of its caller."""

    PUBLIC = "public"
    INFERENCE = "inference"
    ADMIN = "admin"


def access_to(path: str) -> Access:
    """By the path as our routes name it, decoded once, which is also what they match."""
    if ADMIN.fullmatch(path):
        return Access.ADMIN
    if path in PUBLIC or path.startswith(PUBLIC_FOLDERS):
        return Access.PUBLIC
    return Access.INFERENCE


class Tokens:
    """The tokens of one setting and of one file, which is read again when it has changed. Event loop only."""

    def __init__(
        self,
        name: str,
        given: Iterable[SecretStr],
        file: Path | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._clock = clock
        self._file = file
        self._state: tuple[int, int, int] | None = None
        self._looked_at = clock()
        self._given = _digests(name, [token.get_secret_value() for token in given])
        self._filed: tuple[bytes, ...] = ()
        self.are_wanted = bool(self._given) or file is not None
        if file is not None:
            try:
                self._read(file)
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"{name}_file: {file}: {_reason(error)}") from None

    def hold(self, credential: bytes) -> bool:
        """Whether it is one of them. Takes as long for a wrong one as for a right one."""
        self._look()
        digest = sha256(credential).digest()
        found = False
        for known in (*self._given, *self._filed):
            found |= hmac.compare_digest(digest, known)
        return found

    def _look(self) -> None:
        if self._file is None or self._clock() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = self._clock()
        try:
            self._read(self._file)
        except (OSError, UnicodeDecodeError) as error:
            if self._state is not None:  # said once; what was read last goes on to hold
                logger.warning("tokens_unreadable", extra={"setting": f"{self._name}_file", "reason": _reason(error)})
            self._state = None

    def _read(self, file: Path) -> None:
        now = file.stat()
        state = (now.st_mtime_ns, now.st_ino, now.st_size)
        if state == self._state:
            return
        lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        self._filed = _digests(f"{self._name}_file", [line for line in lines if line and not line.startswith("#")])
        self._state = state
        logger.info("tokens_read", extra={"setting": f"{self._name}_file", "tokens": len(self._filed)})


def _digests(name: str, tokens: Iterable[str]) -> tuple[bytes, ...]:
    known = list(tokens)
    if any(len(token) < _WEAK_CHARACTERS for token in known):
        logger.warning("weak_token", extra={"setting": name, "remedy": "make one by: openssl rand -hex 32"})
    return tuple(sha256(token.encode()).digest() for token in known)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class Credentials:
    """The tokens of a server, and the verdict on a request."""

    def __init__(self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        admin, auth = settings.admin, settings.auth
        self._admin = Tokens("admin.token", [admin.token] if admin.token else [], admin.token_file, clock)
        self._inference = Tokens("auth.tokens", auth.tokens, auth.tokens_file, clock)
        self._metrics = metrics

    @property
    def are_wanted_for_inference(self) -> bool:
        return self._inference.are_wanted

    def check(self, scope: Scope) -> None:
        """Raises AdminDisabled, Unauthorized or Forbidden."""
        access = access_to(route_path(scope))
        if access is Access.PUBLIC or (access is Access.INFERENCE and not self._inference.are_wanted):
            return
        try:
            self._check(access, scope)
        except FoveaError as error:
            self._metrics.auth_failures.labels(error.code).inc()
            raise

    def _check(self, access: Access, scope: Scope) -> None:
        if access is Access.ADMIN and not self._admin.are_wanted:
            raise AdminDisabled("Loading and unloading are off: the server has no admin.token.")
        wanted = "the admin token" if access is Access.ADMIN else "a token"
        credential = _bearer(scope)
        if credential is None:
            raise Unauthorized(f"Send {wanted} as `Authorization: Bearer <token>`, once.")
        is_admin, may_infer = self._admin.hold(credential), self._inference.hold(credential)
        if is_admin or (may_infer and access is Access.INFERENCE):
            return
        if may_infer:
            raise Forbidden("This token is for inference; changing the server needs the admin token.")
        raise Unauthorized(f"The token is not known. Send {wanted} as `Authorization: Bearer <token>`.")


def _bearer(scope: Scope) -> bytes | None:
    """The one bearer token of a request; None where there is none, or more than one credential."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, credential = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    return credential.strip() or None if scheme.lower() == b"bearer" else None


class CredentialLayer:
    """Lets to `app` what may pass, and answers the rest."""

    def __init__(self, app: ASGIApp, credentials: Credentials) -> None:
        self._app = app
        self._credentials = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._credentials.check(scope)
        except FoveaError as error:
            response = errors.error_response(Request(scope), error)
            if _has_body(scope):
                response.headers["connection"] = "close"  # none of it is read for a stranger
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )
