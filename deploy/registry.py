"""Apicurio Registry: the Confluent-compatible schema registry, its state in PostgreSQL."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict

from deploy.java import java, with_archive
from deploy.parts import Part
from deploy.postgres import REGISTRY_DATABASE, create_database
from deploy.readiness import driver_url, http_answers
from deploy.settings import StackSettings


def local_url(settings: StackSettings) -> str:
    return f"http://127.0.0.1:{settings.registry_port}/apis/ccompat/v7"


def registry_part(settings: StackSettings, database_url: str, requires: tuple[str, ...]) -> Part:
    """The registry in the database `registry` of the server that `database_url` points to."""
    server = conninfo_to_dict(driver_url(database_url))
    host, port = server.get("host") or "127.0.0.1", server.get("port") or 5432
    home = settings.jvm_dir.absolute() / "registry"
    # Not fetched yet: `missing_programs` will say so.
    jar = next(home.glob("apicurio-registry-app-*-runner.jar"), home / "apicurio-registry-app-runner.jar")

    async def prepare(_: object) -> None:
        # Made with ours, but not in a PostgreSQL that was there before us.
        await create_database(database_url, REGISTRY_DATABASE)

    part = Part(
        name="registry",
        # One compiler only: it is asked a few times at the start of each service, and then hardly ever.
        commands=(java(settings.registry_heap, "-XX:TieredStopAtLevel=1", "-jar", str(jar)),),
        environment={
            "APICURIO_STORAGE_KIND": "sql",
            "APICURIO_STORAGE_SQL_KIND": "postgresql",
            "APICURIO_DATASOURCE_URL": f"jdbc:postgresql://{host}:{port}/{REGISTRY_DATABASE}",
            "APICURIO_DATASOURCE_USERNAME": str(server.get("user") or "postgres"),
            "APICURIO_DATASOURCE_PASSWORD": str(server.get("password") or ""),
            "APICURIO_DATASOURCE_JDBC_INITIAL_SIZE": "1",
            "APICURIO_DATASOURCE_JDBC_MIN_SIZE": "1",
            "APICURIO_DATASOURCE_JDBC_MAX_SIZE": "10",
            "QUARKUS_HTTP_HOST": "127.0.0.1",
            "QUARKUS_HTTP_PORT": str(settings.registry_port),
            "QUARKUS_HTTP_ACCESS_LOG_ENABLED": "false",
            "QUARKUS_LOG_LEVEL": "WARN",
        },
        requires=requires,
        ready=http_answers(f"{local_url(settings)}/subjects"),
        prepare=prepare,
        ports={"FLUXORA_REGISTRY_PORT": settings.registry_port},
        directory=settings.root,
    )
    return with_archive(part, settings)
