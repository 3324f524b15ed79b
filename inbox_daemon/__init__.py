"""inbox-daemon: a durable batch queue for one desktop GPU, driven by nothing but files."""

# Stands here, as reading it from the installed package costs a quarter of a command's start.
__version__ = "0.1.0"
