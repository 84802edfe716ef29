"""Tensors: float32 photographs over /v2 in binary form, as tritonclient sends them. Shows what the wire costs."""

from gate import Slo, hold_to
from locust import task
from traffic import Classifier, PayloadMix, constant

# As steady: 8 clients wait for each other, and a request is four images.
hold_to(Slo(max_p99_ms=600))
Load = constant()


class Tensors(Classifier):
    mix = PayloadMix({"tensor": 1})

    @task
    def tensor(self) -> None:
        self.classify()
