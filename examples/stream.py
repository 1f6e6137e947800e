"""Stream an answer from a running server, and show what happens to the request meanwhile.

python examples/stream.py 127.0.0.1:50051 MODEL "Once upon a time"
"""

import sys

from tokenmux import Client, Delta, Finish, State


def main(address: str, model: str, prompt: str) -> None:
    with (
        Client(address) as client,
        client.stream(model, prompt, max_tokens=24, temperature=0.7, seed=1) as events,
    ):
        for event in events:
            match event:
                case State(phase):
                    print(f"[{phase.value}]", file=sys.stderr)
                case Delta():
                    print(event.text, end="", flush=True)
                case Finish():
                    print(
                        f"\n{event.n_completion_tokens} tokens, the first after {event.ttft_s:.2f} "
                        f"s: {event.reason}"
                    )


if __name__ == "__main__":
    main(*sys.argv[1:])
