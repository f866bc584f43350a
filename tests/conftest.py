"""One real stack for the whole run, on ports and data of its own; started by the first test that asks for it."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from deploy.stack import Stack
from participant import outbox
from tests import http_services
from tests.http_services import Catalog
from tests.platform import Platform

# How long an example takes is the machine's affair, whether or not hypothesis knows that it runs in CI.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")

SERVICES = [Path(__file__).parent / "services" / name for name in ("ledger.toml", "vaults.toml")]


@pytest.fixture(scope="session")
def catalog() -> Iterator[Catalog]:
    """The service registry that the stack finds HTTP services in."""
    with http_services.catalog() as catalog:
        yield catalog


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Iterator[Stack]:
    """PostgreSQL, Kafka, Connect with Debezium, the registry, our services, the ledger services and the vaults."""
    run_dir = tmp_path_factory.mktemp("stack")
    crash_dir = run_dir / "crash"
    crash_dir.mkdir()
    with Stack(
        run_dir,
        int(os.environ.get("FLUXORA_TEST_PORT_BASE", "28600")),
        services=SERVICES,
        environment={
            "FLUXORA_CRASH_DIR": str(crash_dir),
            "SERVICE_REGISTRY_URL": catalog.url,
            # Two, so that a killed or frozen one has a successor.
            "FLUXORA_PROCESSORS": "2",
            # What is killed time after time is soon there again.
            "FLUXORA_RESTART_CAP": "2",
            # As the tests of a registry that is away wait for it.
            "FLUXORA_RELAY_REGISTRY_TTL_S": "1",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        report=print,
    ) as stack:
        for key, value in stack.endpoints().items():
            os.environ[key] = value
        yield stack
    if outbox.default_codec.cache_info().currsize:
        outbox.default_codec().close()


@pytest.fixture(scope="session")
def platform(stack: Stack) -> Iterator[Platform]:
    """The stack as a client sees it."""
    with Platform(stack) as platform:
        yield platform
