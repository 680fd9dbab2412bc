"""The one loop: it asks the core what to start, starts it on a lane, and hands back what ran.

It lives on the event loop and is driven by events: something arrived, or a lane is free. No lock, no sleep.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog

from harken_server.errors import BacklogFull, ComputeFailed, Expired, NoMemory, Refusal
from harken_server.execution.engine import Halt
from harken_server.execution.history import History
from harken_server.execution.lanes import Clock, Lane, Ran, shrink
from harken_server.execution.pending import Outcome, Pending, Vectors
from harken_server.execution.residents import Residents
from harken_server.execution.results import Results
from harken_server.execution.served import ModelKey, Served
from harken_server.execution.watchdog import MOST_HANGING, EngineHangs, Watchdog
from harken_server.scheduling.admission import Capacity, admit, meet_deadline, predicted_wait_s
from harken_server.scheduling.backlog import Backlog
from harken_server.scheduling.companions import Limits
from harken_server.scheduling.lanes import Lanes
from harken_server.scheduling.memory import MemoryBudget, MemoryModel
from harken_server.scheduling.policy import Start, decide
from harken_server.telemetry.instruments import Count
from harken_server.telemetry.metrics import Metrics
from harken_server.telemetry.tracing import Tracing

log = structlog.get_logger()

_IDLE_S: Final = 1.0
"""How long nothing must run before memory goes back: giving and taking it costs large batches a few percent."""


@dataclass(eq=False, slots=True)
class _Run:
    """A batch that was given to its lane."""

    start: Start[ModelKey, Pending]
    halt: Halt
    since_s: float = 0.0
    """When it began, as far as the event loop knows."""
    stalled: bool = False
    """Whether its sequences were answered without it."""
    apart: bool = False
    """See Served."""


class Batcher:
    """Owns the backlogs and the lanes. Every method belongs to the event loop's thread."""

    def __init__(
        self,
        capacity: Capacity,
        metrics: Metrics,
        history: History,
        results: Results,
        clock: Clock,
        on_fatal: Callable[[BaseException], None],
        watchdog: Watchdog | None = None,
        on_works: Callable[[bool], None] = lambda works: None,
        tracing: Tracing | None = None,
    ) -> None:
        """`on_fatal` is called if the loop itself fails, or too much hangs: the server must not look healthy then.

        `watchdog`: None is one with its defaults. `on_works` is told when no lane works any more, and when one does.
        """
        self._capacity: Final = capacity
        self._metrics: Final = metrics
        self._scheduler_seconds: Final = metrics.scheduler.labels()
        self._history: Final = history
        self._results: Final = results
        self._clock: Final = clock
        self._on_fatal: Final = on_fatal
        self._loop: Final = asyncio.get_running_loop()
        self._watchdog: Final = watchdog or Watchdog(self._loop.call_later)
        self._on_works: Final = on_works
        self._tracing: Final = tracing
        self._lanes: Sequence[Lane] = ()
        self._limits = Limits(sequences=0, padded_tokens=0, memory_bytes=0)
        self._budget = MemoryBudget(0)
        # Nothing starts until one of the running batches has given its memory back.
        self._out_of_memory = False
        self.models: Final = Residents(self._busy, self._gone)
        self._cores = Lanes(0)
        self._running: Final[dict[int, _Run]] = {}
        # What such a lane runs next.
        self._prepared: Final[dict[int, _Run]] = {}
        # Those whose lane goes on without them; they still have their memory.
        self._hanging: Final[set[_Run]] = set()
        self._worked = True
        self._busy_seconds: Final[list[Count]] = []
        self._replaced: Final[list[Count]] = []
        self._shrinking: asyncio.TimerHandle | None = None

    def open(self, lanes: Sequence[Lane], wide_lane: Lane | None, limits: Limits) -> None:
        """Begin to run batches within `limits`, on `lanes` or on the wide one, which has all their cores."""
        self._cores = Lanes(len(lanes), wide=wide_lane is not None)
        self._lanes = [*lanes, wide_lane] if wide_lane else lanes
        self._limits = limits
        self._budget = MemoryBudget(limits.memory_bytes)
        self._busy_seconds.extend(self._metrics.engine_busy.labels(lane.name) for lane in self._lanes)
        self._replaced.extend(self._metrics.lanes_replaced.labels(lane.name) for lane in self._lanes)
        self._metrics.lanes.labels("working").set_function(self.lanes_working)
        self._metrics.lanes.labels("stalled").set_function(lambda: self._cores.narrow - self.lanes_working())
        self._pump()
        self._shrink_when_idle()  # of what the warm-up left behind

    def serve(self, key: ModelKey, served: Served) -> None:
        """Take sequences for this model from now on."""
        self.models.add(key, served)
        # One gauge for all versions of a model, whichever of them are there when it is read.
        name, versions = key[0], self.models.versions
        served.metrics.backlog_sequences.set_function(lambda: sum(one.sequences for one in versions(name)))
        served.metrics.backlog_tokens.set_function(lambda: sum(one.tokens for one in versions(name)))
        served.metrics.predicted_wait.set_function(self.predicted_wait_s)
        cost = served.backlog.cost
        served.metrics.cost_scale.set_function(lambda: cost.scale)

    def _busy(self) -> set[ModelKey]:
        return {run.start.model for run in (*self._running.values(), *self._prepared.values())}

    def _gone(self, key: ModelKey) -> None:
        self._cores.forget(key)
        name, version = key
        self._metrics.forget(name, version, whole_model=not self.models.versions(name))
        # Of what it left behind: perhaps nobody calls for a long time.
        self._shrink_when_idle()

    @property
    def works(self) -> bool:
        """Whether there is a lane whose run has not stalled."""
        return self.lanes_working() > 0

    def lanes_working(self) -> int:
        """How many narrow lanes have no run that has stalled. The wide one holds all cores."""
        stalled = [run.start for run in list(self._running.values()) if run.stalled]
        return 0 if any(start.wide for start in stalled) else self._cores.narrow - len(stalled)

    @property
    def lanes(self) -> int:
        """Batches that run at the same time, of one core each where there are several; 0 while models load."""
        return self._cores.narrow

    @property
    def memory_budget_bytes(self) -> int:
        """Most memory that the running batches may ever take."""
        return self._budget.configured_bytes

    def present_budget_bytes(self) -> int:
        """Most memory that they may take now: less for a while after an allocation failed."""
        return self._budget.bytes(self._clock())

    def memory_model(self, key: ModelKey) -> MemoryModel:
        """What a batch of this model is predicted to need."""
        return self.models.backlogs[key].memory

    def predicted_batch_bytes(self) -> int:
        """Predicted memory of the batches that run now, or hang, and of those prepared to run next."""
        started = [*list(self._running.values()), *list(self._prepared.values()), *list(self._hanging)]
        return sum(run.start.predicted_bytes for run in started)

    def predicted_wait_s(self) -> float:
        """Seconds until a sequence that came now, and last, would start."""
        if self._cores.free and not any(backlog.sequences for backlog in list(self.models.backlogs.values())):
            return 0.0
        return predicted_wait_s(list(self.models.backlogs.values()), self._cores.narrow, self._running_s())

    def check_room(self, key: ModelKey, sequences: int) -> None:
        """The cheap door, before anything is tokenised. Raises BacklogFull if so many cannot wait now."""
        served = self.models[key]
        try:
            self._admit(sequences, sequences)
        except BacklogFull:
            # Their lengths are not known yet; they count as much as those who wait.
            waiting = served.backlog.sequences
            served.metrics.work_refused.inc(sequences * served.backlog.work_s / waiting if waiting else 0.0)
            raise

    def _admit(self, sequences: int, tokens: int) -> None:
        admit(self.models.backlogs.values(), sequences, tokens, self._capacity, self._cores.narrow, self._running_s)

    def submit(self, key: ModelKey, pendings: Sequence[Pending]) -> None:
        """Accept one call's sequences, all or none; each is settled exactly once from here on.

        Raises BacklogFull, DeadlineUnreachable or Expired.
        """
        served = self.models[key]
        looked = [self._look(pending) for pending in pendings] if self._results.kept else []
        computed = [pending for pending, vectors, _ in looked if vectors is None] if looked else pendings
        if computed:
            self._accept(served, computed)
        served.metrics.accepted.inc(len(pendings))
        for pending, vectors, took_s in looked:
            if vectors is None:
                served.metrics.cache_misses.inc()
                served.metrics.statistics.cache_miss.add(took_s)
            else:
                served.metrics.cache_hits.inc()
                served.metrics.statistics.cache_hit.add(took_s)
                served.settle(pending, vectors)
        self._pump()

    def _look(self, pending: Pending) -> tuple[Pending, Vectors | None, float]:
        """Its vectors, if they are kept, and how long it took to look."""
        began_s = self._clock()
        vectors = self._results.find(pending.key) if pending.key else None
        found_s = self._clock()
        if vectors is not None:
            pending.stamps.found(found_s)
        return pending, vectors, found_s - began_s

    def _accept(self, served: Served, pendings: Sequence[Pending]) -> None:
        """Let them wait. Raises BacklogFull, DeadlineUnreachable or Expired."""
        if pendings[0].deadline.passed(self._clock()):
            raise Expired(pendings[0].deadline.by_cap)
        cost = served.backlog.cost
        lengths = [pending.length for pending in pendings]
        work_s = sum(cost.share_s(length) for length in lengths) * cost.scale
        try:
            self._admit(len(lengths), sum(lengths))
            self._check_deadline(served.backlog, lengths, pendings[0])
        except Refusal:
            served.metrics.work_refused.inc(work_s)
            raise
        self._budget.keep_room(served.backlog.memory.batch_bytes(1, max(lengths)))
        served.metrics.work_accepted.inc(work_s)
        self._cores.arrived(len(pendings), pendings[0].priority, self._clock())
        for pending in pendings:
            served.metrics.sequence_length.observe(pending.length)
            served.backlog.add(pending)

    def _check_deadline(self, backlog: Backlog[Pending], lengths: list[int], first: Pending) -> None:
        others = [other for other in self.models.backlogs.values() if other is not backlog]
        if self._cores.free and not backlog.sequences and not any(other.sequences for other in others):
            # It starts at once. Were it refused, a prediction gone wrong would never be corrected.
            return
        meet_deadline(
            backlog,
            lengths,
            first.priority,
            first.deadline,
            self._clock(),
            self._cores.narrow,
            self._running_s(),
            others,
            first.tenant,
        )

    def withdraw(self, key: ModelKey, pendings: Sequence[Pending], outcome: Outcome) -> None:
        """Settle those that have no outcome yet, and free their places at once. What runs already runs on, unheard."""
        served = self.models[key]
        for pending in pendings:
            served.backlog.remove(pending)
            served.settle(pending, outcome)
        # Whoever left may have led, and have waited for more memory than the next one needs.
        self._pump()

    def _pump(self, ahead: bool = False) -> None:
        """Start what can start; `ahead`: prepare further batches for lanes that run, too."""
        try:
            while (self._cores.free or ahead) and not self._out_of_memory:
                now_s = self._clock()
                left_bytes = self._budget.bytes(now_s)
                if self._running:
                    # Else whoever was accepted has its turn, whatever runs that hang still hold.
                    left_bytes -= self.predicted_batch_bytes()
                limits = replace(self._limits, memory_bytes=left_bytes)
                decision = decide(self._may_start(), self._cores, limits, now_s)
                self._scheduler_seconds.inc(self._clock() - now_s)
                if not isinstance(decision, Start):
                    return
                self._start(decision, now_s)
        except Exception as error:  # noqa: BLE001 - the loop's edge: a bug here must not leave requests hanging
            self._on_fatal(error)

    def _may_start(self) -> Mapping[ModelKey, Backlog[Pending]]:
        """All that waits, but for the models of which one batch runs at a time, while one does."""
        if len(self.models.ordinary) == len(self.models.backlogs):
            return self.models.backlogs
        started = (*self._running.values(), *self._prepared.values(), *self._hanging)
        return self.models.ordinary if any(run.apart for run in started) else self.models.backlogs

    def _start(self, start: Start[ModelKey, Pending], now_s: float) -> None:
        served = self.models[start.model]
        expired = [pending for pending in start.batch if pending.deadline.passed(now_s)]
        if expired:
            # Never computed. The rest may deserve another batch, so the decision is made anew.
            for pending in expired:
                served.backlog.remove(pending)
                served.settle(pending, Expired(pending.deadline.by_cap))
            return
        for rider, pending in served.backlog.start(list(start.batch)):
            pending.riders.append(rider)
            served.metrics.shared.inc()
        if self._shrinking is not None:
            self._shrinking.cancel()
            self._shrinking = None
        self._cores.start(start.lane, now_s, start.predicted_s, start.bulk, start.model)
        run = _Run(start, Halt(), apart=served.apart)
        if start.lane in self._running:
            self._prepared[start.lane] = run
        else:
            self._begin(run, now_s)
        runner = served.wide_runner if start.wide else served.runners[start.lane]
        assert runner is not None, "the wide lane needs a cost surface, and that comes with a runner"
        self._lanes[start.lane].start(runner, start.batch, self._from_lane(run), run.halt)

    def _begin(self, run: _Run, now_s: float) -> None:
        run.since_s = now_s
        lane = run.start.lane
        self._running[lane] = run
        self._watchdog.watch(lane, run.start.predicted_s, partial(self._stalls, run), partial(self._hangs, run))

    def _from_lane(self, run: _Run) -> Callable[[Ran], None]:
        def on_ran(ran: Ran) -> None:
            self._loop.call_soon_threadsafe(self._ran, run, ran)

        return on_ran

    def _ran(self, run: _Run, ran: Ran) -> None:
        if run in self._hanging:
            self._hanging.discard(run)
            self._pump()
            return
        took_s = self._free(run, ran.ended_s)
        if not run.stalled:
            self._answer(run, ran, took_s)
            return
        log.info("a stalled run ended", lane=self._lanes[run.start.lane].name)
        self._pump(ahead=True)
        self._leave_lane()

    def _free(self, run: _Run, ended_s: float) -> float:
        """Its lane is free, or goes on with what is prepared. Returns how long it was taken."""
        lane = run.start.lane
        del self._running[lane]
        self._watchdog.done(lane)
        now_s = self._clock()
        following = self._prepared.pop(lane, None)
        if following:
            self._begin(following, ended_s)
        self._cores.done(lane, now_s)
        self._out_of_memory = False
        self._tell()
        return (ended_s if following else now_s) - run.since_s

    def _stalls(self, run: _Run) -> None:
        """Its sequences fail, all of them: nobody knows on whom the engine stalled, and there it would again."""
        run.halt.set()
        run.stalled = True
        start, now_s = run.start, self._clock()
        took_s = now_s - run.since_s
        log.error(
            "a run stalled",
            lane=self._lanes[start.lane].name, model=start.model[0], sequences=len(start.batch),
            padded_length=max(pending.length for pending in start.batch),
            predicted_s=round(start.predicted_s, 4), ran_s=round(took_s, 3),
        )  # fmt: skip
        self.models[start.model].metrics.stalled.inc()
        rode = [pending for pending in start.batch if pending.expecting()]
        for pending in rode:
            # Its lane may never have come to it.
            pending.stamps.taken_s = pending.stamps.taken_s or now_s
        failures: list[Outcome] = [ComputeFailed("ENGINE_STALLED")] * len(rode)
        self._tell()
        self._answer(run, Ran(rode, failures, 0.0, took_s, now_s, (), stalled=True), took_s)

    def _hangs(self, run: _Run) -> None:
        """It did not end even so: another thread takes its lane, and whatever it still gives is too late."""
        lane = self._lanes[run.start.lane]
        lane.replace()
        self._hanging.add(run)
        self._replaced[run.start.lane].inc()
        hanging = sum(lane.hanging for lane in self._lanes)
        log.error("a stalled run does not end; another thread takes its lane", lane=lane.name, hanging=hanging)
        if hanging > MOST_HANGING:
            self._on_fatal(EngineHangs(f"{hanging} threads hang in the engine"))
            return
        self._free(run, self._clock())
        self._pump(ahead=True)
        self._leave_lane()

    def _tell(self) -> None:
        if self.works != self._worked:
            self._worked = self.works
            self._on_works(self._worked)

    def _answer(self, run: _Run, ran: Ran, took_s: float) -> None:
        start = run.start
        served = self.models[start.model]
        for pending in ran.expired:
            served.settle(pending, Expired(pending.deadline.by_cap))
        answers: list[tuple[Pending, Outcome]] = list(zip(ran.pendings, ran.outcomes, strict=True))
        if ran.short and served.apart:
            # What the others may take has not become less.
            served.metrics.out_of_memory.inc(len(ran.short))
        elif ran.short:
            answers = self._after_no_memory(served, ran.short, answers)
        # The lane gets its next batch first, its last one's answers go out while that runs.
        self._pump(ahead=True)
        if ran.pendings:
            self._busy_seconds[start.lane].inc(ran.busy_s)
            for pending in ran.pendings:
                self._metrics.tenant_tokens.labels(pending.tenant.queue).inc(pending.length)
            served.count(start, ran, took_s)
            if self._tracing is not None:
                self._trace(self._tracing, start, ran)
        now_s = self._clock()
        for pending, outcome in answers:
            pending.stamps.scattered_s = now_s
            served.settle(pending, outcome)
            for rider in pending.riders:
                rider.stamps.follow(pending.stamps)
                served.settle(rider, outcome)
            if pending.key and self._results.kept and not isinstance(outcome, Exception):
                self._results.keep(pending.key, outcome)
        if ran.pendings:
            collate_s = max(ran.pendings[0].stamps.collated_s - ran.pendings[0].stamps.taken_s, 0.0)
            served.metrics.statistics.ran(len(ran.pendings), collate_s, ran.compute_s, now_s - ran.ended_s)
            self._history.add(start, ran, served.backlog.cost, took_s, now_s)
        self._leave_lane()

    def _trace(self, tracing: Tracing, start: Start[ModelKey, Pending], ran: Ran) -> None:
        riders = [one for pending in ran.pendings for one in (pending, *pending.riders)]
        traces = [rider.trace for rider in riders if rider.trace is not None]
        if not traces:
            return
        name, version = start.model
        figures: dict[str, str | int | float] = {
            "model": name,
            "version": version,
            "lane": self._lanes[start.lane].name,
            "batch.sequences": len(ran.pendings),
            "batch.real_tokens": sum(pending.length for pending in ran.pendings),
            "batch.padded_length": max(pending.length for pending in ran.pendings),
            "batch.closed_by": start.closed_by,
            "batch.predicted_s": start.predicted_s,
        }
        batch = tracing.batch(traces, ran.pendings[0].stamps.taken_s, ran.ended_s, figures)
        for pending in ran.pendings:
            pending.stamps.batch = batch

    def _leave_lane(self) -> None:
        self.models.let_go()
        self._shrink_when_idle()

    def _after_no_memory(
        self, served: Served, short: Sequence[tuple[int, int]], answers: list[tuple[Pending, Outcome]]
    ) -> list[tuple[Pending, Outcome]]:
        """Lower the budget. Returns the answers, less those of sequences that wait again, for others to end.

        Only one that found no memory twice while nothing else ran is refused; its deadline bounds the rest.
        """
        ran_alone = not self._running
        now_s = self._clock()
        for rows, padded_length in short:
            served.metrics.out_of_memory.inc()
            tried_bytes = served.backlog.memory.batch_bytes(rows, padded_length)
            self._budget.lower(self.predicted_batch_bytes() + tried_bytes, now_s)
        final = []
        for pending, outcome in answers:
            final_refusal = ran_alone and pending.found_no_memory_alone
            expecting = pending.expecting()
            if not isinstance(outcome, NoMemory) or final_refusal or not expecting:
                final.append((pending, outcome))
                continue
            pending.riders.clear()
            for one in expecting:
                one.found_no_memory_alone = pending.found_no_memory_alone or ran_alone
                served.backlog.add(one)
            self._out_of_memory = not ran_alone
        return final

    def _shrink_when_idle(self) -> None:
        """Arm it; the next batch disarms it."""
        if not self._running:
            if self._shrinking is not None:
                self._shrinking.cancel()
            self._shrinking = self._loop.call_later(_IDLE_S, self._shrink)

    def _shrink(self) -> None:
        self._shrinking = None
        for served in self.models:
            for runner, lane in dict(zip(served.runners, self._lanes, strict=False)).items():
                lane.call(partial(shrink, runner))
            if served.wide_runner is not None:
                self._lanes[-1].call(partial(shrink, served.wide_runner))

    def _running_s(self) -> float:
        """The predicted rest of what runs, and what is prepared, in seconds of narrow lanes."""
        now_s = self._clock()
        rest_s = 0.0
        for run in list(self._running.values()):
            cores = self._cores.narrow if run.start.wide else 1
            rest_s += max(run.start.predicted_s - (now_s - run.since_s), 0.0) * cores
        return rest_s + sum(run.start.predicted_s for run in list(self._prepared.values()))
