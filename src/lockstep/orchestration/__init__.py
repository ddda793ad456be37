"""The pipeline: Runnable's tasks over a run's folder. This process imports no torch."""
