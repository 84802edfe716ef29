"""A discrete-event model of a deployment: arrivals, a load balancer, replicas, and an autoscaler on queue time.

    arrival -> balancer -> a replica's event loop (in) -> queue -> execution -> event loop (out) -> answer
                                    |                       |
                                    +-- refused (503) <-----+-- waited too long

Which batch leaves when is decided by the service's own policy, imported. Of the batcher's driver it repeats the two
refusals: a full queue, and a wait that would be or was too long.

A replica has `cpus`, shared as an operating system does it: an event loop that sleeps is woken by an arrival and, where
executions have every CPU, waits for a part of the scheduler's slice; then it comes first, and executions share what it
leaves, each at most one CPU. Executions side by side also slow each other down (caches,
memory, the interpreter's lock) by a measured factor. Seconds throughout; everything random comes from one seed.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from service.batching.policy import Dispatch, FairShare, Policy, QueueView, WaitUntil
from service.batching.spec import BatchingSpec

_FASTER_WEIGHT, _SLOWER_WEIGHT = 0.5, 0.05  # of the newest execution, as in service/batching/batcher.py
_LONGEST_WAIT_SHARE = 0.85  # of what a manifest allows, as there


@dataclass(frozen=True, slots=True)
class Times:
    """What the work of one model costs, measured (see calibrate.py).

    `execution` has, for each batch size, CPU seconds of whole executions (decode, run, rank) with nothing beside them;
    one is drawn each time. Sizes between the measured ones are interpolated. `slowdown` multiplies them while others
    run.
    """

    execution: Mapping[int, Sequence[float]]
    slowdown: float = 1.0
    loop_in: float = 0.0
    loop_out: float = 0.0
    wire: float = 0.0  # constant part of a client's latency that occupies nothing
    wake: float = 0.0  # longest wait of a woken thread for a CPU while executions have them all: the scheduler's slice

    def draw(self, size: int, chance: random.Random) -> float:
        """CPU seconds of one execution of `size` images."""
        if size in self.execution:
            return chance.choice(self.execution[size])
        below = max((known for known in self.execution if known < size), default=min(self.execution))
        above = min((known for known in self.execution if known > size), default=below)
        part = (size - below) / (above - below) if above != below else 0.0
        if above == below:
            return chance.choice(self.execution[below]) * size / below
        return (1 - part) * chance.choice(self.execution[below]) + part * chance.choice(self.execution[above])


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One pod: its CPUs, how many executions at once, and the model's queue."""

    times: Times
    cpus: float = 2.0
    instances: int = 2
    batching: BatchingSpec = field(default_factory=BatchingSpec)
    client_inside: bool = False  # the generator shares these CPUs, and waits for one as the event loop does


@dataclass(slots=True)
class Request:
    due_at: float
    queued_at: float = 0.0
    ended_at: float = 0.0
    refused: bool = False


@dataclass(slots=True)
class _Execution:
    batch: list[Request]
    started_at: float
    left: float  # CPU seconds at full speed


