"""The journal: what was said, in order. The live tail of each turn, and the stores where turns last."""
