"""Serve two models from a device that holds one of them, and ask both.

    python examples/serve_two_models.py MODEL MODEL --arena 2GiB

MODEL is a folder of safetensors or a GGUF file. The server is the one that `tokenmux serve` starts; it ends
with this program. The last lines say how often weights were swapped.
"""

import argparse
import subprocess
import sys
import time

from tokenmux import Client

PROMPT = "Once upon a time"
COUNTED_EVERY_S = 1.5
"""The server hears once a second what its node has counted."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs=2, metavar="MODEL")
    parser.add_argument("--arena", default="2GiB", help="memory of the virtual GPU")
    parser.add_argument("--catalogue", help="where converted models are kept; default: the user's cache")
    asked = parser.parse_args()

    first, second = asked.models
    command = [sys.executable, "-m", "tokenmux.cli", "serve", "--listen", "127.0.0.1:0"]
    command += ["--arena", asked.arena, "--model", f"first={first}", "--model", f"second={second}"]
    if asked.catalogue:
        command += ["--catalogue", asked.catalogue]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            ask_both(address_of(server))
        finally:
            server.terminate()


def address_of(server: "subprocess.Popen[str]") -> str:
    """Where the server listens: it says so once it answers."""
    assert server.stdout is not None
    for line in server.stdout:
        if "listening on " in line:
            return line.split("listening on ")[1].split()[0]
    raise SystemExit("the server ended before it answered")


def ask_both(address: str) -> None:
    """Ask the models in turn, so that each question needs the weights that the one before has pushed out."""
    with Client(address) as client:
        for _ in range(2):
            for model in ("first", "second"):
                answer = client.generate(model, PROMPT, max_tokens=8)
                print(f"{model}: {answer.text!r} after {answer.finish.ttft_s:.2f} s")
        time.sleep(COUNTED_EVERY_S)
        for found in client.models.list():
            print(f"{found.name}: {found.residency.value}, swapped in {found.n_swaps} times")


if __name__ == "__main__":
    main()
