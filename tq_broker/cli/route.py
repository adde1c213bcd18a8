"""``tq-broker route``: where tasks go and why, and the traffic rules that send them elsewhere."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import click
import msgspec

from tq_broker.cli.commands import Group, affinity_options, shared
from tq_broker.cli.output import age
from tq_broker.cli.session import session_of
from tq_broker.cli.task_queue import WAIT
from tq_broker.cli.values import DURATION, TEXTS, parse_affinity, parse_requires, parse_route
from tq_broker.client.rule_review import Finding
from tq_broker.client.traffic import Rehearsal
from tq_broker.clock import SystemClock, epoch_ms
from tq_broker.common import ActivityOptions, check_duration, to_ms
from tq_broker.model import affinity
from tq_broker.model.rule_table import Facts
from tq_broker.model.rules import TaskKind, TrafficRule, matching
from tq_broker.model.settings import RuleChange, TrafficRuleSet
from tq_broker.queues.routing import Asked

KINDS = click.Choice([kind.value for kind in TaskKind])
HEADER = click.option(
    "--header", "headers", type=TEXTS, multiple=True, metavar="K=V", help="May be said again."
)
FAIRNESS_KEY = click.option("--fairness-key", default="", help="The key of its share.")
EXAMPLES_MAX = 10


@click.group(cls=Group)
def route() -> None:
    """Tell where tasks go and why, and send some elsewhere by traffic rules.

    \b
    Examples:
      tq-broker route explain charge --task-queue orders --header tenant=acme
      tq-broker route explain render --task-queue video --requires gpu --route host:h1
      tq-broker route set try-out --type charge --task-queue orders --percent 5 \\
          --to orders-laptop --ttl 1h --reason "try the new parser"
      tq-broker route remove try-out
    """


@route.command()
@click.argument("type_", metavar="TYPE")
@click.option("--task-queue", required=True, help="Its own, as call or decorator say.")
@click.option("--kind", type=KINDS, default="activity", show_default=True)
@HEADER
@click.option("--memo", type=TEXTS, multiple=True, metavar="K=V", help="Of its workflow.")
@click.option("--priority", type=click.IntRange(1, 5))
@FAIRNESS_KEY
@click.option("--requires", multiple=True, metavar="NAME", help="What it requires. Repeat it.")
@click.option("--on-unserved", default="wait", show_default=True, help="As for activity start.")
@click.option(
    "--route", metavar="host:NAME|process:ID|version:V", help="Where it says that it must run."
)
@click.option("--on-gone", default="fail", show_default=True, help="As for activity start.")
@affinity_options
@click.option("--id", "id_", default="", help="Its id, which decides about percentages.")
@WAIT
@click.pass_context
def explain(
    ctx: click.Context, /, type_: str, task_queue: str, wait: timedelta, **said: Any
) -> None:
    """Tell where a task of the type TYPE would go now, step by step."""
    session = session_of(ctx)
    facts = Facts(
        kind=TaskKind(said["kind"]),
        type=type_,
        task_queue=task_queue,
        id=said["id_"],
        headers=dict(said["headers"]),
        priority=said["priority"],
        memo={name: msgspec.json.encode(text) for name, text in said["memo"]},
        fairness_key=said["fairness_key"],
    )
    asked = Asked(
        route=parse_route(said["route"], said["on_gone"]) if said["route"] else None,
        requires=parse_requires(said["requires"], said["on_unserved"]),
    )
    bond = affinity.affinity_of(ActivityOptions(**parse_affinity(said)))
    with session.operations() as operations:
        steps = operations.traffic.explain(facts, asked, wait_s=wait.total_seconds())
    if bond is not None:
        steps += affinity.explain(bond, of_workflow=facts.kind is TaskKind.WORKFLOW)
    if session.output.as_json:
        session.output.json({"steps": steps})
        return
    for number, step in enumerate(steps, 1):
        click.echo(f"{number}. {step}")


@route.command("list")
@click.option("--history", is_flag=True, help="Who has set and removed rules, when and why.")
@click.pass_context
def list_(ctx: click.Context, history: bool) -> None:
    """List the traffic rules in force, in their order."""
    session = session_of(ctx)
    with session.operations() as operations:
        changes = operations.traffic.changes() if history else []
        rules = [] if history else operations.traffic.rules()
    now_ms = epoch_ms(SystemClock())
    if history:
        session.output.rows(
            ("TIME", "RULE", "CHANGE", "BY", "REASON"),
            [_change(one) for one in changes],
            data=[msgspec.to_builtins(one) for one in changes],
            empty="no traffic rules were ever set",
        )
        return
    session.output.rows(
        ("ORDER", "RULE", "MATCHES", "GOES TO", "FALLS BACK", "ENDS IN", "BY", "REASON"),
        [
            (
                one.order,
                one.id,
                matching(one),
                one.target,
                f"after {one.take_within_ms / 1000:g} s" if one.fallback else "never",
                age((one.expires_ms - now_ms) / 1000) if one.expires_ms else "-",
                one.by,
                one.reason,
            )
            for one in rules
        ],
        data=[msgspec.to_builtins(one) for one in rules],
        empty="no traffic rules",
    )


_MATCH = shared(
    click.option("--kind", type=KINDS, help="Only activities or workflows.  [both]"),
    click.option("--type", "type_", default="*", help="Only types like this: 'order-*'."),
    click.option("--task-queue", default="", help="Only tasks of this task queue."),
    HEADER,
    click.option(
        "--memo", type=TEXTS, multiple=True, metavar="K=V", help="Of a workflow and its activities."
    ),
    click.option("--priority", type=click.IntRange(1, 5)),
    FAIRNESS_KEY,
    click.option(
        "--percent", type=float, default=100.0, help="As many of them, by a stable hash of the id."
    ),
)
_ACTION = shared(
    click.option("--to", "to_task_queue", default="", help="The task queue they go to."),
    click.option("--to-host", default="", help="The host they go to."),
    click.option("--to-version", default="", metavar="V", help="The deployment version: shop.1.4."),
    click.option("--take-within", type=DURATION, default="10s", show_default=True,
                 help="What is not taken in that time comes back."),
    click.option("--no-fallback", is_flag=True, help="Nothing comes back: it waits there."),
)  # fmt: skip


@route.command("set")
@click.argument("rule_id", metavar="RULE")
@_MATCH
@_ACTION
@click.option("--order", type=int, default=100, show_default=True, help="Lower comes first.")
@click.option("--ttl", type=DURATION, help="Ends after that time.  [when it is removed]")
@click.option("--reason", default="", help="For those who see it later.")
@click.option("--by", default="", help="Who sets it.  [user@host]")
@click.option("--dry-run", is_flag=True, help="Set nothing; tell what it would have done lately.")
@click.option("--force", is_flag=True, help="Set it in spite of what there is to say against it.")
@WAIT
@click.pass_context
def set_(
    ctx: click.Context, /, rule_id: str, dry_run: bool, force: bool, wait: timedelta, **said: Any
) -> None:
    """Set the traffic rule RULE: what it matches goes elsewhere, within a second.

    It is refused when nobody serves the target, when it loops, or hides another rule or is hidden.
    """
    session = session_of(ctx)
    rule = _rule(rule_id, said)
    with session.operations() as operations:
        if dry_run:
            rehearsal = operations.traffic.rehearse(rule, wait_s=wait.total_seconds())
        else:
            findings = operations.traffic.set(rule, force=force, wait_s=wait.total_seconds())
    if dry_run:
        _show(rehearsal, session.output)
        return
    for finding in findings:
        click.echo(f"tq-broker: {finding.text}", err=True)
    session.output.done(
        f"rule {rule_id!r} set: {matching(rule)} to {rule.target}",
        data={"rule": msgspec.to_builtins(rule), "findings": _findings(findings)},
    )


@route.command()
@click.argument("rule_id", metavar="RULE")
@click.option("--reason", default="", help="For those who see it later.")
@click.pass_context
def remove(ctx: click.Context, rule_id: str, reason: str) -> None:
    """End the traffic rule RULE. What its target has got stays there."""
    session = session_of(ctx)
    with session.operations() as operations:
        operations.traffic.remove(rule_id, reason=reason)
    session.output.done(f"rule {rule_id!r} removed", data={"rule": rule_id})


def _rule(rule_id: str, said: dict[str, Any]) -> TrafficRule:
    ttl = said["ttl"]
    now_ms = epoch_ms(SystemClock())
    return TrafficRule(
        id=rule_id,
        order=said["order"],
        kind=TaskKind(said["kind"]) if said["kind"] else None,
        type=said["type_"],
        task_queue=said["task_queue"],
        headers=dict(said["headers"]),
        memo=dict(said["memo"]),
        priority=said["priority"],
        fairness_key=said["fairness_key"],
        percent=said["percent"],
        to_task_queue=said["to_task_queue"],
        to_host=said["to_host"],
        to_version=said["to_version"],
        fallback=not said["no_fallback"],
        take_within_ms=to_ms(said["take_within"]),
        expires_ms=0 if ttl is None else now_ms + to_ms(check_duration("--ttl", ttl)),
        by=said["by"],
        reason=said["reason"],
    )


def _show(rehearsal: Rehearsal, output: Any) -> None:
    now_ms = epoch_ms(SystemClock())
    if output.as_json:
        output.json(
            {
                "findings": _findings(rehearsal.findings),
                "seen": rehearsal.seen,
                "since_ms": rehearsal.since_ms,
                "moves": [
                    {**msgspec.to_builtins(one.task), "before": one.before, "after": one.after}
                    for one in rehearsal.moves
                ],
            }
        )
        return
    for finding in rehearsal.findings:
        click.echo(f"{'would be refused' if finding.refuses else 'note'}: {finding.text}")
    if not rehearsal.seen:
        click.echo("no worker has taken a task lately: nothing to try it on")
        return
    since = age((now_ms - rehearsal.since_ms) / 1000)
    click.echo(f"of {rehearsal.seen} tasks in the last {since}, {len(rehearsal.moves)} would move")
    counts = Counter(
        (one.task.facts.kind.value, one.task.facts.type, one.before, one.after)
        for one in rehearsal.moves
    )
    output.rows(
        ("COUNT", "KIND", "TYPE", "FROM", "TO"),
        [(count, *key) for key, count in counts.most_common(EXAMPLES_MAX)],
        data=[],
        empty="nothing would move",
    )


def _findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) for one in findings]


def _change(change: RuleChange) -> tuple[str, str, str, str, str]:
    if isinstance(change, TrafficRuleSet):
        rule = change.rule
        what = f"set: {matching(rule)} to {rule.target}"
        return _time(rule.at_ms), rule.id, what, rule.by, rule.reason
    return _time(change.at_ms), change.rule_id, "removed", change.by, change.reason


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, timezone.utc).isoformat(timespec="seconds")
