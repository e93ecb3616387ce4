"""The wire: chunks, messages, their JSON, their framing and their grammar. Sans-I/O: nothing here imports Trio."""