class Clock:
    """The events to come, in order; ties in order of entry."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(moment, self.now), next(self._numbers), act))

    def run(self) -> None:
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()


class Replica:
    """One process of the service."""

    def __init__(self, spec: ReplicaSpec, clock: Clock, chance: random.Random) -> None:
        self._spec = spec
        self._clock = clock
        self._chance = chance
        self._policy: Policy = FairShare(spec.batching)
        self._queue: deque[Request] = deque()
        self._running: list[_Execution] = []
        self._loop: deque[tuple[float, Callable[[], None]]] = deque()
        self._loop_busy = False
        self._advanced_at = 0.0
        self._version = 0  # of the plan when the next execution ends: an older plan is void
        self._seconds_of: dict[int, float] = {}
        self.outstanding = 0
        self.executions = 0
        self.images = 0
        self.busy_seconds = 0.0  # CPU seconds used
        self.waits: list[tuple[float, float]] = []  # (when dispatched, seconds queued), for the autoscaler

    def accept(self, request: Request) -> None:
        self.outstanding += 1
        delay = self._wait_for_cpu() if self._spec.client_inside else 0.0
        if not self._loop_busy:
            delay += self._wait_for_cpu()
        self._clock.at(self._clock.now + delay, lambda: self._receive(request))

    def _receive(self, request: Request) -> None:
        self._on_loop(self._spec.times.loop_in, lambda: self._enqueue(request))

    def _wait_for_cpu(self) -> float:
        """How long a thread that wakes now waits until it runs."""
        if not self._spec.times.wake or len(self._running) < round(self._spec.cpus):
            return 0.0
        self._advance()
        next_end = min(execution.left for execution in self._running) / (self._speed() or math.inf)
        return min(self._chance.uniform(0.0, self._spec.times.wake), max(0.0, next_end))

    # The event loop: one thing at a time

    def _on_loop(self, seconds: float, act: Callable[[], None]) -> None:
        self._loop.append((seconds, act))
        if not self._loop_busy:
            self._set_loop_busy(True)
            self._next_on_loop()

    def _next_on_loop(self) -> None:
        seconds, act = self._loop.popleft()
        self._clock.at(self._clock.now + seconds, lambda: self._loop_done(seconds, act))

    def _loop_done(self, seconds: float, act: Callable[[], None]) -> None:
        self.busy_seconds += seconds
        act()  # what it puts on the loop waits for its turn
        if self._loop:
            self._next_on_loop()
        else:
            self._set_loop_busy(False)

    def _set_loop_busy(self, busy: bool) -> None:
        self._advance()
        self._loop_busy = busy
        self._plan()

    # The queue

    def _enqueue(self, request: Request) -> None:
        batching = self._spec.batching
        longest_ms = _LONGEST_WAIT_SHARE * batching.max_queue_wait_ms
        if len(self._queue) >= batching.max_queue_size or self._wait_ms() > longest_ms:
            self._refuse(request)
            return
        request.queued_at = self._clock.now
        self._queue.append(request)
        self._pump()

    def _pump(self) -> None:
        while True:
            free = self._spec.instances - len(self._running)
            oldest_at = self._queue[0].queued_at if self._queue else 0.0
            view = QueueView(len(self._queue), oldest_at, free, self._spec.instances)
            decision = self._policy.decide(view, self._clock.now)
            if isinstance(decision, WaitUntil):
                self._clock.at(decision.at, self._pump)
            if not isinstance(decision, Dispatch):
                return
            if batch := self._form(decision.size):
                self._start(batch)

    def _form(self, size: int) -> list[Request]:
        batch: list[Request] = []
        while len(batch) < size and self._queue:
            request = self._queue.popleft()
            waited = self._clock.now - request.queued_at
            if waited * 1000.0 > self._spec.batching.max_queue_wait_ms:
                self._refuse(request)
                continue
            self.waits.append((self._clock.now, waited))
            batch.append(request)
        return batch

    def _refuse(self, request: Request) -> None:
        request.refused = True
        self._answer(request)

    def _wait_ms(self) -> float:
        """What is queued, and what runs before it; as the batcher has it without a batch that stands ready.

        0 where the queue is empty.
        """
        waiting = len(self._queue)
        if not waiting or not self._seconds_of:
            return 0.0
        size = min(self._spec.batching.max_batch_size, math.ceil(waiting / self._spec.instances))
        measured = max((known for known in self._seconds_of if known <= size), default=min(self._seconds_of))
        backlog = math.ceil(waiting / (size * self._spec.instances)) * self._seconds_of[measured]
        if len(self._running) < self._spec.instances:
            return backlog * 1000.0
        turn = min(self._seconds_of.get(len(execution.batch), 0.0) for execution in self._running)
        return (turn + backlog) * 1000.0

    # Executions: processor sharing

    def _start(self, batch: list[Request]) -> None:
        self._advance()
        cost = self._spec.times.draw(len(batch), self._chance)
        self._running.append(_Execution(batch, self._clock.now, cost))
        self.executions += 1
        self.images += len(batch)
        self._plan()

    def _speed(self) -> float:
        """CPU seconds at full speed that each running execution does in a second."""
        running = len(self._running)
        left = max(0.0, self._spec.cpus - self._loop_busy)
        return min(1.0, left / running) / (self._spec.times.slowdown if running > 1 else 1.0)

    def _advance(self) -> None:
        passed = self._clock.now - self._advanced_at
        self._advanced_at = self._clock.now
        if not self._running or passed <= 0:
            return
        speed = self._speed()
        self.busy_seconds += passed * min(len(self._running), max(0.0, self._spec.cpus - self._loop_busy))
        for execution in self._running:
            execution.left -= passed * speed

    def _plan(self) -> None:
        self._version += 1
        if not self._running or (speed := self._speed()) <= 0:
            return
        version = self._version
        ends_at = self._clock.now + max(0.0, min(execution.left for execution in self._running)) / speed
        self._clock.at(ends_at, lambda: self._execution_ends(version))

    def _execution_ends(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        ended = min(self._running, key=lambda execution: execution.left)
        self._running.remove(ended)
        self._learn(len(ended.batch), self._clock.now - ended.started_at)
        self._plan()
        self._pump()
        for request in ended.batch:
            self._on_loop(self._spec.times.loop_out, partial(self._answer, request))

    def _learn(self, size: int, seconds: float) -> None:
        known = self._seconds_of.get(size, seconds)
        weight = _SLOWER_WEIGHT if seconds > known else _FASTER_WEIGHT
        self._seconds_of[size] = known + weight * (seconds - known)

    def _answer(self, request: Request) -> None:
        self.outstanding -= 1
        request.ended_at = self._clock.now + self._spec.times.wire
        if self._spec.client_inside:
            request.ended_at += self._wait_for_cpu()


# Load balancing: which of the ready replicas takes a request

Balancer = Callable[[Sequence[Replica], random.Random], Replica]


def round_robin() -> Balancer:
    """One after the other."""
    turn = itertools.count()
    return lambda replicas, _: replicas[next(turn) % len(replicas)]


def at_random(replicas: Sequence[Replica], chance: random.Random) -> Replica:
    """Any: what a Kubernetes Service does with new connections."""
    return chance.choice(replicas)


def least_outstanding(replicas: Sequence[Replica], _: random.Random) -> Replica:
    """The one with the fewest requests on their way: nginx's `least_conn`."""
    return min(replicas, key=lambda replica: replica.outstanding)


