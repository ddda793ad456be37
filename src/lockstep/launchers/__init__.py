"""Launchers: how ranks start and how their deaths are noticed. `server` runs in a process of its own."""
