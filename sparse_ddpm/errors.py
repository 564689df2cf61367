"""The exceptions that sparse-ddpm raises on purpose.

Every message names the thing, what was expected and what was found. The command line prints the
message alone and exits with status 1; anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class SparseDDPMError(Exception):
    """Base of every error that sparse-ddpm raises on purpose."""


class ConfigError(SparseDDPMError, ValueError):
    """A setting has a value that cannot be used."""


class TicketError(SparseDDPMError, ValueError):
    """A ticket, or a file that should hold one, is damaged, unknown or inconsistent."""


class DataError(SparseDDPMError, ValueError):
    """Training images are missing, truncated or of another kind than expected."""


class ProgramError(SparseDDPMError, ValueError):
    """A Program or a sparse format is inconsistent."""


class EngineError(SparseDDPMError, RuntimeError):
    """An engine cannot be built or cannot run what it was asked to."""


class CancelledError(SparseDDPMError):
    """The caller's callback ended a sampling before its last step."""


class MissingDependencyError(SparseDDPMError, ImportError):
    """An optional dependency is needed and not installed."""


def expected(what: str, wanted: object, got: object) -> str:
    """The one sentence form of our messages: ``what: expected wanted, got got.``"""
    return f"{what}: expected {wanted}, got {got}."
