"""Records told in the words of others: in-toto with SLSA provenance, OpenLineage, MLflow.

Each format is a module with one function that is handed a run and its options; ``cli/export.py`` names them.
"""
