"""The Python blocks of docs/sagas.md run, in order, in one namespace."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "sagas.md"


def test_every_python_block_of_the_guide_runs() -> None:
    text = PAGE.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) >= 5
    namespace: dict[str, Any] = {}
    for block in blocks:
        # Line numbers of an error are those of the page.
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), namespace)
