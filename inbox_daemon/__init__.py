"""inbox-daemon: a durable batch queue for one desktop GPU, driven by nothing but files."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("inbox-daemon")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
