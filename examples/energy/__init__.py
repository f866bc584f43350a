"""Three services of an energy supplier, each with a database of its own: meters, forecast, billing.

One saga, ``settle-day``, spans them: take in a meter's readings, publish the forecast made of them, bill the
customer. It happens everywhere, or is undone everywhere.
"""
