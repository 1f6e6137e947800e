"""Copies of whole blocks: the one kernel behind `kv_page`, `kv_pack`, `kv_unpack` and `kv_move`."""
