"""Keeps transformers' log lines and progress bars off the terminal: we report progress and reasons ourselves."""

import logging as standard_logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from transformers.utils import logging

_GGUF_LOADING = "transformers.modeling_gguf_pytorch_utils"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors are logged, and no bars are drawn, while the block runs."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(standard_logging.ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    gguf_loading: Any = import_module(_GGUF_LOADING)
    gguf_bar = gguf_loading.tqdm  # drawn whatever is set
    gguf_loading.tqdm = partial(gguf_bar, disable=True)
    try:
        yield
    finally:
        gguf_loading.tqdm = gguf_bar
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
