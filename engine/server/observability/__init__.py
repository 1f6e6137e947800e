"""What others' tools are told of a server: figures for Prometheus."""
