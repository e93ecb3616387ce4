"""The web: the streams as plain ASGI, and a Quart-Trio app for everything else."""
