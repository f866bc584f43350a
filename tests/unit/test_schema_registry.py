"""What a registry's answer means: only its own word says that an id has no schema."""

from typing import Any

import pytest

from schemas import RegistryUnavailable, UndecodableRecord
from schemas.registry import ConfluentRegistry
from tests.http_services import http_service


def asked(status: int, document: Any) -> str:
    with http_service(lambda call: (status, document)) as service:
        registry = ConfluentRegistry(service.url)
        try:
            return registry.schema_of(7)
        finally:
            registry.close()


def test_a_schema_is_given_as_it_is() -> None:
    assert asked(200, {"schema": '"string"'}) == '"string"'


@pytest.mark.parametrize(("status", "code"), [(404, 40403), (400, 400), (422, 42201)])
def test_an_id_that_the_registry_does_not_know_makes_a_record_undecodable(status: int, code: int) -> None:
    with pytest.raises(UndecodableRecord, match="no schema with id 7"):
        asked(status, {"error_code": code, "message": "not found"})


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (404, b"<html>no backend</html>"),
        (404, {"message": "default backend"}),
        (405, b""),
        (429, {"error_code": 42901, "message": "slowly"}),
        (200, {}),
        (200, {"error": "starting"}),
        (200, {"schema": ""}),
        (200, b"<html>starting</html>"),
        (200, b'{"schema": "'),
        (200, []),
        (200, {"schema": "<html>starting</html>"}),
    ],
)
def test_what_is_not_its_own_word_is_an_outage_and_no_poison(status: int, document: Any) -> None:
    with pytest.raises(RegistryUnavailable):
        asked(status, document)


@pytest.mark.parametrize("nonsense", [{}, {"schema": ""}, {"schema": "<html>"}, b"<html>"])
def test_nonsense_is_not_remembered(nonsense: Any) -> None:
    answers: list[Any] = [nonsense, {"schema": '"string"'}]
    with http_service(lambda call: (200, answers.pop(0))) as service:
        registry = ConfluentRegistry(service.url)
        with pytest.raises(RegistryUnavailable):
            registry.schema_of(7)
        assert registry.schema_of(7) == '"string"'
        registry.close()
