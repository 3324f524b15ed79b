"""A complete job to its folder in outbox/; the proof of it; what is removed by age.

Touches outbox/, rejected/ and running/<id>/outbox by way of the spool, and the ledger.
May import: contract, request, spool, ledger, jobs.

    folder.py     from a complete job to its folder
    verify.py     proves a published job line by line
    retention.py  removes what ended long ago, or takes too much room
"""
