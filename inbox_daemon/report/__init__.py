"""What the outside is shown: health, the status document, the log.

Touches nothing but the log's stream: facts come in, documents go out.
May import: contract, jobs, engine, gpu.

    facts.py   all facts of one moment
    trends.py  what no single moment shows: speeds, the engine's last death
    health.py  what is wrong, what is only slow, what the worker does
    status.py  the service's status document
    logs.py    the log's two forms
"""
