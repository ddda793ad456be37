"""The catalog in a browser, on this machine only: read-only pages over plain files. No torch, no runnable."""
