"""What a run did, in a report: its ledger of records and queries, its fleets, its settings."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape

from deploy.report.data import RunData
from deploy.report.markup import facts, quiet, table, texts_of
from deploy.run.progress import duration

_LEDGER = {
    "issued": "tickets that were handed out, each a prompt and its noises",
    "issued_records": "trajectories that samplers have put",
    "committed": "scored, and told to the learner",
    "failed": "set aside with their reason; no number stands for them",
    "retried": "times that one was queued again",
    "evicted": "scored ones whose latents have made room",
    "pending": "still waiting for their reward",
    "live": "scored ones that could be drawn at the end",
}
_SHOWN_ELSEWHERE = (
    "name", "before", "after", "versions", "status", "config", "records", "failures", "workers",
    "reward_queries", "reward_queries_again",
)  # fmt: skip


def ledger(run: RunData) -> str:
    """Where every record went, what was asked of rewards, and why some have none."""
    records = run.summary.get("records")
    if not isinstance(records, Mapping) or not records:
        return quiet("No count was written.")
    rows = [(name, f"{records[name]:,}", text) for name, text in _LEDGER.items() if name in records]
    parts = [
        table(("records", "count", "what they are"), rows, numbers=(1,)),
        f"<p>{escape(_queries(run))}</p>",
    ]
    if failures := texts_of(run.summary.get("failures")):
        counts = [(count, reason) for reason, count in failures.items()]
        parts.append("<h3>Why records failed</h3>" + table(("count", "reason"), counts, numbers=()))
    return "".join(parts)


def _queries(run: RunData) -> str:
    summary = run.summary
    asked, again = summary.get("reward_queries"), summary.get("reward_queries_again")
    limits = (run.config or {}).get("limits")
    budget = limits.get("reward_queries") if isinstance(limits, Mapping) else None
    of = f" of a budget of {budget:,}" if isinstance(budget, int) else ", without a budget"
    return f"{asked if asked is not None else 0:,} scores of single pictures{of}" + (
        f"; up to {again:,} asked again after a failure." if again else "."
    )


def fleets(run: RunData) -> str:
    """Decisions about the fleets, and what each actor has done."""
    parts = []
    if run.decisions:
        rows = [
            (_clock(each.get("time")), str(each.get("role")), _change(each), str(each.get("why")))
            for each in run.decisions
        ]
        parts.append(table(("time (UTC)", "fleet", "actors", "why"), rows, numbers=()))
    else:
        parts.append(quiet("Its fleets were as large as the config says all the time."))
    workers = run.summary.get("workers")
    if isinstance(workers, Mapping) and workers:
        rows = [(str(name), _counts(stats)) for name, stats in workers.items()]
        parts.append("<h3>Actors at the end</h3>" + table(("actor", "counts"), rows, numbers=()))
    return "".join(parts)


def _clock(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _change(decision: Mapping[str, object]) -> str:
    return f"{decision.get('from')} → {decision.get('to')}"


def _counts(stats: object) -> str:
    if not isinstance(stats, Mapping):
        return str(stats)
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in stats.items()
    )


def run_facts(run: RunData) -> str:
    """What else the summary says, and how long the run took."""
    texts = texts_of(run.summary, without=_SHOWN_ELSEWHERE)
    if run.points:
        texts["last step"] = str(run.points[-1].step)
        texts["training time"] = duration(run.points[-1].wall_s) or "–"
    return facts(texts) if texts else quiet("Nothing is known.")


def configuration(run: RunData) -> str:
    """Every setting, folded away."""
    if run.config is None:
        return quiet("The config was not written.")
    text = json.dumps(run.config, indent=2, ensure_ascii=False, default=str)
    return f"<details><summary>Resolved config</summary><pre>{escape(text)}</pre></details>"
