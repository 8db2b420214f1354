"""The demonstration: real rows, real threads, and every cached read checked against the database.

`places` has the rows, `databases` where they are put, `checking` the rule of the promise, `reading` one checked read,
`mix` the load, `latency` the clock, `report` what is printed; `running` puts them together, and `command` takes the
command line. It uses the library as an application does: by its public names alone.
"""

from __future__ import annotations
