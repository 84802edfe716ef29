"""What holds for every batching policy and every version policy, whatever the numbers."""

import heapq
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.batching.policy import POLICIES, Dispatch, Idle, Policy, QueueView, WaitUntil
from service.batching.spec import BatchingSpec
from service.repository.policy import Latest, Load, Unload, VersionPolicy, actions, wanted
from service.repository.states import ModelState

# Batching policies

specs = st.builds(
    BatchingSpec,
    max_batch_size=st.integers(1, 64),
    max_queue_delay_ms=st.sampled_from([0.0, 0.5, 3.0, 1000.0]),
    preferred_batch_sizes=st.lists(st.integers(1, 80), max_size=4).map(tuple),
)
moments = st.floats(0, 1e6)


@st.composite
def views(draw: st.DrawFn) -> tuple[QueueView, float]:
    """A queue as a batcher may show it, and a time at which it may ask."""
    instances = draw(st.integers(1, 8))
    oldest_at = draw(moments)
    view = QueueView(draw(st.integers(0, 300)), oldest_at, draw(st.integers(0, instances)), instances)
    return view, oldest_at + draw(st.sampled_from([0.0, 0.0001, 0.0005, 0.003, 0.5, 1.0, 100.0]))


every_policy = pytest.mark.parametrize("name", sorted(POLICIES))


@every_policy
@given(spec=specs, asked=views())
@settings(max_examples=300, deadline=None)
def test_a_batch_is_never_empty_nor_over_the_limit_nor_more_than_waits(
    name: str, spec: BatchingSpec, asked: tuple[QueueView, float]
) -> None:
    view, now = asked
    decision = POLICIES[name](spec).decide(view, now)
    if isinstance(decision, Dispatch):
        assert 1 <= decision.size <= min(spec.max_batch_size, view.waiting)
        assert view.free > 0


@every_policy
@given(spec=specs, asked=views())
@settings(max_examples=300, deadline=None)
def test_it_is_idle_exactly_when_there_is_nothing_to_do(
    name: str, spec: BatchingSpec, asked: tuple[QueueView, float]
) -> None:
    view, now = asked
    decision = POLICIES[name](spec).decide(view, now)
    assert isinstance(decision, Idle) == (view.waiting == 0 or view.free == 0)


@every_policy
@given(spec=specs, asked=views())
@settings(max_examples=300, deadline=None)
def test_it_waits_only_within_the_delay_of_the_oldest_entry(
    name: str, spec: BatchingSpec, asked: tuple[QueueView, float]
) -> None:
    view, now = asked
    decision = POLICIES[name](spec).decide(view, now)
    leave_at = view.oldest_at + spec.max_queue_delay_ms / 1000.0
    if isinstance(decision, WaitUntil):
        assert now < decision.at <= leave_at
        assert view.waiting < spec.max_batch_size
    elif view.waiting and view.free and now >= leave_at:
        assert isinstance(decision, Dispatch)


@every_policy
@given(spec=specs, asked=views())
@settings(max_examples=100, deadline=None)
def test_the_same_view_at_the_same_time_gives_the_same_decision(
    name: str, spec: BatchingSpec, asked: tuple[QueueView, float]
) -> None:
    policy = POLICIES[name](spec)
    first, second = policy.decide(*asked), policy.decide(*asked)
    assert type(first) is type(second)
    assert isinstance(first, Idle) or first == second


@dataclass
class Simulation:
    """A queue and instances driven by a policy, in simulated time. Executions last `seconds` each, in turn."""

    policy: Policy
    instances: int
    arrivals: deque[float]
    seconds: list[float]
    now: float = 0.0
    waiting: deque[float] = field(default_factory=deque)
    running: list[float] = field(default_factory=list)
    left: list[tuple[float, float]] = field(default_factory=list)  # (arrived, dispatched)
    sizes: list[int] = field(default_factory=list)
    held_idle: list[tuple[float, float]] = field(default_factory=list)  # (oldest, now) while an instance was free

    def run(self) -> None:
        while self.arrivals or self.waiting or self.running:
            ask_at = self._decide()
            next_events = [*self.running[:1], *list(self.arrivals)[:1], *([] if ask_at is None else [ask_at])]
            assert next_events, f"starved: {len(self.waiting)} wait and nothing will ever happen"
            self.now = max(self.now, min(next_events))
            while self.running and self.running[0] <= self.now:
                heapq.heappop(self.running)
            while self.arrivals and self.arrivals[0] <= self.now:
                self.waiting.append(self.arrivals.popleft())

    def _decide(self) -> float | None:
        """Dispatch what the policy says; when it wants to be asked again."""
        while True:
            free = self.instances - len(self.running)
            oldest = self.waiting[0] if self.waiting else 0.0
            decision = self.policy.decide(QueueView(len(self.waiting), oldest, free, self.instances), self.now)
            if isinstance(decision, Dispatch):
                self.sizes.append(decision.size)
                self.left += [(self.waiting.popleft(), self.now) for _ in range(decision.size)]
                heapq.heappush(self.running, self.now + self.seconds[len(self.sizes) % len(self.seconds)])
                continue
            if self.waiting and free:
                self.held_idle.append((oldest, self.now))
            return decision.at if isinstance(decision, WaitUntil) else None


