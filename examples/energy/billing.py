"""Billing: the step that may refuse."""

from sqlalchemy import Connection, text

from participant import Command, Refused, Service

billing = Service("billing")

EUR_PER_KWH = 0.30


@billing.action("bill-customer")
def bill(connection: Connection, command: Command) -> dict[str, float] | Refused:
    """A refusal is an answer, not an error: the saga then undoes what the other services did."""
    customer, amount = command.payload["customer"], round(sum(command.payload["kwh"]) * EUR_PER_KWH, 2)
    limit = connection.execute(
        text("SELECT credit_limit FROM customers WHERE name = :name FOR UPDATE"), {"name": customer}
    ).scalar_one_or_none()
    if limit is None:
        return Refused(f"there is no customer {customer}")
    if amount > limit:
        return Refused(f"{amount:.2f} EUR is over the credit limit of {limit:.2f} EUR of {customer}")
    connection.execute(
        text("INSERT INTO invoices (saga, customer, amount) VALUES (:saga, :customer, :amount)"),
        {"saga": command.transaction_id, "customer": customer, "amount": amount},
    )
    return {"amount": amount}


@billing.compensation("bill-customer")
def cancel(connection: Connection, command: Command) -> None:
    connection.execute(
        text("UPDATE invoices SET cancelled = true WHERE saga = :saga"), {"saga": command.transaction_id}
    )


if __name__ == "__main__":
    billing.run()
