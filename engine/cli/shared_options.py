"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a served model.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CatalogueOption = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder of converted models.")]
