"""Engines: what holds a call, has its flags changed, and lets it go on."""
