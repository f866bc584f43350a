"""What a user calls a saga, made into what the machine runs.

A blueprint is a ``participant.definitions.Definition``, a sequence of ``participant.sagas.Step``, or a document as it
is registered or sent to ``POST /sagas``. Everything that checks sagas without a platform takes any of them.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from participant import sagas
from participant.definitions import Definition
from saga_processors.definition import InvalidDefinition, SagaDefinition
from saga_processors.saga_codec import definition_from_record
from schemas import FluxoraError

Blueprint = Definition | Sequence[sagas.Step] | Mapping[str, Any]

#: As the coordinator's FLUXORA_MAX_STEPS; what is checked here must be accepted there.
MAX_STEPS = 100
_NOBODY = UUID(int=0)


class InvalidBlueprint(FluxoraError):
    """It is no saga, or one that the platform would refuse; the text names the field and the rule."""


def load(target: str) -> Any:
    """Import ``module:attribute``; the working directory comes first on the path.

    Raises:
        InvalidBlueprint: there is no such module or attribute.
    """
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise InvalidBlueprint(f"{target!r} is not of the form module:attribute, as shop.sagas:place_order")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InvalidBlueprint(f"{module_name} cannot be imported: {error}; run this where it can be") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise InvalidBlueprint(f"{module_name} has no {attribute}")
        found = getattr(found, name)
    return found


def example_of(blueprint: Any) -> Any:
    """The input that comes with a blueprint, if one does."""
    if isinstance(blueprint, Definition):
        return blueprint.example
    return blueprint.get("input") if isinstance(blueprint, Mapping) else None


def plan(blueprint: Any, input: Any = None, *, max_steps: int = MAX_STEPS) -> SagaDefinition:
    """Return the checked definition that ``advance`` runs.

    Raises:
        InvalidBlueprint: it breaks a rule.
    """
    name, version, steps, timeout = _parts(blueprint)
    try:
        record = sagas.started(_NOBODY, name, steps, timeout_seconds=timeout, version=version, input=input)
        definition = definition_from_record(record)
        definition.check(max_steps)
    except InvalidDefinition as error:
        raise InvalidBlueprint(str(error)) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidBlueprint(f"{name}: {error}") from error
    return definition


def _parts(blueprint: Any) -> tuple[str, str | None, Sequence[sagas.Step], float | None]:
    if isinstance(blueprint, Definition):
        return blueprint.name, blueprint.version, blueprint.compiled(), blueprint.timeout_seconds
    if isinstance(blueprint, Mapping):
        steps = blueprint.get("steps")
        if not isinstance(steps, Sequence) or isinstance(steps, str):
            raise InvalidBlueprint("steps: a document has a list of them")
        return (
            blueprint.get("name", "saga"),
            blueprint.get("version"),
            [_step(i, step) for i, step in enumerate(steps)],
            blueprint.get("timeout_seconds"),
        )
    if isinstance(blueprint, Sequence) and not isinstance(blueprint, str):
        return "saga", None, [_step(i, step) for i, step in enumerate(blueprint)], None
    raise InvalidBlueprint(
        "a saga is a Definition, a list of participant.sagas.Step, or a document with steps; "
        f"got {type(blueprint).__name__}"
    )


def _step(i: int, step: Any) -> sagas.Step:
    if isinstance(step, sagas.Step):
        return step
    if not isinstance(step, Mapping):
        raise InvalidBlueprint(f"steps[{i}]: is a participant.sagas.Step or a dict; got {type(step).__name__}")
    values = {name: value for name, value in step.items() if value is not None}
    try:
        if isinstance(values.get("retry"), Mapping):
            values["retry"] = sagas.Retry(**values["retry"])
        return sagas.Step(**values)
    except TypeError as error:
        raise InvalidBlueprint(f"steps[{i}]: {error}") from error
