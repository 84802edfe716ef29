"""Mixed: all models at once, from 28x28 to photographs of 12 megapixels. Shows what the large cost the small."""

from gate import Slo, hold_to
from locust import task
from traffic import Classifier, PayloadMix, constant

hold_to(Slo(max_p99_ms=500, max_shed_ratio=0.01))
Load = constant()


class Mixed(Classifier):
    mix = PayloadMix({"digit": 4, "fashion": 3, "photo": 5, "phone": 0.5})

    @task
    def picture(self) -> None:
        self.classify()
