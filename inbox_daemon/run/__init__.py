"""queued/ to an outcome for every request: attempts, arrivals, suspects, dead letters.

Talks to the engine by its seam; changes jobs by way of the room jobs.
May import: contract, request, spool, ledger, jobs, engine, gpu, publish.

    runner.py        the loop: admit, collect, commit
    hindrance.py     why nothing is sent, for all jobs and for one
    attempts.py      requests in flight, each to its verdict
    budget.py        how many bytes they, and what came back, may hold
    outcomes.py      what a reply means
    arrivals.py      what an arrival means for its job
    suspects.py      the requests of an engine that died, until their outcomes
    poison.py        bisection over engine deaths, for the request that causes them
    dead_letters.py  from a verdict to a dead letter
    lifecycle.py     a job around its requests: started, ended early, published, set aside
"""
