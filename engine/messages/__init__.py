"""What the front and a node say to each other: plain, serialisable values in both directions.

The front owns text: chat templates, tokenizers, stop strings, detokenization. A node owns token ids. The
same values travel within a process and between processes.

    front ── commands ──▶ node      Submit, Cancel, Pause, Resume, Register, Unregister, Load,
                                      Unload, Pin, Resize, AskTrace, Shutdown
    front ◀── reports ─── node      Tokens, Finished, PhaseChanged, NodeStatus, NodeUse, Traced,
                                      Acknowledged, Alive, Broken
"""
