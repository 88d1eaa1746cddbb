"""How other projects turn one JSONL file into token blocks, one short program each."""
