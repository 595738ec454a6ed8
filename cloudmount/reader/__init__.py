"""`BlockSource`s over stored snapshots: caches, readahead."""
