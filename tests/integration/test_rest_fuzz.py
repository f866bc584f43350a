"""Both REST services against their OpenAPI documents: whatever is sent, no 5xx and no answer that is not documented.

``FLUXORA_TEST_FUZZ_SECONDS`` (15) for each service; ``FLUXORA_TEST_FUZZ_SEED`` is another seed, or ``random`` for one
that nobody has tried.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.fix_coordinator import eventually, running
from tests.platform import Platform

SECONDS = int(os.environ.get("FLUXORA_TEST_FUZZ_SECONDS", "15"))
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)

st = Path(sys.executable).with_name("st")
pytestmark = pytest.mark.skipif(not st.exists(), reason="schemathesis is not installed")


def fuzz(url: str, directory: Path) -> None:
    seed = os.environ.get("FLUXORA_TEST_FUZZ_SEED", "1")
    if seed == "random":
        seed = str(random.SystemRandom().randrange(2**32))
    done = subprocess.run(
        [
            *(str(st), "run", f"{url}/openapi.json"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing,stateful"),
            *("--max-time", str(SECONDS), "--seed", seed, "--request-timeout", "20", "--continue-on-failure"),
            *("--generation-database", "none"),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout[-12_000:]}\n{done.stderr[-2_000:]}"


def test_the_coordinator_answers_as_its_document_says(platform: Platform, tmp_path: Path) -> None:
    # Long polls of its own, short ones: a minute each would be the whole time. And patient with Kafka and PostgreSQL:
    # that they are slow is answered 503, which is none of the fuzzer's business.
    patient = {"kafka_timeout_seconds": 30, "statement_timeout_seconds": 30, "pool_wait_seconds": 20}
    with running(
        platform.endpoints["DATABASE_URL"], wait_limit_seconds=0.2, request_wait_seconds=0.5, **patient
    ) as coordinator:
        eventually(lambda: coordinator.client.get("/ready").status_code == 200, 60)
        fuzz(coordinator.url, tmp_path)


def test_the_outbox_service_answers_as_its_document_says(platform: Platform, tmp_path: Path) -> None:
    fuzz(platform.endpoints["OUTBOX_URL"], tmp_path)
