"""The command line of the stand-in engine."""

import argparse
from pathlib import Path


def parse_options(description: str | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--socket", help="listen on this Unix socket")
    parser.add_argument("--port", type=int, help="listen on this port of 127.0.0.1; 0 takes any")
    parser.add_argument("--model", default="standin")
    parser.add_argument("--models-file", type=Path, help="names of further models, while it runs")
    parser.add_argument("--max-model-len", type=int, default=2048, help="words of a prompt")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds for each request")
    parser.add_argument("--jitter", type=float, default=0.0, help="share by which it varies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=0, help="requests at a time; 0: no limit")
    parser.add_argument("--log", type=Path, help="one JSON line for each execution that starts")
    parser.add_argument("--starts", type=Path, help="one line for each start of a stand-in")
    parser.add_argument("--die-starts", type=int, default=0, help="let the first N starts fail")
    parser.add_argument("--die-at-start", metavar="TEXT", help="print the text and exit with 1")
    parser.add_argument("--start-delay", type=float, default=0.0, help="seconds before it listens")
    parser.add_argument("--death-delay", type=float, default=0.2, help="from [[crash]] to the end")
    parser.add_argument("--bare", action="store_true", help="no /health, /version, /metrics")
    parser.add_argument("--lacks", action="append", default=[], help="a path that is not served")
    parser.add_argument("--helper", action="store_true", help="leave an orphan when killed")
    return parser.parse_args()
