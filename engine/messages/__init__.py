"""What the front and a worker say to each other: plain, serialisable values in both directions.

The front owns text: chat templates, tokenizers, stop strings, detokenization. A worker owns token ids.
In-process and across processes the same values travel.

    front ── commands ──▶ worker      Submit, Cancel, Pause, Resume, Register, Unregister, Load,
                                      Unload, Pin, Resize, AskTrace, Shutdown
    front ◀── reports ─── worker      Tokens, Finished, PhaseChanged, WorkerStatus, WorkerUse, Traced,
                                      Acknowledged, Alive, Broken
"""
