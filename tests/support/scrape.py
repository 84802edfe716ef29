"""One look at /metrics, parsed by the parser that Prometheus' own client ships."""

from collections.abc import Mapping
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]


class Scrape:
    """Samples by name and labels. `families` maps a family's name to its type."""

    def __init__(self, samples: Mapping[tuple[str, Labels], float], families: Mapping[str, str]) -> None:
        self.samples = samples
        self.families = families

    @classmethod
    def parse(cls, text: str) -> Self:
        samples: dict[tuple[str, Labels], float] = {}
        families: dict[str, str] = {}
        for family in text_string_to_metric_families(text):
            families[family.name] = family.type
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in samples, f"{key} is there twice"
                samples[key] = sample.value
        return cls(samples, families)

    def total(self, name: str, **labels: str) -> float:
        """The sum over every series of `name` that has these labels; 0 where there is none."""
        wanted = set(labels.items())
        return sum(value for (found, have), value in self.samples.items() if found == name and wanted <= set(have))

    def label_names(self, name: str) -> set[frozenset[str]]:
        """Each set of label names that series of `name` have."""
        return {frozenset(label for label, _ in have) for found, have in self.samples if found == name}

    def label_values(self, name: str, label: str) -> set[str]:
        return {dict(have)[label] for found, have in self.samples if found == name and label in dict(have)}

    def grown(self, before: "Scrape", name: str, **labels: str) -> float:
        """By how much `total` grew since `before`."""
        return self.total(name, **labels) - before.total(name, **labels)

    def changes(self, before: "Scrape", name: str) -> dict[Labels, float]:
        """Every series of `name` that moved since `before`, and by how much."""
        moved: dict[Labels, float] = {}
        for (found, have), value in self.samples.items():
            if found == name and (change := value - before.samples.get((found, have), 0.0)):
                moved[have] = change
        return moved
