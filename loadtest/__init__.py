"""The one place that measures: generated data, benchmarks, and the peers they compare with.

`generator` makes users' histories and `catalogue` the items in them; `bench_store` measures the store against `peers`.
Nothing imports this package.
"""
