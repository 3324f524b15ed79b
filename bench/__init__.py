"""Benchmarks: one command each, all compared within one run.

    python -m bench.machinery   what one request costs the daemon itself
    python -m bench.validate    how fast a file is checked
    python -m bench.scale       how time and memory grow with the requests
    python -m bench.memory      the most memory, with large answers, lines and dead letters
    python -m bench.engine      the whole path against other ways to drive vLLM

Each prints tables and, with `--json PATH`, writes all its figures there.  RESULTS.md
holds the figures of runs that were made.
"""