@every_policy
@given(
    spec=specs,
    instances=st.integers(1, 4),
    gaps=st.lists(st.sampled_from([0.0, 0.0, 0.0001, 0.002, 0.1, 5.0]), min_size=1, max_size=80),
    seconds=st.lists(st.sampled_from([0.0001, 0.001, 0.05, 2.0]), min_size=1, max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_everyone_leaves_in_order_and_nobody_waits_past_the_delay_beside_a_free_instance(
    name: str, spec: BatchingSpec, instances: int, gaps: list[float], seconds: list[float]
) -> None:
    arrivals: deque[float] = deque()
    for gap in gaps:
        arrivals.append((arrivals[-1] if arrivals else 0.0) + gap)
    expected = list(arrivals)
    simulation = Simulation(POLICIES[name](spec), instances, arrivals, seconds)
    simulation.run()
    assert [arrived for arrived, _ in simulation.left] == expected
    assert max(simulation.sizes) <= spec.max_batch_size
    delay = spec.max_queue_delay_ms / 1000.0
    for oldest, now in simulation.held_idle:
        assert now < oldest + delay


# Version policies

versions = st.integers(1, 5)
version_policies: st.SearchStrategy[VersionPolicy] = st.one_of(
    st.integers(1, 3).map(Latest), st.just("all"), st.lists(versions, max_size=4, unique=True).map(tuple)
)
tables = st.dictionaries(versions, st.sampled_from(list(ModelState)))


@st.composite
def situations(
    draw: st.DrawFn,
) -> tuple[VersionPolicy, set[int], set[int], dict[int, ModelState]]:
    """(policy, available, failed, states): what failed is UNAVAILABLE."""
    states = draw(tables)
    failed = {version for version, state in states.items() if state is ModelState.UNAVAILABLE and draw(st.booleans())}
    return draw(version_policies), draw(st.sets(versions)), failed, states


def ready(states: dict[int, ModelState]) -> set[int]:
    return {version for version, state in states.items() if state is ModelState.READY}


@given(situation=situations())
@settings(max_examples=500, deadline=None)
def test_the_last_good_version_is_never_unloaded(
    situation: tuple[VersionPolicy, set[int], set[int], dict[int, ModelState]],
) -> None:
    policy, available, failed, states = situation
    unloads = {step.version for step in actions(policy, available, failed, states) if isinstance(step, Unload)}
    assert unloads <= ready(states)
    if unloads:
        assert (ready(states) - unloads) & set(wanted(policy, available, failed))


@given(situation=situations())
@settings(max_examples=500, deadline=None)
def test_only_what_is_wanted_and_at_rest_is_loaded(
    situation: tuple[VersionPolicy, set[int], set[int], dict[int, ModelState]],
) -> None:
    policy, available, failed, states = situation
    at_rest = {ModelState.UNKNOWN, ModelState.UNAVAILABLE, None}
    for step in actions(policy, available, failed, states):
        if isinstance(step, Load):
            assert step.version in available - failed
            assert step.version in wanted(policy, available, failed)
            assert states.get(step.version) in at_rest


@given(situation=situations())
@example(
    situation=(
        Latest(2),
        {2, 3},
        set(),
        {1: ModelState.READY, 2: ModelState.READY, 3: ModelState.UNLOADING},
    )
)
@settings(max_examples=500, deadline=None)
def test_loads_come_first_and_unloads_only_once_everything_wanted_is_ready(
    situation: tuple[VersionPolicy, set[int], set[int], dict[int, ModelState]],
) -> None:
    policy, available, failed, states = situation
    steps = actions(policy, available, failed, states)
    if any(isinstance(step, Unload) for step in steps):
        assert not any(isinstance(step, Load) for step in steps)
        assert set(wanted(policy, available, failed)) <= ready(states)


@given(situation=situations(), bad=st.sets(versions))
@settings(max_examples=300, deadline=None)
def test_carrying_out_the_actions_comes_to_rest_with_what_is_wanted(
    situation: tuple[VersionPolicy, set[int], set[int], dict[int, ModelState]], bad: set[int]
) -> None:
    """Loads of `bad` versions fail; nothing is in motion at the start."""
    policy, available, failed, states = situation
    in_motion = (ModelState.LOADING, ModelState.UNLOADING)
    states = {version: ModelState.UNKNOWN if state in in_motion else state for version, state in states.items()}
    before = ready(states)
    for _ in range(20):
        steps = actions(policy, available, failed, states)
        if not steps:
            break
        for step in steps:
            if isinstance(step, Unload):
                states[step.version] = ModelState.UNKNOWN
            elif step.version in bad:
                states[step.version] = ModelState.UNAVAILABLE
                failed = failed | {step.version}
            else:
                states[step.version] = ModelState.READY
        assert ready(states) or not before
    else:
        pytest.fail("it never comes to rest")
    target = set(wanted(policy, available, failed))
    assert ready(states) == (target or before)
