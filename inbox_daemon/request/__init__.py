"""One request line and its body: read, checked and written; and a whole file's validation.

Touches nothing, except that validation.py opens the one path that it is given.
May import: contract.

    line.py        JSONL bytes to requests, and answers to output lines
    json_guard.py  JSON from outside, parsed without harm
    faults.py      what is wrong with a line, in words that are safe to show
    endpoints.py   which parameters a body may have, by endpoint, as data
    body.py        what of a body may reach the engine
    messages.py    messages, items and media
    schemas.py     tools, output formats and JSON schemas
    validation.py  a whole file: accepted or refused, with every fault
"""
