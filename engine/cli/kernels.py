"""`tokenmux kernels`: the Triton kernels of a GPU pool."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tokenmux.core.errors import ConfigError, NotFound, TokenmuxError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

kernels_app = typer.Typer(help="Compile the kernels of a GPU pool.", no_args_is_help=True)


@kernels_app.command("warm")
def kernels_warm_command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER", help="Folder of a model, of an entry of a catalogue, or of a whole catalogue."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="Configuration (pool.yaml) with a catalogue and models."
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="sm_NN", help="sm_80, sm_90, sm_100 or a relative. Default: the GPU in this machine."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Cache folder to fill. Default: TRITON_CACHE_DIR, otherwise Triton's own."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compile the kernels that models need into Triton's cache. Otherwise the first load of each model waits
    for them.

    Needs no GPU if --arch is given, and compiles only what is missing from the cache.

    The cache can be copied to a machine with the same tokenmux, Triton and Python: set TRITON_CACHE_DIR
    there.

    [dim]tokenmux kernels warm --config pool.yaml --arch sm_90 --cache ./kernels-sm90[/dim]
    """
    if not folders and config is None:
        raise ConfigError("name model folders, or a pool.yaml with --config")
    try:
        from tokenmux.kernels import warm as compiler
    except ModuleNotFoundError as error:
        raise TokenmuxError("Triton is not installed: pip install 'tokenmux[gpu]'") from error
    from tokenmux.cli.progress_bars import progress_bars
    from tokenmux.models.network.kernel_shapes import model_shapes

    capability = _capability(arch)
    models = list(_models(folders or [], config))
    if not models:
        raise NotFound("no models there: register one first, or name its folder")
    shapes: list[compiler.ModelShape] = []
    for model in models:
        try:
            found = model_shapes(
                model.config, model.dtype, model.block_size, trust_remote_code=model.trust_remote_code
            )
        except TokenmuxError as error:
            raise type(error)(f"{model.name}: {error}") from error
        shapes.extend(found)
    with progress_bars(Console(stderr=True)) as progress:
        warmed = compiler.warm(
            capability,
            shapes,
            lambda done, total: progress(f"compiling for sm_{capability}", done, total),
            paged_int8=config is not None and _pages_in_int8(config),
            cache=cache,
        )
    if json:
        found_and_done = {"arch": f"sm_{capability}", "models": len(models), "forms": warmed.forms}
        spent = {"compiled": warmed.compiled, "seconds": round(warmed.seconds, 3)}
        kept = {"cache": str(warmed.cache), "cache_bytes": warmed.cache_bytes}
        typer.echo(dumps(found_and_done | spent | kept))
        return
    typer.echo(
        f"{warmed.forms} forms for {len(models)} models on sm_{capability}: {warmed.compiled} compiled, "
        f"{warmed.forms - warmed.compiled} there already, in {warmed.seconds:.1f} s"
    )
    typer.echo(f"cache: {warmed.cache} ({warmed.cache_bytes / 1e6:.1f} MB)")


@dataclass(frozen=True, slots=True)
class _WantedModel:
    """A model whose kernels are to be compiled."""

    name: str
    config: "PreTrainedConfig"
    dtype: "torch.dtype"
    block_size: int
    trust_remote_code: bool = False


def _models(folders: list[Path], config: Path | None) -> Iterator[_WantedModel]:
    """The models in these folders, in the catalogue of a configuration, and in its list of models."""
    from tokenmux.core.facts import BLOCK_TOKENS
    from tokenmux.models.catalogue.catalogue import describe_folder
    from tokenmux.models.catalogue.entry import Entry
    from tokenmux.models.catalogue.stored_entries import StoredEntries
    from tokenmux.models.weights.image import DTYPES

    def of_entry(entry: Entry) -> _WantedModel:
        return _WantedModel(
            entry.name,
            entry.config,
            DTYPES[entry.manifest.dtype],
            entry.facts.kv.block_size,
            entry.trust_remote_code,
        )

    for folder in folders:
        if (folder / "manifest.json").is_file():
            yield of_entry(Entry.load(folder))
        elif (folder / "models").is_dir():
            yield from map(of_entry, StoredEntries(folder).entries())
        else:
            yield _WantedModel(folder.name, *describe_folder(folder), BLOCK_TOKENS)
    if config is None:
        return
    from tokenmux.server.config import load_config

    pool = load_config(config)
    catalogue = StoredEntries(pool.catalogue)
    yield from map(of_entry, catalogue.entries())
    for name in sorted(pool.models.keys() - set(catalogue.names())):
        source = Path(pool.models[name].source)
        if source.is_file():
            raise NotFound(
                f"{name}: {source} is not in the catalogue yet; start the server once, and it will be"
            )
        yield _WantedModel(name, *describe_folder(source), BLOCK_TOKENS)


def _pages_in_int8(config: Path) -> bool:
    from tokenmux.server.config import load_config

    return any(entry.paged_kv == "int8" for _, entry in load_config(config).all_devices)


def _capability(arch: str | None) -> int:
    """The compute capability, as major * 10 + minor, that `--arch` names or this machine has."""
    from tokenmux.kernels.tiles import GpuArchitecture

    if arch is None:
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                "there is no CUDA device here: name the one to compile for, such as --arch sm_90"
            )
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    else:
        named = re.fullmatch(r"sm_(\d{2,3})a?", arch)
        if named is None:
            raise ConfigError(
                f"--arch {arch}: write sm_ and the compute capability, such as sm_80, sm_90 or sm_100"
            )
        capability = int(named[1])
    try:
        GpuArchitecture.of(capability)
    except ValueError as error:
        raise ConfigError(
            f"sm_{capability}: {error}; known are sm_80, sm_90, sm_100 and their families"
        ) from error
    return capability
