"""Connections: one client's stream, as a nursery of a producer, a writer and a keepalive."""