def two_choices(replicas: Sequence[Replica], chance: random.Random) -> Replica:
    """The better of two at random: what several balancers that know not of each other can do."""
    return min(chance.choice(replicas), chance.choice(replicas), key=lambda replica: replica.outstanding)


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """A HorizontalPodAutoscaler on the mean queue time of the pods.

    Every `every` seconds it looks at a mean over `window` seconds that is `delay` old (scrape, adapter), and wants
    ceil(replicas x measured / target) pods, within a tolerance. It at most multiplies by `growth` each time, or adds 4;
    it shrinks to the largest number wanted within `calm` seconds. New pods are ready after `start_up`.
    """

    target: float = 0.020
    every: float = 15.0
    window: float = 30.0
    delay: float = 15.0
    tolerance: float = 0.1
    growth: float = 2.0
    calm: float = 300.0
    start_up: float = 30.0
    most: int = 1_000_000
    fewest: int = 1

    def wanted(self, replicas: int, measured: float) -> int:
        """Kubernetes' formula."""
        ratio = measured / self.target
        if abs(ratio - 1.0) <= self.tolerance:
            return replicas
        most = max(math.floor(replicas * self.growth), replicas + 4)
        return max(self.fewest, min(self.most, most, math.ceil(replicas * ratio)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the requests, in order of arrival, and how many replicas there were."""

    requests: list[Request]
    replicas: list[tuple[float, int]]  # (moment, ready replicas), at each change
    images: int
    executions: int
    busy_seconds: float

    def between(self, start: float, end: float) -> "Outcome":
        """Only the requests due in [start, end)."""
        kept = [request for request in self.requests if start <= request.due_at < end]
        return Outcome(kept, self.replicas, self.images, self.executions, self.busy_seconds)

    @property
    def latencies(self) -> list[float]:
        """Seconds, sorted, of what was answered."""
        return sorted(request.ended_at - request.due_at for request in self.requests if not request.refused)

    def percentile_ms(self, share: float) -> float:
        ordered = self.latencies
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000.0 if ordered else float("inf")

    @property
    def shed_ratio(self) -> float:
        return sum(request.refused for request in self.requests) / max(1, len(self.requests))

    @property
    def rate(self) -> float:
        """Answered, from the first arrival to the last answer, a second."""
        answered = [request for request in self.requests if not request.refused]
        if not answered:
            return 0.0
        return len(answered) / (max(request.ended_at for request in answered) - self.requests[0].due_at)

    @property
    def most_replicas(self) -> int:
        return max(count for _, count in self.replicas)


class Deployment:
    """Replicas behind a balancer, from none busy to all answered."""

    def __init__(
        self,
        spec: ReplicaSpec,
        replicas: int,
        *,
        balancer: Balancer | None = None,
        autoscaler: Autoscaler | None = None,
        failures: Iterable[tuple[float, int]] = (),
        seed: int = 0,
    ) -> None:
        self._spec = spec
        self._chance = random.Random(seed)
        self._clock = Clock()
        self._balancer = balancer or least_outstanding
        self._autoscaler = autoscaler
        self._everyone = [self._new_replica() for _ in range(replicas)]
        self._ready = list(self._everyone)
        self._starting = 0
        self._wishes: deque[tuple[float, int]] = deque([(0.0, replicas)])  # as Kubernetes records the first size
        self._sizes: list[tuple[float, int]] = [(0.0, replicas)]
        self._arrivals_left = True
        for moment, count in failures:
            self._clock.at(moment, partial(self._fail, count))

    def run(self, due: Iterable[float]) -> Outcome:
        """Send requests at the moments `due` (ascending) and wait for every answer."""
        requests: list[Request] = []
        moments = iter(due)

        def arrive(request: Request) -> None:
            requests.append(request)
            self._balancer(self._ready, self._chance).accept(request)
            follow()

        def follow() -> None:
            moment = next(moments, None)
            if moment is None:
                self._arrivals_left = False
            else:
                request = Request(moment)
                self._clock.at(moment, lambda: arrive(request))

        follow()
        if self._autoscaler:
            self._clock.at(self._autoscaler.every, self._look)
        self._clock.run()
        return Outcome(
            requests,
            self._sizes,
            sum(replica.images for replica in self._everyone),
            sum(replica.executions for replica in self._everyone),
            sum(replica.busy_seconds for replica in self._everyone),
        )

    def _new_replica(self) -> Replica:
        return Replica(self._spec, self._clock, self._chance)

    def _fail(self, count: int) -> None:
        """Replicas that take nothing new from now on; what they hold is still answered (a drain)."""
        self._resize(self._ready[: max(1, len(self._ready) - count)])

    def _resize(self, ready: list[Replica]) -> None:
        self._ready = ready
        self._sizes.append((self._clock.now, len(ready)))

    def _look(self) -> None:
        scaler, now = self._autoscaler, self._clock.now
        assert scaler is not None
        if not self._arrivals_left:
            return
        self._clock.at(now + scaler.every, self._look)
        until = now - scaler.delay
        waits = [
            seconds
            for replica in self._everyone
            for moment, seconds in _recent(replica.waits, until - scaler.window)
            if moment <= until
        ]
        replicas = len(self._ready) + self._starting
        wish = scaler.wanted(replicas, sum(waits) / len(waits)) if waits else replicas
        self._wishes.append((now, wish))
        while self._wishes[0][0] < now - scaler.calm:
            self._wishes.popleft()
        if wish > replicas:
            self._starting += wish - replicas
            for _ in range(wish - replicas):
                self._clock.at(now + scaler.start_up, self._started)
        elif (largest := max(count for _, count in self._wishes)) < replicas:
            self._resize(self._ready[: max(scaler.fewest, largest - self._starting)])

    def _started(self) -> None:
        self._starting -= 1
        replica = self._new_replica()
        self._everyone.append(replica)
        self._resize([*self._ready, replica])


def _recent(waits: list[tuple[float, float]], since: float) -> list[tuple[float, float]]:
    """The tail of `waits` from `since` on; what is older is forgotten, nobody asks for it again."""
    start = 0
    while start < len(waits) and waits[start][0] < since:
        start += 1
    del waits[:start]
    return waits


def poisson(rate: float | Callable[[float], float], seconds: float, seed: int = 0) -> Iterable[float]:
    """Moments of a Poisson process of `rate` a second, constant or a function of time (then looked at each arrival)."""
    chance = random.Random(seed)
    now = 0.0
    while True:
        now += chance.expovariate(rate(now) if callable(rate) else rate)
        if now >= seconds:
            return
        yield now
