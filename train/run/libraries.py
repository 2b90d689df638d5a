"""Suppression of the libraries' own warnings and progress bars."""

from __future__ import annotations

import importlib.util
import warnings


def require_libraries(*names: str) -> None:
    """Refuse, before anything else is looked at, to run without libraries that are needed later.

    Args:
        names: modules that a command imports once its arguments have been checked.

    Raises:
        ModuleNotFoundError: a library is not installed, as if it were imported.
    """
    for name in names:
        try:
            missing = importlib.util.find_spec(name) is None
        except ValueError:  # marked in sys.modules as not to be imported
            missing = True
        if missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hush_libraries() -> None:
    """Silence warnings, log messages and progress bars of diffusers and transformers."""
    import diffusers
    import transformers

    warnings.simplefilter("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
