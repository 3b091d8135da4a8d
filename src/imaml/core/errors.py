"""The exceptions that this package raises."""

from __future__ import annotations


class ImamlError(Exception):
    """The base of every error that is meant for the user."""


class DataError(ImamlError, ValueError):
    """Data that cannot be read or that does not fit: files, folders, shapes, values."""


class ConfigError(ImamlError, ValueError):
    """A recipe, preset, option or argument that is not accepted.

    Attributes:
        field: The field or argument whose value is not accepted, if it is one of a recipe; else None.
        problem: The message without what it is about, "expected X, got Y."; empty if `field` is None.
    """

    field: str | None = None
    problem: str = ""

    @classmethod
    def of_field(cls, owner: str, field: str, problem: str) -> ConfigError:
        """Make the error on the value of a field.

        Args:
            owner: Whose field it is, for the message.
            field: The field.
            problem: "expected X, got Y."

        Returns:
            The error, "owner: field: expected X, got Y."
        """
        error = cls(f"{owner}: {field}: {problem}")
        error.field, error.problem = field, problem
        return error


class StructureError(ConfigError):
    """A solver or rule paired with a problem that it is not made for."""


class ArtefactError(ImamlError, ValueError):
    """An artefact that is damaged or for another model, or a file that is not an artefact."""


class CheckpointError(ImamlError, ValueError):
    """A training state that cannot be saved or restored."""


class NumericalError(ImamlError, ArithmeticError):
    """A computation that ended in NaN or infinity, or that diverged, under the policy "raise"."""
