"""Ramp: from one client to all of them in ten steps. Shows where latency bends while throughput no longer grows."""

from gate import Slo, hold_to
from locust import task
from traffic import Classifier, PayloadMix, stepped

hold_to(Slo(max_p99_ms=500, max_shed_ratio=0.01))
Load = stepped(step / 10 for step in range(1, 11))


class Ramp(Classifier):
    mix = PayloadMix({"photo": 1})

    @task
    def photograph(self) -> None:
        self.classify()
