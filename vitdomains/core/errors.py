"""Every error that a user can cause, and what to do about it.

A message says what was given and what is wrong; the hint says what to do next. The command line prints both in two lines,
without a traceback, and exits with the class's ``exit_status``.
"""

from __future__ import annotations

from pathlib import Path


class VitDomainsError(Exception):
    """Base of all errors that this package raises on purpose.

    Args:
        message: What was found, with the offending value.
        hint: What to do next, in the imperative.
    """

    exit_status = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(VitDomainsError):
    """A key, value or combination of a configuration is not possible."""


class ManifestError(VitDomainsError):
    """A table of records is inconsistent, or its files are not there."""


class ImageError(VitDomainsError):
    """One file cannot be read as the image that it claims to be.

    Args:
        path: The file.
        problem: What is wrong, in one clause.
        tag: The DICOM keyword or header field at fault, where there is one.
        value: The value of that field; None: it has none, or one that must not be shown.
        hint: What to do next.
    """

    def __init__(self, path: str | Path, problem: str, *, tag: str = "", value: object = None, hint: str = "") -> None:
        self.path = Path(path)
        self.problem = problem
        self.tag = tag
        self.value = value
        shown = "" if value is None else f" = {value!r:.80}{'...' if len(repr(value)) > 80 else ''}"
        field = f" ({tag}{shown})" if tag else ""
        super().__init__(f"{path}: {problem}{field}.", hint=hint)

    def __reduce__(self) -> tuple[object, ...]:
        # Readers run in worker processes; the default would rebuild from the message alone.
        return (_image_error, (str(self.path), self.problem, self.tag, self.value, self.hint))


def _image_error(path: str, problem: str, tag: str, value: object, hint: str) -> ImageError:
    return ImageError(path, problem, tag=tag, value=value, hint=hint)


def as_image_error(path: str | Path, error: Exception) -> ImageError:
    """What another library raised while a file was read, as our error: one line, without control characters, at most 200 long."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, VitDomainsError):
        return ImageError(path, error.message.rstrip("."), hint=error.hint)
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return ImageError(
        path, f"cannot be read ({type(error).__name__}{': ' if text else ''}{text:.200})",
        hint="Open it in another program; copy or export it again if it is damaged.",
    )  # fmt: skip


class NoResultError(VitDomainsError):
    """A job went through its input and has nothing to show: every file failed."""

    exit_status = 4


class WeightsError(VitDomainsError):
    """Weights are missing, or do not fit the model."""


class TrainingError(VitDomainsError):
    """Training cannot go on: a non-finite loss, a checkpoint of another run."""


class BundleError(VitDomainsError):
    """A bundle is incomplete, altered or of another version."""


class ExplainError(VitDomainsError):
    """A heat map cannot be made: nothing was captured, or the method does not fit the model."""


class ExportError(VitDomainsError):
    """An artefact did not pass its gate, or a format cannot take the model."""

    exit_status = 3
