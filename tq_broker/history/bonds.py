"""Which host or process the activities of an affinity run on, as the run has come to know it.

::

                  ┌────────────── nothing has completed there, and it is gone ──────────────┐
                  v                                                                         │
    unknown: one activity goes to the task queue, ── it runs ──> known ── one has ──> firm ─┤
             others wait for it                                          completed          │
                  ^                                                                         │
                  └────────────── gone, and an activity wants to start anew ────────────────┘

Rules of this file: it changes bonds and the targets of activities, nothing else; who has to be put
on a queue because of that is its answer. A target that is gone is only lost when something has
completed there: before, there is nothing that activities could miss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tq_broker.common import DURATION_MAX, OnGone, Route, TargetKind
from tq_broker.history.state import Activity, Bond, Execution
from tq_broker.model.affinity import Affinity, OnLost, load_affinity
from tq_broker.model.events import ActivityTaskScheduled, WorkflowExecutionStarted
from tq_broker.model.tasks import load_route

Follower = tuple[int, Activity]


def inherited(started: WorkflowExecutionStarted) -> dict[str, Bond]:
    """What a run knows from its start: where the parent's activities, or those of the run before,
    were."""
    if started.affinity is None or not started.affinity_target:
        return {}
    key = load_affinity(started.affinity).key
    return {key: Bond(target=started.affinity_target, firm=started.affinity_firm)}


def handed_on(run: Execution, affinity: str | None) -> dict[str, Any]:
    """What a child, or the next run, with ``affinity`` begins with: fields of its start."""
    bond = None if affinity is None else run.bonds.get(load_affinity(affinity).key)
    if bond is None:
        return {"affinity_target": "", "affinity_firm": False}
    return {"affinity_target": bond.target, "affinity_firm": bond.firm}


def place(run: Execution, event_id: int, activity: Activity) -> bool:
    """Decide where the attempt goes; False if it has to wait until another one has started."""
    wish = activity.affinity
    if wish is None:
        return True
    bond = run.bonds.setdefault(wish.key, Bond())
    activity.target = bond.target
    if bond.target:
        return True
    if bond.finder != event_id and bond.finder in run.activities:
        return False
    bond.finder = event_id
    return True


def route(run: Execution, scheduled: ActivityTaskScheduled) -> Route | None:
    """The route of the attempt that is under way."""
    if scheduled.route is not None:
        return load_route(scheduled.route)
    activity = run.activities.get(scheduled.event_id)
    return None if activity is None else following(run, activity)


def following(run: Execution, activity: Activity) -> Route | None:
    """The route of ``activity`` to whom it follows now; ``None`` if that is nobody."""
    wish = activity.affinity
    if wish is None or not activity.target:
        return None
    if wish.on_lost is OnLost.WAIT and run.bonds[wish.key].firm:
        # Its own timeouts bound that, which are measured here.
        return Route(wish.kind, activity.target, OnGone.WAIT, DURATION_MAX)
    return Route(wish.kind, activity.target)


def ran(
    run: Execution, event_id: int, activity: Activity, *, completed: bool = False
) -> Iterator[Follower]:
    """The activity runs, or has ``completed``, where it says now. Gives who follows it."""
    wish = activity.affinity
    where = "" if wish is None else _where(wish, activity)
    if wish is None or not where:
        return
    bond = run.bonds[wish.key]
    if bond.finder in (0, event_id) and not bond.firm:
        bond.target = where
    if completed and bond.target == where:
        bond.firm = True
    yield from _released(run, wish)


def _where(wish: Affinity, activity: Activity) -> str:
    return activity.host if wish.kind is TargetKind.HOST else activity.worker_id


def failed(run: Execution, event_id: int, activity: Activity) -> None:
    """There will be another attempt: anywhere, if no other activity depends on where this was."""
    wish = activity.affinity
    if wish is None:
        return
    bond = run.bonds[wish.key]
    if bond.finder == event_id and not bond.firm and not _others(run, wish, event_id):
        bond.target = ""


def _others(run: Execution, wish: Affinity, event_id: int) -> bool:
    return any(
        of_id != event_id and of.target and of.affinity is not None and of.affinity.key == wish.key
        for of_id, of in run.activities.items()
    )


def lost(run: Execution, activity: Activity, *, is_gone: bool) -> bool:
    """The attempt never began where it was sent to, which ``is_gone`` or has changed hands.

    Returns whether there is another attempt; if not, the activity fails.
    """
    wish = activity.affinity
    assert wish is not None, "only who follows somebody has a target"
    bond = run.bonds[wish.key]
    if bond.target != activity.target or not is_gone:
        return True
    if bond.firm and wish.on_lost is not OnLost.RESTART:
        return False
    bond.target, bond.firm, bond.finder = "", False, 0
    return True


def ended(run: Execution, event_id: int, activity: Activity) -> Iterator[Follower]:
    """The activity has ended and is pending no more. Gives who goes in its place."""
    wish = activity.affinity
    if wish is None:
        return
    bond = run.bonds[wish.key]
    if bond.finder == event_id:
        bond.finder = 0
    yield from _released(run, wish)


def _released(run: Execution, wish: Affinity) -> Iterator[Follower]:
    """Those that have waited and need not any more; each is placed before the next is given."""
    for event_id, activity in list(run.activities.items()):
        if not activity.held or activity.affinity is None or activity.affinity.key != wish.key:
            continue
        bond = run.bonds[wish.key]
        if bond.target or bond.finder not in run.activities:
            yield event_id, activity
