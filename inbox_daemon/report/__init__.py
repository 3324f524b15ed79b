"""What the outside is shown: health, the status document, the log.

Touches nothing but the log's stream: facts come in, documents go out.
May import: contract, jobs, engine, gpu.

    status.py  the service's status document
    logs.py    the log's two forms
"""
