"""GGUF files: every tensor and every key that changes a result is used, or the file is refused by name.

    header.py           one file: metadata and tensors, checked against its size before anything is built
    shards.py           NAME-00001-of-00003.gguf and its fellows as one model
    keys.py             metadata with a ledger: what nobody took and could change a result is refused
    rotary_factors.py   rotary scaling: linear, yarn, long and short factors, the factors of Llama 3
    windows.py          which layers see a sliding window only
    gguf_config.py      the config of each architecture
    tensors.py          the tensors of each architecture: which of the file's make which of the model's
    splits.py           how text is split before byte pairs are merged, by the names that files use
    gguf_tokenizer.py   the tokenizer
    gguf_end_tokens.py  the tokens that end an output
    gguf_checkpoint.py  all of it: from a file to a folder that the catalogue can serve

Names of tensors come from the `gguf` package, values are dequantised by it. What transformers' own reading of
such files leaves out (rotary scaling, windows, experts' sizes, end tokens, pre-tokenizers) is why it is not
used.
"""
