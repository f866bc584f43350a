"""Imports point one way (ARCHITECTURE.md, "Packages")."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {
    "schemas",
    "web",
    "participant",
    "saga_processors",
    "coordinator",
    "outbox_relay",
    "connectors",
    "fluxora",
    "deploy",
    "examples",
    "bench",
}

#: What each package may import of ours, beside itself.
ALLOWED = {
    "schemas": set(),
    "web": {"schemas"},
    "participant": {"schemas"},
    "saga_processors": {"schemas", "participant"},
    "connectors": {"schemas", "participant", "saga_processors"},
    "outbox_relay": {"schemas", "web", "participant", "saga_processors"},
    "coordinator": {"schemas", "web", "participant", "saga_processors", "outbox_relay"},
    "fluxora": OURS - {"deploy", "examples", "bench"},
    "deploy": set(),
    "examples": {"participant", "deploy"},
    "bench": OURS,
}

#: Modules that decide: standard library and each other, nothing else.
PURE = {
    f"saga_processors.{name}"
    for name in (
        "backoff",
        "definition",
        "endpoint",
        "machine",
        "machines",
        "partition",
        "partitioning",
        "reference",
        "saga",
        "saga_machine",
        "skew",
        "transaction",
        "transaction_definition",
    )
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Full names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            # A module may be imported from its package.
            names |= {
                f"{node.module}.{alias.name}" if node.module in OURS else node.module or "" for alias in node.names
            }
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_is_below_them(package: str) -> None:
    for file in modules(package):
        wrong = {name.split(".")[0] for name in imported(file)} & OURS - ALLOWED[package] - {package}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_import_only_the_standard_library_and_each_other(module: str) -> None:
    for name in imported(ROOT / (module.replace(".", "/") + ".py")):
        assert name in PURE or name.split(".")[0] in sys.stdlib_module_names, f"{module} imports {name}"


def test_no_module_has_a_name_that_says_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
    found = [file for package in OURS if (ROOT / package).exists() for file in modules(package) if file.stem in vague]
    assert not found
