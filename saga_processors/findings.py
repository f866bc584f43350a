"""What is allowed in a saga and seldom meant: hints to its author. Pure."""

import json
from collections.abc import Iterator

from saga_processors.definition import SagaDefinition, StepDefinition, StepKind

#: A step that is tried for ever and calls nobody for longer than this is worth a word, ms.
QUIET_LIMIT_MS = 24 * 3600 * 1000


def findings(definition: SagaDefinition) -> tuple[str, ...]:
    """Return hints on a checked definition, each with the step and what may be done about it."""
    return (
        *_not_undone(definition),
        *_pivot_over_http(definition),
        *_short_timeout(definition),
        *_quiet(definition),
        *_unused_input(definition),
    )


def _not_undone(definition: SagaDefinition) -> Iterator[str]:
    for step in definition.steps:
        if step.over_http and step.kind is StepKind.COMPENSATABLE and step.compensation_endpoint is None:
            yield (
                f"{step.name}: a compensatable HTTP step without a compensation endpoint is never undone; "
                "right only if it leaves nothing behind"
            )


def _pivot_over_http(definition: SagaDefinition) -> Iterator[str]:
    for step in definition.steps:
        if step.over_http and step.kind is StepKind.PIVOT:
            yield (
                f"{step.name}: a pivot over HTTP whose answer is lost is called again; unless the service answers the "
                "same Idempotency-Key as the first time, a refusal can undo a saga whose pivot has run"
            )


def _short_timeout(definition: SagaDefinition) -> Iterator[str]:
    if definition.timeout_ms is None:
        return
    longest: dict[int, int] = {}

    def needs(i: int) -> int:
        if i not in longest:
            step = definition.steps[i]
            longest[i] = step.timeout_ms + max((needs(j) for j in definition.depends_on[i]), default=0)
        return longest[i]

    slowest = max(needs(i) for i in range(len(definition.steps)))
    if definition.timeout_ms < slowest:
        yield (
            f"the saga's timeout of {definition.timeout_ms / 1000:g} s is shorter than one attempt of each step on its "
            f"longest path may take ({slowest / 1000:g} s): it can be undone although every service answers in time"
        )


def _quiet(definition: SagaDefinition) -> Iterator[str]:
    for step in definition.steps:
        if (quiet := _quiet_ms(step)) > QUIET_LIMIT_MS:
            yield (
                f"{step.name}: while it fails, nobody is called for {quiet / 3_600_000:.0f} hours; "
                f"lower retry.attention_after ({step.retry.attention_after})"
            )


def _quiet_ms(step: StepDefinition) -> int:
    """How long a step may fail, without an answer each time, until the saga needs attention."""
    total = 0
    for attempt in range(1, step.retry.attention_after + 1):
        total += step.timeout_ms + step.retry.delay_ms(attempt, "")
        if total > 10 * QUIET_LIMIT_MS:
            break
    return total


def _unused_input(definition: SagaDefinition) -> Iterator[str]:
    given = None if definition.input is None else json.loads(definition.input)
    if not isinstance(given, dict):
        return
    used = [r.path for template in definition.templates if template for r in template.references if r.step is None]
    if any(not path for path in used):
        return
    unused = sorted(given.keys() - {path[0] for path in used})
    if unused:
        yield f"no payload refers to these values of the input: {', '.join(unused)}"
