"""Counts and durations of versions: what they add up to, and for how long they are kept."""

from service.inference_statistics import Execution, Statistics, VersionStatistics
from service.messages import Timings


def test_a_version_in_service_keeps_its_statistics_whatever_comes_and_goes() -> None:
    statistics = Statistics()
    held = statistics.of("cats", 1)
    for version in range(2, 102):
        statistics.gone(statistics.of("cats", version))
    assert statistics.of("cats", 1) is held


def test_of_versions_that_went_only_the_last_few_are_known() -> None:
    statistics = Statistics()
    for version in range(1, 102):
        leaving = statistics.of("cats", version)
        leaving.executed(Execution(1, 0.1, 0.1, 0.1))
        statistics.gone(leaving)
        del leaving
    assert statistics.of("cats", 85).inferences == 0
    assert statistics.of("cats", 86).inferences == 1


def test_durations_are_whole_and_never_negative() -> None:
    statistics = VersionStatistics()
    statistics.failed(-1e-9)
    statistics.failed(2.5e-9)
    assert (statistics.fail.count, statistics.fail.nanoseconds) == (2, 2)
    statistics.succeeded(3e-9, Timings(1e-9, 2e-9, 0.0), -1e-9)
    found = statistics.requests
    assert [one.nanoseconds for one in (found.whole, found.input, found.queue, found.output)] == [3, 1, 2, 0]
    assert found.whole.count == found.output.count == 1
