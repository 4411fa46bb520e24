"""Who may ask, how much, and what it cost: keys, limits, usage, prices, and the database they live in.

Owns who a request's caller is, and one row for everything that is charged; never knows an API's wire format, never
loads torch. Read `caller`, `ledger` and `ledger_writer`, then `keys`, `gate` and `prices`.
"""
