"""What the front and a worker say to each other: plain, serialisable values in both directions.

The front owns text: chat templates, tokenizers, stop strings, detokenization. A worker owns token ids. The
same values travel within a process and between processes.

    front ── commands ──▶ worker      Submit, Cancel, Pause, Resume, Register, Unregister, Load,
                                      Unload, Pin, Resize, AskTrace, Shutdown
    front ◀── reports ─── worker      Tokens, Finished, PhaseChanged, WorkerStatus, WorkerUse, Traced,
                                      Acknowledged, Alive, Broken
"""
