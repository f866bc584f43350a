"""The library's own statements, on SQLAlchemy's connection and transaction, past its execution.

They are a handful a batch, always the same, and want nothing that SQLAlchemy adds to a statement, which costs three
times what psycopg takes for it. Handlers' statements go its way. An error is told as SQLAlchemy would tell it.
"""

from typing import Any, LiteralString

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


class Statement:
    """One statement, with psycopg's ``%(name)s`` for its parameters.

    SQLAlchemy's events are not fired: a ``Guard`` does not see it.
    """

    def __init__(self, sql: LiteralString, *, keep_plan: bool = True) -> None:
        """
        Args:
            keep_plan: False has PostgreSQL plan it each time, 0.05 to 0.1 ms. A plan that was made while a table was
                small, and reads all of it, stays until the table is analyzed, a minute and tens of thousands of rows
                later.
        """
        self._sql = sql
        #: Of psycopg; None: prepared once it has been used a few times.
        self._prepare = None if keep_plan else False

    def __call__(self, connection: Connection, **parameters: object) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run it in the transaction of ``connection``, begun here if none is; returns the cursor with its rows.

        Raises:
            sqlalchemy.exc.DBAPIError: or its subclass for the kind of error. With a connection that is lost,
                ``connection`` is invalidated.
        """
        if not connection.in_transaction():
            # As SQLAlchemy's execution does: otherwise the caller's ``commit`` would find nothing to commit.
            connection.begin()
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection), "the engine is made with postgresql+psycopg"
        try:
            return driver.execute(self._sql, parameters, prepare=self._prepare)
        except psycopg.Error as error:
            lost = driver.closed
            if lost:
                connection.invalidate(error)
            raise DBAPIError.instance(
                self._sql,
                parameters,
                error,
                psycopg.Error,
                connection_invalidated=lost,
                dialect=connection.dialect,
                hide_parameters=connection.engine.hide_parameters,
            ) from error
