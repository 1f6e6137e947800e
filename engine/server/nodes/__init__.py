"""The life of the node process: starting, replacing it, finding what breaks it, saying when it is gone."""
