"""Soak: a comfortable load for hours (`make load SCENARIO=soak ARGS='--seconds 14400'`), to see what creeps.

Clients pause between photographs, so that the service has room; leaks show in `/metrics` (memory, file descriptors).
"""

from gate import Slo, hold_to
from locust import constant_throughput, task
from traffic import Classifier, PayloadMix, constant

hold_to(Slo(max_p99_ms=250))
Load = constant()


class Soak(Classifier):
    mix = PayloadMix({"photo": 6, "digit": 3, "phone": 0.1})
    wait_time = constant_throughput(5)  # requests a second for each client

    @task
    def photograph(self) -> None:
        self.classify()
