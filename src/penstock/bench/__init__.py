"""`penstock bench`: loads any server that streams, and says how it bore it."""
