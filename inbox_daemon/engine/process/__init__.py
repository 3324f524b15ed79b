"""A server of ours as processes: its command, its start, its output, its end.

Touches processes, /proc, the folder of the sockets and the note of the running engine.
May import: contract, engine.

    servers.py    vLLM, the operator's command, a remote server, in one shape
    command.py    what is started, word by word
    child.py      one process: its start, its output, its end
    output.py     how much of its output goes into the log
    session.py    all processes of an engine and the folder of its sockets
    launch.py     the program between fork and exec
    diagnosis.py  the last lines of its output to a sentence for the operator
"""
