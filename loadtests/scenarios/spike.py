"""Spike: an eighth of the clients, suddenly all of them for a third of the run, then an eighth again.

The service may shed during the spike; it may fail nothing, and what it answers it answers within the queue's wait.
"""

from gate import Slo, hold_to
from locust import task
from traffic import Classifier, PayloadMix, stepped

hold_to(Slo(max_p99_ms=1500, max_shed_ratio=0.5))  # 1 s of queue wait at most, and the execution
Load = stepped((0.125, 1.0, 0.125))


class Spike(Classifier):
    mix = PayloadMix({"photo": 1})

    @task
    def photograph(self) -> None:
        self.classify()
