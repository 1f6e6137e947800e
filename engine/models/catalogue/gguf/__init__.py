"""GGUF files: every tensor and every key that changes a result is used, or the file is refused by name.

    header.py           one file: metadata and tensors, checked against its size before anything is built
    shards.py           NAME-00001-of-00003.gguf and the other shards as one model
    keys.py             metadata with a ledger: an unused key that could change a result is refused
    rotary_factors.py   rotary scaling: linear, yarn, long and short factors, the factors of Llama 3
    windows.py          which layers see only a sliding window
    gguf_config.py      the config of each architecture
    tensors.py          the tensors of each architecture: which of the file's make which of the model's
    splits.py           how text is split before byte pairs are merged, by the names that files use
    gguf_tokenizer.py   the tokenizer
    gguf_end_tokens.py  the tokens that end an output
    gguf_checkpoint.py  all of it: from a file to a folder that the catalogue can serve

The `gguf` package gives the names of tensors and dequantises their values. transformers' own reading of such
files is not used, since it leaves out rotary scaling, windows, experts' sizes, end tokens and pre-tokenizers.
"""
