"""Steady: as many clients from the first second to the last, photographs only. The figure to compare releases by."""

from gate import Slo, hold_to
from locust import task
from traffic import Classifier, PayloadMix, constant

# 8 clients keep two cores busy and wait for 6 others: about 8 / 170 s, three times that at worst.
hold_to(Slo(max_p99_ms=150))
Load = constant()


class Steady(Classifier):
    mix = PayloadMix({"photo": 1})

    @task
    def photograph(self) -> None:
        self.classify()
