"""Routing and filter rules by destination and type, from a TOML file that is read again when it changes.

::

    [[rule]]
    destination = "billing"      # a name or a glob; every one by default
    type = "invoice.*"           # the same; a message without a type is matched only by a rule without one
    action = "route"             # to another destination
    to = "billing-v2"

    [[rule]]
    type = "debug.*"
    action = "drop"              # accepted, never delivered: FAILED, with the reason, and no dead letter
    reason = "nobody reads these"

    [[rule]]
    destination = "ledger"
    type = "test.*"
    action = "reject"            # POST is answered 422
    reason = "no tests in the ledger"

The first rule that matches decides; a message is routed once. Rules are applied when a message is posted and when it
is sent again, so a change of the file never moves a message that is on its way past those before it.
"""

import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from outbox_relay.messages.names import NAME
from schemas import FluxoraError

log = structlog.get_logger()

_GLOB = r"^[A-Za-z0-9_.:/*?\[\]!-]{1,200}$"
_SIZE_LIMIT, _RULES_LIMIT = 1 << 20, 1_000


class InvalidRules(FluxoraError):
    """The file cannot be used; the message names the file, the rule and the field, or the line."""


class Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    destination: str = Field(default="*", pattern=_GLOB)
    type: str | None = Field(default=None, pattern=_GLOB)
    action: Literal["route", "drop", "reject"]
    to: str | None = Field(default=None, pattern=f"^{NAME.pattern}$")
    reason: str | None = Field(default=None, max_length=400)

    @model_validator(mode="after")
    def _only_routes_lead_somewhere(self) -> Self:
        if (self.action == "route") != (self.to is not None):
            raise ValueError('`to` goes with action = "route", and only with it')
        return self

    def matches(self, destination: str, type: str | None) -> bool:
        return fnmatchcase(destination, self.destination) and (
            self.type is None or (type is not None and fnmatchcase(type, self.type))
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say of a message."""

    action: Literal["deliver", "drop", "reject"]
    #: Where it goes.
    to: str
    #: Of a drop or a reject: the rule and its reason.
    reason: str | None = None


def decide(rules: Sequence[Rule], destination: str, type: str | None) -> Verdict:
    for number, rule in enumerate(rules, 1):
        if rule.matches(destination, type):
            if rule.action == "route":
                return Verdict("deliver", rule.to or destination)
            return Verdict(rule.action, destination, f"rule {number}: {rule.reason or f'action = {rule.action}'}")
    return Verdict("deliver", destination)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rule: list[Rule] = Field(default=[], max_length=_RULES_LIMIT)


def read_rules(file: Path) -> tuple[Rule, ...]:
    """Raises InvalidRules."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_SIZE_LIMIT + 1)
        if len(content) > _SIZE_LIMIT:
            raise InvalidRules(f"{file}: a file of rules has at most {_SIZE_LIMIT} bytes")
        return tuple(_File.model_validate(tomllib.loads(content.decode())).rule)
    except OSError as error:
        raise InvalidRules(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRules(f"{file}: {error}") from error
    except ValidationError as error:
        told = "; ".join(_told(*_place(one["loc"]), one["msg"]) for one in error.errors())
        raise InvalidRules(f"{file}: {told}") from error


def _place(loc: Sequence[int | str]) -> tuple[str, str]:
    number = f"rule {loc[1] + 1}" if len(loc) > 1 and isinstance(loc[1], int) else "file"
    return number, ".".join(str(part) for part in loc[2:] or loc[:1] if part != "rule")


def _told(place: str, field: str, message: str) -> str:
    return f"{place}{f', {field}' if field else ''}: {re.sub('^Value error, ', '', message)}"


class Rules:
    """The rules in force. A file that turns bad leaves them as they are, and says so in ``error``."""

    def __init__(self, file: Path | None) -> None:
        """Raises InvalidRules: a process does not start with rules it cannot read."""
        self._file = file
        self._seen = self._stamp()
        self._rules = () if file is None else read_rules(file)
        #: Why the file as it is now is not in force.
        self.error: str | None = None

    def __len__(self) -> int:
        return len(self._rules)

    def decide(self, destination: str, type: str | None) -> Verdict:
        return decide(self._rules, destination, type)

    def look(self) -> None:
        """Read the file again if it has changed."""
        if self._file is None or (stamp := self._stamp()) == self._seen:
            return
        self._seen = stamp
        try:
            self._rules = read_rules(self._file)
        except InvalidRules as error:
            self.error = str(error)
            log.error("rules not reloaded; the former ones stay in force", error=self.error)
        else:
            self.error = None
            log.info("rules reloaded", file=str(self._file), rules=len(self._rules))

    def _stamp(self) -> tuple[int, int, int] | None:
        """Changes when the file does, also when another one is moved to its place."""
        if self._file is None:
            return None
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
