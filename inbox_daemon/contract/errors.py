"""Errors, split by who is to blame and therefore who must act.

Every error carries a stable code (for programs), its blame, and a sentence that
tells that person what to do next.  Known limit: an unexpected exception of a
library is none of these; it ends the loop that it reached, and the daemon.
"""

from enum import StrEnum
from typing import ClassVar


class Blame(StrEnum):
    """Who has to act for the error to go away."""

    SENDER = "sender"
    REQUEST = "request"
    OPERATOR = "operator"
    BUG = "bug"


class InboxDaemonError(Exception):
    """The base of every error that this package raises on purpose."""

    blame: ClassVar[Blame] = Blame.BUG

    def __init__(self, code: str, message: str) -> None:
        """Keep the stable code beside the sentence for people."""
        super().__init__(message)
        self.code = code
        self.message = message


class SenderError(InboxDaemonError):
    """The dropped file cannot be taken; its sender must change or repeat it."""

    blame = Blame.SENDER


class RequestError(InboxDaemonError):
    """One request cannot be answered; the others of its job can."""

    blame = Blame.REQUEST


class OperatorError(InboxDaemonError):
    """The machine or its configuration stands in the way; its owner must act."""

    blame = Blame.OPERATOR


class ConfigError(OperatorError):
    """The configuration cannot be used as it is written."""


class SpoolError(OperatorError):
    """The spool cannot be used: missing, on two filesystems, or in use."""


class LedgerError(OperatorError):
    """The ledger cannot be read or written; the daemon must not go on."""


class DamagedJobError(OperatorError):
    """One job's files lost data on the disk; the others are not concerned."""


class EngineError(OperatorError):
    """The engine cannot be started or reached."""


class IllegalTransitionError(InboxDaemonError):
    """A job was asked to move between states that the table does not join."""
