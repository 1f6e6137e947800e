"""`tokenmux serve`: a wrong configuration, and a model that does not exist, are told before anything
listens."""

from pathlib import Path

import pytest

from tests.cli.runner import refused, run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], "error: none.yaml: cannot be read: No such file or directory"),
        (["--arena", "lots"], "error: command line: --arena: device.arena: 'lots' is not a size"),
        (
            ["--devices", "0"],
            "error: command line: --devices: device.count: should be greater than or equal to 1",
        ),
        (
            ["--listen", "127.0.0.1:0", "--devices", "3", "--arena", "900TiB"],
            "error: the memory of this machine is too small: 2764800.0 GiB for 3 arenas, 3.0 GiB for",
        ),
        (["--model", "nameless"], "error: --model nameless: write NAME=PATH"),
        (["--model", "a=b", "--model", "a=c"], "error: --model a=c: a is given twice"),
        (
            ["--listen", "127.0.0.1:0", "--catalogue", "\udcff"],
            "error: command line: --catalogue: catalogue: ",
        ),
        (
            ["--listen", "0.0.0.0:1"],
            "error: command line: --listen: listen: 0.0.0.0:1 can be reached from other",
        ),
    ],
)
def test_a_wrong_configuration_is_status_2(arguments: list[str], message: str) -> None:
    assert refused(run(None, "serve", *arguments), 2).startswith(message)


def test_a_wrong_line_in_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text("device:\n  kind: toaster\n")
    line = refused(run(None, "serve", "--config", str(path)), 2)
    assert line == f"error: {path}:2: device.kind: should be 'cpu' or 'cuda', and is 'toaster'"


def test_a_model_that_is_not_there_is_told_before_anything_listens(tmp_path: Path) -> None:
    model = f"m={tmp_path / 'none'}"
    arguments = ["--listen", "127.0.0.1:0", "--model", model, "--catalogue", str(tmp_path / "kept")]
    line = refused(run(None, "serve", *arguments), 1)
    assert line == (
        f"error: no model can be served; m: {tmp_path / 'none'}: there is no such folder or file on "
        "the server"
    )
