"""Two banks, ``checking`` and ``savings``, each a service with a database of its own.

A transfer takes from an account of the one and gives to an account of the other, in one two-phase commit: both
happen, or neither does.
"""
