"""Token blocks become weights: the model, the blocks it reads, ZeRO-3 and the Trainer that drives it.

This wing joins corpus, machine and runs; nothing but the programs imports it.
"""
