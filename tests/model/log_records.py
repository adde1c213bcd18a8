"""Records of the settings log, of all kinds and by chance."""

from __future__ import annotations

from hypothesis import strategies as st

from tq_broker.model.deployments import RoutingSet, VersionDeleted, VersionServes
from tq_broker.model.limits import Limits, Side
from tq_broker.model.parts import ALL, EACH_KEY, Part, PartKind
from tq_broker.model.rules import TrafficRule
from tq_broker.model.settings import (
    SIDES,
    ActivityCanceled,
    BackedOff,
    CapabilitiesDeclared,
    FairnessWeightSet,
    LimitsSet,
    Record,
    TaskQueueDeclared,
    TaskQueueFair,
    TaskQueuePaused,
    TaskQueuePrioritized,
    TaskQueueReclaimed,
    TaskQueueResumed,
    TrafficRuleRemoved,
    TrafficRuleSet,
)

names = st.sampled_from("ab")
times = st.integers(0, 1000)
sides = st.sampled_from(SIDES)
either = st.sampled_from(["", *SIDES])
requires = st.sampled_from([(), ("gpu",), ("gpu", "ssd")])
builds = st.sampled_from(["v1", "v2"])
revisions = st.integers(0, 3)
limits = st.none() | st.builds(Limits, rate=st.sampled_from([1.0, 2.0]))
rules = st.builds(
    TrafficRule, id=names, to_task_queue=names, at_ms=times, expires_ms=st.sampled_from([0, 500])
)


@st.composite
def limits_set(draw: st.DrawFn) -> LimitsSet:
    side = draw(st.sampled_from(list(Side)))
    parts = [ALL, EACH_KEY, Part(PartKind.KEY, "k")] if side is Side.ACTIVITY else [ALL]
    return LimitsSet(
        task_queue=draw(names),
        side=side,
        limits=draw(limits),
        at_ms=draw(times),
        change_id=draw(st.text("xyz", min_size=5, max_size=9)),
        revision=draw(revisions),
        is_default=draw(st.booleans()),
        part=draw(st.sampled_from(parts)),
    )


records: st.SearchStrategy[Record] = (
    st.builds(TaskQueueDeclared, names, times, st.just("me"), sides, requires)
    | st.builds(
        TaskQueueReclaimed, names, times, st.just(""), sides, st.booleans(), st.booleans(), requires
    )
    | st.builds(TaskQueuePrioritized, names, times, st.just("me"), sides)
    | st.builds(TaskQueueFair, names, times, st.just("me"), sides)
    | st.builds(
        FairnessWeightSet,
        names,
        names,
        st.none() | st.just(2.0),
        times,
        st.just("me"),
        st.just("so"),
        either,
    )
    | st.builds(CapabilitiesDeclared, names, requires, times)
    | st.builds(TaskQueuePaused, names, times, st.just("me"), st.just("so"), either)
    | st.builds(TaskQueueResumed, names, times, st.just("me"), st.just("so"), either)
    | st.builds(BackedOff, names, times, times, key=st.sampled_from(["", "k"]))
    | st.builds(ActivityCanceled, names, times)
    | st.builds(TrafficRuleSet, rules)
    | st.builds(TrafficRuleRemoved, names, times)
    | limits_set()
    | st.builds(VersionServes, names, builds, sides, names, times)
    | st.builds(
        RoutingSet,
        deployment=names,
        current=builds,
        ramping=st.just("v3"),
        percent=st.just(5.0),
        at_ms=times,
        change_id=names,
        revision=revisions,
    )
    | st.builds(
        RoutingSet,
        deployment=names,
        current=builds,
        at_ms=times,
        change_id=names,
        revision=revisions,
    )
    | st.builds(
        VersionDeleted,
        deployment=names,
        build_id=builds,
        at_ms=times,
        change_id=names,
        revision=revisions,
    )
)
