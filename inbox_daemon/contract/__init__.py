"""What all parts agree on: configuration, documents, records, states, limits, names and errors.

Touches nothing: no clock, no file but the configuration's own, no thread, no network.
May import: nothing.

    config.py            TOML and environment to one frozen, checked Config
    documents.py         what a sender writes, and what it reads about its job
    health_documents.py  what the daemon says of itself: outbox/status.json
    job_documents.py     builds a sender's documents from the ledger's records
    json_schemas.py      the JSON Schema of each document
    names.py             what a file is called, and what a name means
    facts.py             what each part says of itself, for the status
    hindrances.py        why nothing is sent: the one list of reasons
    records.py           what the ledger keeps
    states.py            states, moves, status words, priorities
    limits.py            what a line, a job, the queue and the disk may hold
    errors.py            errors by who has to act: sender, operator, or a bug
"""
