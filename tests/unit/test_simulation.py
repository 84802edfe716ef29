"""The simulation of loadtests/, against what queueing theory knows exactly."""

import dataclasses
import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence

import pytest

from loadtests.simulation import (
    Autoscaler,
    Deployment,
    Outcome,
    ReplicaSpec,
    Times,
    at_random,
    least_outstanding,
    poisson,
    round_robin,
    two_choices,
)
from service.batching.spec import BatchingSpec

SECONDS = 0.010  # of the plain execution
UNBOUNDED = {"max_queue_size": 10**9, "max_queue_wait_ms": 1e12}


def replica(
    execution: Mapping[int, Sequence[float]] | None = None,
    *,
    cpus: float = 1.0,
    instances: int = 1,
    slowdown: float = 1.0,
    loop: float = 0.0,
    **batching: float,
) -> ReplicaSpec:
    """One at a time, no batching, unbounded, unless said otherwise."""
    times = Times(execution or {1: [SECONDS]}, slowdown=slowdown, loop_in=loop, loop_out=loop)
    return ReplicaSpec(times, cpus, instances, BatchingSpec(**{"max_batch_size": 1, **UNBOUNDED, **batching}))  # type: ignore[arg-type]


def mean_wait(outcome: Outcome, service: float = SECONDS) -> float:
    return statistics.mean(outcome.latencies) - service


def test_waiting_of_constant_service_is_that_of_m_d_1() -> None:
    load = 0.7
    outcome = Deployment(replica(), 1).run(poisson(load / SECONDS, 1000.0))
    assert mean_wait(outcome) == pytest.approx(load * SECONDS / (2 * (1 - load)), rel=0.05)


def test_waiting_of_exponential_service_is_that_of_m_m_1() -> None:
    load, draws = 0.6, 2000
    exponential = [-SECONDS * math.log(1 - (place + 0.5) / draws) for place in range(draws)]
    outcome = Deployment(replica({1: exponential}), 1).run(poisson(load / SECONDS, 1500.0))
    assert mean_wait(outcome) == pytest.approx(load * SECONDS / (1 - load), rel=0.07)


def test_two_instances_on_two_cpus_wait_as_m_m_2() -> None:
    load, draws = 0.7, 2000
    exponential = [-SECONDS * math.log(1 - (place + 0.5) / draws) for place in range(draws)]
    outcome = Deployment(replica({1: exponential}, cpus=2, instances=2), 1).run(poisson(2 * load / SECONDS, 800.0))
    assert mean_wait(outcome) == pytest.approx(SECONDS * load**2 / (1 - load**2), rel=0.07)


def test_two_executions_on_one_cpu_share_it() -> None:
    outcome = Deployment(replica(instances=2), 1).run([0.0, 0.0])
    assert outcome.latencies == pytest.approx([2 * SECONDS, 2 * SECONDS])


def test_executions_side_by_side_slow_each_other_down() -> None:
    outcome = Deployment(replica(cpus=2, instances=2, slowdown=1.5), 1).run([0.0, 0.0])
    assert outcome.latencies == pytest.approx([1.5 * SECONDS, 1.5 * SECONDS])


def test_a_woken_event_loop_waits_for_a_cpu_at_most_until_an_execution_ends() -> None:
    def second(wake: float, seed: int) -> float:
        spec = replica(instances=2, cpus=2)
        spec = dataclasses.replace(spec, times=dataclasses.replace(spec.times, wake=wake), instances=3)
        return Deployment(spec, 1, seed=seed).run([0.0, 0.0, SECONDS / 2]).requests[2].queued_at - SECONDS / 2

    assert second(0.0, 0) == 0.0
    short = [second(SECONDS / 10, seed) for seed in range(50)]
    assert 0.0 < min(short) < max(short) < SECONDS / 10
    assert max(second(SECONDS * 10, seed) for seed in range(50)) == pytest.approx(SECONDS / 2)


def test_the_event_loop_does_one_thing_at_a_time_and_comes_before_executions() -> None:
    outcome = Deployment(replica(loop=0.001), 1).run([0.0, 0.0])
    # in 1, in 2 (the first execution waits for the only CPU), execution 1, out 1 beside the start of execution 2
    assert outcome.latencies[0] == pytest.approx(0.001 + 0.001 + SECONDS + 0.001)
    assert outcome.busy_seconds == pytest.approx(2 * (SECONDS + 0.002))


def test_every_request_ends_once_as_answered_or_refused() -> None:
    spec = replica({1: [SECONDS], 4: [3 * SECONDS]}, max_batch_size=4, max_queue_size=8)
    due = list(poisson(3 / SECONDS, 20.0))
    outcome = Deployment(spec, 2).run(due)
    refused = sum(request.refused for request in outcome.requests)
    assert [request.due_at for request in outcome.requests] == due
    assert len(outcome.latencies) + refused == len(due)
    assert outcome.images == len(outcome.latencies)
    assert refused > 0


def test_the_work_done_is_the_work_that_came() -> None:
    outcome = Deployment(replica(cpus=2, instances=2, loop=0.001), 1).run(poisson(100, 20.0))
    assert outcome.busy_seconds == pytest.approx(len(outcome.requests) * (SECONDS + 0.002))


def test_an_overloaded_replica_never_idles() -> None:
    outcome = Deployment(replica(cpus=2, instances=2, max_queue_wait_ms=200.0), 1).run(poisson(400, 20.0))
    assert outcome.rate == pytest.approx(2 / SECONDS, rel=0.02)
    assert outcome.shed_ratio == pytest.approx(0.5, abs=0.03)


