"""Open loop: photographs arrive at `--rate` a second like strangers do (Poisson), whatever became of those before.

Latency counts from the moment a request was due, so that a stalled service cannot slow down its own measurement. One
user makes all arrivals; `--clients` bounds nothing here.
"""

import random
import time
from collections.abc import Iterator

import gevent
from gate import Slo, hold_to
from locust import task
from locust.exception import StopUser
from traffic import Classifier, PayloadMix, Shape

hold_to(Slo(max_p99_ms=250, max_shed_ratio=0.01))


class OneUser(Shape):
    def share(self, part: float) -> float:
        return 0.0  # never less than one


class Arrivals(Classifier):
    mix = PayloadMix({"photo": 1})
    concurrency = 1024  # connections; the service admits as many requests

    @task
    def arrive(self) -> None:
        options = self.environment.parsed_options
        started_at = time.perf_counter()
        on_their_way = []
        for due in due_times(options.rate, options.seconds):
            gevent.sleep(max(0.0, started_at + due - time.perf_counter()))
            on_their_way.append(gevent.spawn(self.send, started_at + due))
        gevent.joinall(on_their_way)
        raise StopUser  # the run is over; do not begin another


def due_times(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """Seconds from the start at which requests are due: a Poisson process of `rate` a second."""
    gaps = random.Random(seed)
    due = gaps.expovariate(rate)
    while due < seconds:
        yield due
        due += gaps.expovariate(rate)
