"""Routing and filter rules of messages."""

import os
from pathlib import Path

import pytest

from outbox_relay.messages.rules import InvalidRules, Rules, Verdict, read_rules


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return Rules(
        write(
            tmp_path / "rules.toml",
            """
            [[rule]]
            destination = "billing"
            type = "invoice.*"
            action = "route"
            to = "billing-v2"
            [[rule]]
            destination = "billing*"
            action = "reject"
            reason = "closed"
            [[rule]]
            type = "debug.*"
            action = "drop"
            """,
        )
    )


def test_the_first_rule_that_matches_decides_and_routes_are_not_followed(rules: Rules) -> None:
    assert rules.decide("billing", "invoice.made") == Verdict("deliver", "billing-v2")
    assert rules.decide("billing", "other") == Verdict("reject", "billing", "rule 2: closed")
    assert rules.decide("meters", "debug.x") == Verdict("drop", "meters", "rule 3: action = drop")
    assert rules.decide("meters", "reading") == Verdict("deliver", "meters")


def test_a_message_without_a_type_is_matched_only_by_rules_without_one(rules: Rules) -> None:
    assert rules.decide("billing", None).action == "reject"
    assert rules.decide("meters", None) == Verdict("deliver", "meters")


def test_without_a_file_every_message_goes_where_it_is_addressed() -> None:
    assert Rules(None).decide("billing", "x") == Verdict("deliver", "billing")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[rule]]\naction = "route"', r"rules.toml: rule 1: `to` goes with"),
        ('[[rule]]\naction = "drop"\nto = "x"', r"rule 1: `to` goes with"),
        ('[[rule]]\naction = "drop"\n[[rule]]\naction = "burn"', r"rule 2, action: Input should be"),
        ('[[rule]]\naction = "drop"\ntpye = "x"', r"rule 1, tpye: Extra inputs"),
        ('[[rule]]\naction = "route"\nto = "no/name"', r"rule 1, to: "),
        ("[[rules]]", r"file, rules: Extra inputs"),
        ("[[rule]", r"rules.toml: .*line 1"),
        ("\xff", r"rules.toml: "),
    ],
)
def test_a_bad_file_is_refused_with_rule_and_field_or_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "rules.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidRules, match=told):
        read_rules(file)


def test_a_missing_file_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidRules, match=r"none.toml: No such file"):
        Rules(tmp_path / "none.toml")


def test_a_changed_file_is_read_and_a_bad_or_vanished_one_keeps_the_old_rules(tmp_path: Path) -> None:
    file = write(tmp_path / "rules.toml", '[[rule]]\naction = "drop"')
    rules = Rules(file)
    rules.look()
    assert rules.error is None
    write(file, "[[rule]")
    rules.look()
    assert rules.error is not None and "line 1" in rules.error
    assert rules.decide("a", None).action == "drop"
    file.unlink()
    rules.look()
    assert rules.error is not None and "No such file" in rules.error
    os.rename(write(tmp_path / "next", '[[rule]]\naction = "reject"'), file)
    rules.look()
    assert rules.error is None
    assert rules.decide("a", None).action == "reject"
