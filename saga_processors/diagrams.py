"""``python -m saga_processors.diagrams [--check]``: docs/machines.md from the machines' tables.

With ``--check`` it writes nothing and exits 1 when the file is not what the tables say.
"""

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from saga_processors.saga import SAGA_MOVES, STEP_MOVES
from saga_processors.transaction import PARTICIPANT_MOVES, TRANSACTION_MOVES

FILE = Path(__file__).parent.parent / "docs" / "machines.md"


_State = TypeVar("_State", bound=StrEnum)
_Move = TypeVar("_Move", bound=StrEnum)


def diagram(moves: Mapping[_State, Mapping[_Move, _State]]) -> str:
    """Return a Mermaid state diagram of a table of moves; the first state is the initial one."""
    states = list(moves)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {states[0]}"]
    for state, targets in moves.items():
        lines += [f"    {state} --> {target}: {move}" for move, target in targets.items()]
        if not targets:
            lines.append(f"    {state} --> [*]")
    return "\n".join([*lines, "```"])


def page() -> str:
    """Return the whole of docs/machines.md."""
    return f"""# The machines

Generated from the tables in `saga_processors/saga.py` and `saga_processors/transaction.py` by
`python -m saga_processors.diagrams`; `make check` fails when they differ. Edit the tables, never this file.

## A saga

{diagram(SAGA_MOVES)}

## A step of a saga

{diagram(STEP_MOVES)}

## A two-phase commit

{diagram(TRANSACTION_MOVES)}

## A participant of a two-phase commit

{diagram(PARTICIPANT_MOVES)}
"""


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        if not FILE.exists() or FILE.read_text() != page():
            sys.stderr.write(f"{FILE} is not what the tables say: run python -m saga_processors.diagrams\n")
            return 1
        return 0
    FILE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
