"""The exceptions that this package raises."""


class ImamlError(Exception):
    """The base of every error that is meant for the user."""


class DataError(ImamlError, ValueError):
    """Data that cannot be read or that does not fit: files, folders, shapes, values."""


class ConfigError(ImamlError, ValueError):
    """A recipe, preset, option or argument that is not accepted."""


class StructureError(ConfigError):
    """A solver or rule paired with a problem that it is not made for."""


class ArtefactError(ImamlError, ValueError):
    """An artefact that is damaged, of another model, or no artefact."""


class CheckpointError(ImamlError, ValueError):
    """A training state that cannot be saved or restored."""


class NumericalError(ImamlError, ArithmeticError):
    """A computation that ended in NaN or infinity, or that diverged, under the policy "raise"."""
