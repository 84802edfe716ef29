"""`fovea` that keeps some bytes of every request, to see whether the soak sees it: leaky_server.py BYTES serve ..."""

import sys

from starlette.types import ASGIApp, Receive, Scope, Send

from service.cli import main
from service.rest import run

KEPT: list[bytes] = []


def leaking(app: ASGIApp, nbytes: int) -> ASGIApp:
    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        KEPT.append(b"x" * nbytes)
        await app(scope, receive, send)

    return layer


if __name__ == "__main__":
    size, create_app = int(sys.argv[1]), run.create_app
    run.create_app = lambda *arguments: leaking(create_app(*arguments), size)
    sys.exit(main(sys.argv[2:]))
