"""Suppression of the libraries' own warnings and progress bars."""

from __future__ import annotations

import warnings


def hush_libraries() -> None:
    """Silence warnings, log messages and progress bars of diffusers and transformers."""
    import diffusers
    import transformers

    warnings.simplefilter("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
