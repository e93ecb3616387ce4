"""The built-in model: it needs no key and no network, and the same words get the same answer."""
