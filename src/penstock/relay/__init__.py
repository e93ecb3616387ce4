"""The relay: other people's models, read as they stream and written into a turn."""
