"""The stages of ZeRO: the flat groups of stages 1 and 2, what each stage sends, and which one suits a machine."""
