"""The saga of the three services, in Python: ``fluxora saga check examples.energy.definitions:settle_day``."""

from participant.definitions import Definition, Retry, Step, saga_input

ingest = Step(
    "ingest-readings",
    service="meters",
    payload={"meter": saga_input.meter, "kwh": saga_input.kwh},
)
#: Needs what was taken in, not only that it was: the sum is the meters' answer.
publish = Step(
    "publish-forecast",
    service="forecast",
    payload={"meter": saga_input.meter, "kwh": [ingest.result.kwh]},
    timeout_seconds=20,
)
bill = Step(
    "bill-customer",
    service="billing",
    payload={"customer": saga_input.customer, "kwh": [ingest.result.kwh]},
    retry=Retry(max_attempts=5),
)

settle_day = Definition(
    "settle-day",
    "1",
    [ingest, publish, bill],
    timeout_seconds=600,
    description="Take in a meter's day, publish the forecast made of it, bill the customer.",
    example={"meter": "meter-of-ada", "customer": "ada", "kwh": [0.4, 0.3, 1.2]},
)
