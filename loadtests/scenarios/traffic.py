"""What every scenario shares: a user that sends photographs, and how many of them there are over time.

Every answer is one of three: good, shed (503: the service protects itself and says when to come back) or failed. Shed
ones are listed under names of their own, so that their quick answers flatter no percentile.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import gevent
from locust import FastHttpUser, LoadTestShape, events
from payloads import PAYLOADS, TENSOR_PAYLOADS, Payload

SHED = " (shed)"
_LONGEST_WAIT_SECONDS = 3.0  # the largest Retry-After that the service gives


@events.init_command_line_parser.add_listener
def _add_options(parser: Any) -> None:
    group = parser.add_argument_group("Traffic")
    group.add_argument("--seconds", type=float, default=60.0, env_var="LOAD_SECONDS", help="Length of the run")
    group.add_argument("--clients", type=int, default=8, env_var="LOAD_CLIENTS", help="Clients at the busiest moment")
    group.add_argument("--rate", type=float, default=50.0, env_var="LOAD_RATE", help="Requests a second (open_loop)")


class PayloadMix:
    """Payloads in given shares. Made when the scenario is loaded: encoding photographs is not part of the load."""

    def __init__(self, shares: dict[str, float], seed: int = 0) -> None:
        self._payloads = [(PAYLOADS | TENSOR_PAYLOADS)[name]() for name in shares]
        self._weights = list(shares.values())
        self._bodies = {payload.name: itertools.cycle(payload.bodies) for payload in self._payloads}
        self._random = random.Random(seed)

    def next(self) -> tuple[Payload, bytes]:
        """A payload by its share, and the next of its bodies in rotation."""
        payload = self._random.choices(self._payloads, self._weights)[0]
        return payload, next(self._bodies[payload.name])


class Classifier(FastHttpUser):
    """Sends one photograph after the other; waits as `Retry-After` says where it was shed. A scenario gives the mix."""

    abstract = True
    mix: ClassVar[PayloadMix]

    def classify(self) -> None:
        """One request of the mix, and the wait that the service asks for."""
        gevent.sleep(self.send())

    def send(self, intended_at: float | None = None) -> float:
        """One request of the mix. Latency counts from `intended_at` (`time.perf_counter`) where it is given.

        Returns the seconds after which the service wants to see this client again.
        """
        payload, body = self.mix.next()
        with self.client.post(
            payload.path,
            data=body,
            headers={"Content-Type": payload.content_type, **payload.headers},
            name=payload.name,
            catch_response=True,
        ) as answer:
            if intended_at is not None:
                answer.request_meta["response_time"] = (time.perf_counter() - intended_at) * 1000.0
            if answer.status_code == 503 and "retry-after" in answer.headers:
                answer.request_meta["name"] = payload.name + SHED
                answer.success()
                return min(float(answer.headers["retry-after"]), _LONGEST_WAIT_SECONDS)
            if answer.status_code == 200 and not _is_answer(payload, answer):
                answer.failure("an answer without predictions")
        return 0.0


def _is_answer(payload: Payload, answer: Any) -> bool:
    if payload.path.startswith("/v2/"):
        return "inference-header-content-length" in answer.headers
    return bool(answer.json()["results"][0].get("predictions"))


class Shape(LoadTestShape):
    """How many clients there are: `share(part)` of `--clients` when that part of the run is over."""

    abstract = True
    share: Callable[[float], float]

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        part = self.get_run_time() / options.seconds
        if part >= 1:
            return None
        clients = max(1, round(self.share(part) * options.clients))
        return clients, float(options.clients)  # the whole change within a second


def constant() -> type[Shape]:
    """All clients, all the time."""
    return _shape("Constant", lambda part: 1.0)


def stepped(steps: Iterable[float]) -> type[Shape]:
    """Equal stretches of the run with these shares of the clients."""
    shares = list(steps)
    return _shape("Stepped", lambda part: shares[int(part * len(shares))])


def _shape(name: str, share: Callable[[float], float]) -> type[Shape]:
    return type(name, (Shape,), {"abstract": False, "share": lambda self, part: share(part)})