def test_nothing_is_answered_that_waited_longer_than_allowed() -> None:
    outcome = Deployment(replica(max_queue_wait_ms=50.0), 1).run(poisson(300, 10.0))
    assert outcome.latencies[-1] <= 0.050 + SECONDS + 1e-9
    assert outcome.shed_ratio > 0.5


def test_a_full_queue_refuses_at_once() -> None:
    outcome = Deployment(replica(max_queue_size=2), 1).run([0.0] * 5)
    assert [request.refused for request in outcome.requests] == [False, False, False, True, True]
    assert outcome.requests[-1].ended_at == 0.0


def test_what_would_wait_too_long_is_refused_at_once() -> None:
    outcome = Deployment(replica(max_queue_wait_ms=45.0), 1).run([0.0] + [1.0] * 10)  # the first is learned from
    refused_at = [request.ended_at for request in outcome.requests if request.refused]
    # One runs and three wait, the last of them 30 ms: a fourth would be too close to 45. Nobody waits in vain.
    assert sorted(refused_at) == pytest.approx([1.0] * 6)


def test_batches_form_by_the_services_policy() -> None:
    spec = replica({1: [SECONDS], 4: [SECONDS]}, max_batch_size=4)
    outcome = Deployment(spec, 1).run([0.0] * 9)
    assert (outcome.images, outcome.executions) == (9, 3)  # 1 at once, then twice the 4 that waited
    assert outcome.latencies[-1] == pytest.approx(3 * SECONDS)


def test_a_batching_delay_is_waited_for() -> None:
    outcome = Deployment(replica(max_batch_size=4, max_queue_delay_ms=5.0), 1).run([0.0])
    assert outcome.latencies == pytest.approx([0.005 + SECONDS])


def test_a_size_between_measured_ones_lies_between_them() -> None:
    times = Times({2: [0.02], 4: [0.03]})
    chance = random.Random(0)
    assert times.draw(3, chance) == pytest.approx(0.025)
    assert times.draw(8, chance) == pytest.approx(0.06)


@pytest.mark.parametrize("balancer", [round_robin(), least_outstanding, two_choices])
def test_balancing_beats_chance(balancer: object) -> None:
    def p99(chosen: object) -> float:
        outcome = Deployment(replica(), 4, balancer=chosen).run(poisson(4 * 80, 60.0))  # type: ignore[arg-type]
        return outcome.percentile_ms(0.99)

    assert p99(balancer) < 0.8 * p99(at_random)


def test_the_same_seed_gives_the_same_run() -> None:
    spec = replica({1: [0.005, 0.010, 0.020]})
    first, again, other = (Deployment(spec, 2, seed=seed).run(poisson(100, 10.0)).latencies for seed in (1, 1, 2))
    assert first == again != other


def test_poisson_has_its_rate_and_its_spread() -> None:
    moments = list(poisson(50.0, 400.0))
    gaps = [later - sooner for sooner, later in itertools.pairwise(moments)]
    assert len(moments) / 400.0 == pytest.approx(50.0, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)


# The autoscaler

SCALER = Autoscaler(target=0.020, growth=2.0, fewest=2, most=40)


@pytest.mark.parametrize(
    ("replicas", "measured", "wanted"),
    [
        (10, 0.0215, 10),  # within the tolerance of a tenth
        (10, 0.030, 15),  # ceil(10 x 1.5)
        (10, 0.500, 20),  # no more than double
        (2, 0.500, 6),  # or four more
        (30, 0.500, 40),  # the most there may be
        (10, 0.005, 3),
        (10, 0.0, 2),  # the fewest there must be
    ],
)
def test_the_autoscaler_wants_what_kubernetes_formula_says(replicas: int, measured: float, wanted: int) -> None:
    assert SCALER.wanted(replicas, measured) == wanted


def test_replicas_come_after_the_delays_and_the_start_up() -> None:
    scaler = Autoscaler(target=0.020, every=5.0, window=5.0, delay=5.0, start_up=10.0, most=3)
    outcome = Deployment(replica(max_queue_wait_ms=500.0), 1, autoscaler=scaler).run(poisson(250, 60.0))
    grown = [moment for moment, count in outcome.replicas if count > 1]
    # the first look at 5 s sees nothing that is old enough; that of 10 s does, and start-up follows
    assert grown == pytest.approx([20.0, 20.0])
    assert outcome.most_replicas == 3
    assert outcome.between(0, 20).shed_ratio > 0.5
    assert outcome.between(30, 60).shed_ratio == 0.0


def test_replicas_go_only_after_a_calm_time() -> None:
    scaler = Autoscaler(target=0.020, every=5.0, window=5.0, delay=0.0, calm=30.0, fewest=1)
    outcome = Deployment(replica(), 4, autoscaler=scaler).run(poisson(10, 60.0))
    shrunk = [moment for moment, count in outcome.replicas if count < 4]
    assert shrunk[0] == pytest.approx(35.0)  # the first look after 30 s without a reason for 4


def test_failed_replicas_take_nothing_new() -> None:
    outcome = Deployment(replica(max_queue_wait_ms=200.0), 3, failures=[(10.0, 1)]).run(poisson(240, 20.0))
    assert [count for _, count in outcome.replicas] == [3, 2]
    assert outcome.between(1, 10).shed_ratio < 0.01
    assert outcome.between(12, 20).shed_ratio > 0.1
