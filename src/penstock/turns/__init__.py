"""Turns: one producer, one owner of the end. What a producer writes with, and the hub where turns live."""
