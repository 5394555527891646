"""Which evaluated iteration of a run counts: pure functions of its evaluations."""

from benchmarks.errors import UserError, closest
from benchmarks.record import Evaluation
from benchmarks.reporting.statistics import average

RULES = ("last", "source-val", "target-oracle")


def select(evaluations: list[Evaluation], rule: str, metric: str) -> Evaluation | None:
    """The evaluation that a selection rule picks; the earliest of equals; None of none.

    Rules: `last` iteration; best mean over the held-out source domains (`source-val`); best mean
    over the target domains (`target-oracle`: an upper bound that no one could have chosen).

    Raises:
        UserError: unknown rule, or nothing to select by.
    """
    if not evaluations:
        return None
    ordered = sorted(evaluations, key=lambda evaluation: evaluation.iteration)
    if rule == "last":
        return ordered[-1]
    if rule not in RULES:
        raise UserError(f"no selection rule {rule!r}{closest(rule, RULES)}")
    role = "validation" if rule == "source-val" else "target"
    scores = [mean_of_role(evaluation, role, metric) for evaluation in ordered]
    known = [score for score in scores if score is not None]
    if not known:
        raise UserError(f"selection {rule}: no {role} domain with {metric} in the records")
    return ordered[scores.index(max(known))]


def mean_of_role(evaluation: Evaluation, role: str, metric: str) -> float | None:
    """Unweighted mean (percent) over the domains of a role; None where one is missing."""
    scores = [score for score in evaluation.domains.values() if score.role == role]
    values = [score.metrics.get(metric) for score in scores]
    return average([value if isinstance(value, float) else None for value in values])
