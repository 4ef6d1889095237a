"""The shell that every server wears; it knows no noun of any domain.

Start with `runner` (the life of a server process) and `service` (how a method of a protocol is wrapped). `errors` turns
exceptions into rich statuses, `metrics` and `statistics` are what `endpoint` shows to Prometheus, `health` tells load
balancers, `config` and `fields` read documented dataclasses, `logs` formats what the process says.
"""
