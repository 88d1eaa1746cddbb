"""The format of a block store: shards, tables, manifest, and their verification."""
