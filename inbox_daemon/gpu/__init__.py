"""The card: what it says, what it allows, what it used.

nvml.py alone asks the driver; the rest is pure.
May import: contract, engine.

    nvml.py      one sample of the card's sensors
    heat.py      what temperature and throttling allow
    governor.py  the window and the chunk size that the newest readings allow
    energy.py    joules, shared among the running jobs
"""
