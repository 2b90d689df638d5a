"""The libraries' own remarks and progress bars, which say nothing to a user of ours."""

from __future__ import annotations

import warnings


def hush_libraries() -> None:
    """Keep them off the terminal."""
    import diffusers
    import transformers

    warnings.simplefilter("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
