"""The catalog: a folder of runs, each a folder of plain files. Imports neither torch nor runnable."""
